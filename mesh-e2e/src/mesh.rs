//! The mesh on the cluster, and its policies.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::kubectl;
use crate::wait::eventually;

/// Helm's release.
pub const RELEASE: &str = "nodemesh";
/// The namespace of the release.
pub const NAMESPACE: &str = "nodemesh-system";

/// `PeerAuthentication` of a whole namespace: no plaintext.
pub fn strict() -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "PeerAuthentication",
        "metadata": {"name": "default"},
        "spec": {"mtls": {"mode": "STRICT"}},
    })
}

/// `AuthorizationPolicy` for the pods labelled `app`.
pub fn authorization(name: &str, app: &str, action: &str, rules: &Value) -> Value {
    json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": name},
        "spec": {"selector": {"matchLabels": {"app": app}}, "action": action, "rules": rules},
    })
}

/// The condition by which the control plane says whether a resource could be read.
pub fn accepted(object: &Value) -> Result<&Value> {
    condition(object, "nodemesh.io/Accepted")
}

/// The condition by which it says how much of it is in force.
pub fn in_force(object: &Value) -> Result<&Value> {
    condition(object, "nodemesh.io/InForce")
}

fn condition<'a>(object: &'a Value, name: &str) -> Result<&'a Value> {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .and_then(|all| all.iter().find(|condition| condition["type"] == name))
        .with_context(|| format!("no condition {name} in {}", object["status"]))
}

/// Waits until both parts of the mesh are rolled out.
pub fn wait_ready() -> Result<()> {
    for part in ["deployment/mesh-control", "daemonset/mesh-agent"] {
        kubectl::run(&["--namespace", NAMESPACE, "rollout", "status", "--timeout=120s", part])?;
    }
    Ok(())
}

/// Replaces every pod of a part and waits until the new ones are ready.
pub fn restart(part: &str) -> Result<()> {
    kubectl::run(&["--namespace", NAMESPACE, "rollout", "restart", part])?;
    kubectl::run(&["--namespace", NAMESPACE, "rollout", "status", "--timeout=180s", part]).map(drop)
}

/// Other values of the release while it lives, and those from before afterwards.
pub struct Values(());

/// The chart of this checkout.
pub const CHART: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/helm/nodemesh");

impl Values {
    /// Sets values, `control.replicas=1`, and waits until what they change is rolled out.
    pub fn set(values: &[&str]) -> Result<Self> {
        Self::upgrade(values, &["--wait"])
    }

    /// The same without the wait, for values with which not all gets ready.
    pub fn set_at_once(values: &[&str]) -> Result<Self> {
        Self::upgrade(values, &[])
    }

    fn upgrade(values: &[&str], how: &[&str]) -> Result<Self> {
        let set = values.iter().map(|value| format!("--set={value}"));
        kubectl::output(helm(&["upgrade", RELEASE, CHART, "--reuse-values"]).args(how).args(set))?;
        Ok(Self(()))
    }
}

impl Drop for Values {
    fn drop(&mut self) {
        if let Err(error) = kubectl::output(&mut helm(&["rollback", RELEASE, "--wait"])) {
            eprintln!("the mesh keeps the values of a test: {error:#}");
        }
    }
}

/// Helm in the mesh's namespace.
pub fn helm(arguments: &[&str]) -> Command {
    let mut helm = Command::new("helm");
    helm.args(arguments).args(["--namespace", NAMESPACE]);
    helm
}

/// Waits until there is no pod of the mesh any more.
pub fn wait_gone() -> Result<()> {
    eventually("the pods of the mesh go", Duration::from_mins(2), || {
        let pods = kubectl::get(&["pods", "--namespace", NAMESPACE])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "{left} pods are left");
        Ok(())
    })
}
