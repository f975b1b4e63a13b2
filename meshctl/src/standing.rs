//! Pods that are not in the mesh, or not anywhere, though they should be: which, how far they are, and why.

use std::collections::BTreeMap;
use std::fmt;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use mesh_api::admin::{EnrolmentState, PodStatus};
use mesh_api::resource::Labels;
use mesh_api::resource::enrolment::is_enrolled;
use serde::Serialize;

use crate::cluster::{Cluster, trouble};

/// A pod that is not where it should be.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NotEnrolled {
    /// `namespace/name`.
    pub pod: String,
    /// Its node, if it has one.
    pub node: Option<String>,
    /// `pending` or `failed`.
    pub state: EnrolmentState,
    /// Why.
    pub reason: String,
}

impl NotEnrolled {
    /// By what the agent of its node says; none of a pod that is in the mesh, or is not to be.
    pub fn of_agent(pod: &PodStatus, node: &str) -> Option<Self> {
        let stuck = matches!(pod.state, EnrolmentState::Pending | EnrolmentState::Failed);
        stuck.then(|| Self {
            pod: format!("{}/{}", pod.namespace, pod.name),
            node: Some(node.to_owned()),
            state: pod.state,
            reason: pod.reason.clone().unwrap_or_else(|| "its agent gives no reason".to_owned()),
        })
    }

    /// By what Kubernetes says; none of a pod that has an address and has not ended.
    pub fn of_kubernetes(pod: &Pod) -> Option<Self> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        let trouble = || trouble(pod).map(|it| format!(": it {it}")).unwrap_or_default();
        let (state, reason) = match (phase, has_address(pod)) {
            (Some("Failed"), false) => {
                (EnrolmentState::Failed, format!("it ended without an address{}", trouble()))
            }
            (Some("Failed" | "Succeeded"), _) => {
                (EnrolmentState::Failed, format!("it has ended{}", trouble()))
            }
            (_, true) => return None,
            (_, false) => (EnrolmentState::Pending, format!("it has no address yet{}", trouble())),
        };
        let node = pod.spec.as_ref().and_then(|spec| spec.node_name.clone());
        let pod = format!("{}/{}", pod.namespace().unwrap_or_default(), pod.name_any());
        Some(Self { pod, node, state, reason })
    }
}

impl fmt::Display for NotEnrolled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let node = self.node.as_ref().map(|node| format!(" on {node}")).unwrap_or_default();
        let state = if self.state == EnrolmentState::Failed { "failed" } else { "pending" };
        write!(f, "pod {}{node} is not in the mesh, {state}: {}", self.pod, self.reason)
    }
}

fn has_address(pod: &Pod) -> bool {
    pod.status.as_ref().and_then(|status| status.pod_ip.as_ref()).is_some_and(|ip| !ip.is_empty())
}

/// Pods that labels take into the mesh and that Kubernetes has given no address, so that no agent may know of
/// them.
pub async fn without_address(cluster: &Cluster) -> Result<Vec<NotEnrolled>> {
    let pods: Api<Pod> = Api::all(cluster.client.clone());
    let mut found = Vec::new();
    for phase in ["Pending", "Failed"] {
        let of_phase = ListParams::default().fields(&format!("status.phase={phase}"));
        found.extend(pods.list(&of_phase).await.context("can't list the pods")?.items);
    }
    found.retain(|pod| !has_address(pod) && pod.metadata.deletion_timestamp.is_none());
    if found.is_empty() {
        return Ok(Vec::new());
    }
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    let namespaces = namespaces.list_metadata(&ListParams::default()).await;
    let namespaces = namespaces.context("can't list the namespaces")?;
    let labels: BTreeMap<_, _> = namespaces.iter().map(|it| (it.name_any(), it.labels())).collect();
    found.retain(|pod| {
        labels.get(&pod.namespace().unwrap_or_default()).is_some_and(|it| is_selected(it, pod))
    });
    Ok(found.iter().filter_map(NotEnrolled::of_kubernetes).collect())
}

