//! How connections between two pods of one node go: the agent's setting, and how it finds the pods connected.

use std::collections::HashMap;

use mesh_api::admin::{PodLinkStatus, PodStatus};
use mesh_api::plan::Workload;

/// What an agent says of its node.
#[derive(Debug, Default)]
pub struct SameNode {
    /// `--same-node`.
    setting: String,
    /// By namespace and name of the pod.
    links: HashMap<(String, String), PodLinkStatus>,
}

/// How a connection goes.
#[derive(Debug, PartialEq, Eq)]
pub enum Way {
    /// From veth to veth, past what pods share.
    Veth,
    /// Over the node's routing alone, or because the setting says so.
    Direct,
    /// Over mutual TLS, and why.
    Mtls(Option<String>),
}

impl SameNode {
    /// By what an agent answers.
    pub fn new(setting: String, pods: Vec<PodStatus>) -> Self {
        let links = pods.into_iter().filter_map(|pod| Some(((pod.namespace, pod.name), pod.link?)));
        Self { setting, links: links.collect() }
    }

    /// The way between two pods; the same decision as the agent's and the kernel's
    /// (`mesh_common::veth::same_node_path`).
    pub fn way(&self, client: &Workload, server: &Workload) -> Way {
        if self.setting == "mtls" {
            return Way::Mtls(None);
        }
        let link = |pod: &Workload| self.links.get(&(pod.namespace.to_string(), pod.name.to_string()));
        let is = |pod: &Workload, way: &str| link(pod).is_some_and(|link| link.way == way);
        if is(client, "veth") && is(server, "veth") {
            return Way::Veth;
        }
        if self.setting == "direct" || (is(client, "routed") && is(server, "routed")) {
            return Way::Direct;
        }
        let why = [client, server].into_iter().find_map(|pod| {
            let obstacle = match link(pod) {
                None => "how it is connected is not known",
                Some(link) => link.obstacle.as_deref()?,
            };
            Some(format!("other pods may be on the way: of {}/{}, {obstacle}", pod.namespace, pod.name))
        });
        Way::Mtls(why)
    }
}
