//! The mesh on the cluster, and its policies.

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

/// The condition that the control plane wrote on a resource.
pub fn accepted(object: &Value) -> Result<&Value> {
    let conditions = object["status"]["conditions"].as_array();
    conditions
        .and_then(|all| all.iter().find(|condition| condition["type"] == "nodemesh.io/Accepted"))
        .with_context(|| format!("no condition nodemesh.io/Accepted in {}", object["status"]))
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

/// Waits until there is no pod of the mesh any more.
pub fn wait_gone() -> Result<()> {
    eventually("the pods of the mesh go", Duration::from_mins(2), || {
        let pods = kubectl::get(&["pods", "--namespace", NAMESPACE])?;
        let left = pods["items"].as_array().map_or(0, Vec::len);
        ensure!(left == 0, "{left} pods are left");
        Ok(())
    })
}