fn is_selected(namespace: &Labels, pod: &Pod) -> bool {
    let host = pod.spec.as_ref().and_then(|spec| spec.host_network).unwrap_or_default();
    is_enrolled(namespace, pod.labels(), host).is_selected()
}

/// The pods of a service that are no endpoints because they have no address or have ended. `service` is
/// `namespace/hostname`.
pub async fn of_service(cluster: &Cluster, service: &str) -> Result<Vec<NotEnrolled>> {
    let (namespace, host) = service.split_once('/').unwrap_or_default();
    let name = host.split('.').next().unwrap_or_default();
    let services: Api<Service> = Api::namespaced(cluster.client.clone(), namespace);
    let service = services.get_opt(name).await.context("can't read the service")?;
    let selector = service.and_then(|it| it.spec).and_then(|spec| spec.selector);
    // One that is empty chooses nothing of a service, and would choose everything in a list.
    let Some(selector) = selector.filter(|it| !it.is_empty()) else { return Ok(Vec::new()) };
    let selector = selector.into_iter().collect();
    let pods: Api<Pod> = Api::namespaced(cluster.client.clone(), namespace);
    let pods = pods.list(&ListParams::default().labels_from(&selector)).await;
    Ok(pods.context("can't list the service's pods")?.iter().filter_map(NotEnrolled::of_kubernetes).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(node: Option<&str>, status: &Value) -> Pod {
        let pod = json!({
            "metadata": {"name": "web", "namespace": "shop"},
            "spec": {"nodeName": node, "containers": []}, "status": status,
        });
        serde_json::from_value(pod).unwrap()
    }

    #[test]
    fn what_kubernetes_keeps_from_an_address_is_told_with_the_reason() {
        let unscheduled = json!({
            "phase": "Pending",
            "conditions": [{"type": "PodScheduled", "status": "False", "message": "0/2 nodes are available"}],
        });
        let told = NotEnrolled::of_kubernetes(&pod(None, &unscheduled)).unwrap();
        assert_eq!(
            told.to_string(),
            "pod shop/web is not in the mesh, pending: it has no address yet: it is not scheduled: 0/2 nodes are available"
        );
        let refused = json!({"phase": "Failed", "reason": "OutOfcpu"});
        let told = NotEnrolled::of_kubernetes(&pod(Some("node1"), &refused)).unwrap();
        assert_eq!(
            told.to_string(),
            "pod shop/web on node1 is not in the mesh, failed: it ended without an address: it is Failed: OutOfcpu"
        );
        let ended = json!({"phase": "Succeeded", "podIP": "10.0.0.1"});
        let told = NotEnrolled::of_kubernetes(&pod(Some("node1"), &ended)).unwrap();
        assert_eq!(
            (told.state, told.reason.as_str()),
            (EnrolmentState::Failed, "it has ended: it is Succeeded")
        );
    }

    #[test]
    fn a_pod_with_an_address_is_for_its_agent_to_tell_of() {
        let crashing = json!({"phase": "Running", "podIP": "10.0.0.1"});
        assert_eq!(NotEnrolled::of_kubernetes(&pod(Some("node1"), &crashing)), None);
        let status = |state, reason: Option<&str>| PodStatus {
            uid: String::new(),
            namespace: "shop".into(),
            name: "web".into(),
            state,
            reason: reason.map(ToOwned::to_owned),
            netns: None,
            link: None,
            strict_egress: None,
        };
        for state in [EnrolmentState::Enrolled, EnrolmentState::NotSelected] {
            assert_eq!(NotEnrolled::of_agent(&status(state, None), "node1"), None);
        }
        let failed = NotEnrolled::of_agent(&status(EnrolmentState::Failed, Some("ports are taken")), "node1");
        assert_eq!(
            failed.unwrap().to_string(),
            "pod shop/web on node1 is not in the mesh, failed: ports are taken"
        );
    }
}
