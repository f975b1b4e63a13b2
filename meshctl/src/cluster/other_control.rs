//! A control plane that is not this mesh's own, such as istiod: the agents' settings say so.

use std::fmt;

use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::Container;
use kube::ResourceExt;
use serde::Serialize;

/// The agents' container, and the volume with the roots that they check the control plane with.
const CONTAINER: &str = "mesh-agent";
const ROOTS: &str = "trust-bundle";

/// What agents are told of a control plane that is another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct OtherControl {
    /// Where it is.
    pub address: String,
    /// Name that its certificate has, if it is given.
    pub name: Option<String>,
    /// `ConfigMap` with the roots that it is checked with, in the mesh's namespace.
    pub root_config_map: Option<String>,
}

impl OtherControl {
    /// By the settings of the agents; none where these lead to the chart's own control plane.
    pub fn of(set: &DaemonSet) -> Option<Self> {
        let pod = set.spec.as_ref()?.template.spec.as_ref()?;
        let agent = pod.containers.iter().find(|container| container.name == CONTAINER)?;
        let address = setting(agent, "control", "MESH_AGENT_CONTROL")?;
        let own = format!("mesh-control.{}.svc", set.namespace().unwrap_or_default());
        if host(&address) == own {
            return None;
        }
        let roots = pod.volumes.iter().flatten().find(|volume| volume.name == ROOTS);
        let root_config_map =
            roots.and_then(|volume| volume.config_map.as_ref()).map(|roots| roots.name.clone());
        let name = setting(agent, "control-name", "MESH_AGENT_CONTROL_NAME");
        Some(Self { address, name, root_config_map })
    }
}

impl fmt::Display for OtherControl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "agents use another one, {}", self.address)?;
        match &self.name {
            Some(name) if *name != host(&self.address) => write!(f, " as {name}"),
            _ => Ok(()),
        }
    }
}

/// What the agent goes by: the last argument of that name, else the environment.
fn setting(agent: &Container, name: &str, variable: &str) -> Option<String> {
    let prefix = format!("--{name}");
    let arguments: Vec<_> = agent.args.iter().flatten().collect();
    let given = arguments.iter().enumerate().rev().find_map(|(index, argument)| {
        match argument.strip_prefix(&prefix)? {
            "" => arguments.get(index + 1).map(|value| (*value).clone()),
            rest => rest.strip_prefix('=').map(ToOwned::to_owned),
        }
    });
    let environment = agent.env.iter().flatten().find(|it| it.name == variable);
    given.or_else(|| environment?.value.clone()).filter(|value| !value.is_empty())
}

/// The host of `https://HOST:PORT`.
fn host(address: &str) -> &str {
    let rest = address.split_once("://").map_or(address, |(_, rest)| rest);
    rest.rsplit_once(':').map_or(rest, |(host, _)| host)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn set(arguments: &Value, environment: &Value) -> DaemonSet {
        let agent = json!({"name": "mesh-agent", "args": arguments, "env": environment});
        let roots = json!({"name": "trust-bundle", "configMap": {"name": "istio-ca-root-cert"}});
        let pod = json!({"containers": [{"name": "other"}, agent], "volumes": [roots]});
        let text = json!({
            "metadata": {"name": "mesh-agent", "namespace": "mesh"},
            "spec": {"selector": {}, "template": {"spec": pod}},
        });
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn another_control_plane_is_known_by_the_agents_settings() {
        let istiod = "https://istiod.istio-system.svc:15012";
        let arguments =
            json!(["run", format!("--control={istiod}"), "--control-name=istiod.istio-system.svc"]);
        let found = OtherControl::of(&set(&arguments, &json!([]))).unwrap();
        assert_eq!(found.to_string(), format!("agents use another one, {istiod}"));
        assert_eq!(found.root_config_map.as_deref(), Some("istio-ca-root-cert"));

        let apart = json!(["run", "--control", "https://10.0.0.1:15012", "--control-name", "istiod"]);
        let found = OtherControl::of(&set(&apart, &json!([]))).unwrap();
        assert_eq!(found.to_string(), "agents use another one, https://10.0.0.1:15012 as istiod");

        let environment = json!([{"name": "MESH_AGENT_CONTROL", "value": istiod}]);
        assert_eq!(OtherControl::of(&set(&json!(["run"]), &environment)).unwrap().address, istiod);
    }

    #[test]
    fn the_charts_own_is_no_other_one() {
        let own = "--control=https://mesh-control.mesh.svc:15012";
        let istiod = "--control=https://istiod.istio-system.svc:15012";
        assert_eq!(OtherControl::of(&set(&json!([own, "--control-name=mesh-control"]), &json!([]))), None);
        assert_eq!(OtherControl::of(&set(&json!([istiod, own]), &json!([]))), None, "the last one counts");
        assert_eq!(OtherControl::of(&set(&json!(["run", "--control-name=x"]), &json!([]))), None);
        let elsewhere = "--control=https://mesh-control.other.svc:15012";
        assert!(OtherControl::of(&set(&json!([elsewhere]), &json!([]))).is_some());
    }
}
