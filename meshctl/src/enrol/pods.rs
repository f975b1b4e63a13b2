//! What becomes of a pod when labels change.

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use mesh_api::admin::{EnrolmentState, PodStatus};
use mesh_api::resource::Labels;
use mesh_api::resource::enrolment::{Enrolment, is_enrolled};
use serde::Serialize;

/// A pod, what the labels ask for, and what its agent says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Fate {
    uid: String,
    namespace: String,
    name: String,
    node: String,
    /// Whether the labels ask for it to be in the mesh.
    selected: bool,
    /// What its agent says of it, once asked.
    state: Option<EnrolmentState>,
    /// Why it is not in the mesh.
    reason: Option<String>,
}

impl Fate {
    /// What the labels ask for; nothing for a pod that has ended.
    pub fn of(namespace: &Labels, pod: &Pod) -> Option<Self> {
        let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
        if matches!(phase, Some("Succeeded" | "Failed")) || pod.metadata.deletion_timestamp.is_some() {
            return None;
        }
        let spec = pod.spec.as_ref();
        let host = spec.and_then(|spec| spec.host_network).unwrap_or_default();
        let (selected, reason) = match is_enrolled(namespace, pod.labels(), host) {
            Enrolment::Selected => (true, None),
            Enrolment::NotSelected(reason) => (false, Some(reason.to_string())),
        };
        Some(Self {
            uid: pod.uid().unwrap_or_default(),
            namespace: pod.namespace().unwrap_or_default(),
            name: pod.name_any(),
            node: spec.and_then(|spec| spec.node_name.clone()).unwrap_or_default(),
            selected,
            state: None,
            reason,
        })
    }

    /// Whether it is this pod's.
    pub fn is_of(&self, pod: &Pod) -> bool {
        pod.metadata.uid.as_ref() == Some(&self.uid)
    }

    /// Its node; empty if it has none yet.
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Takes over what the agent says of the node's pods.
    pub fn hear(&mut self, pods: &[PodStatus]) {
        let said = pods.iter().find(|pod| pod.uid == self.uid);
        self.state = said.map(|said| said.state);
        if self.selected {
            self.reason = said.and_then(|said| said.reason.clone());
        }
    }

    /// Whether it is as the labels ask, or can't be. A pod without a node has nothing to wait for.
    pub fn is_settled(&self) -> bool {
        match self.state {
            _ if self.node.is_empty() => true,
            Some(EnrolmentState::Enrolled) => self.selected,
            Some(EnrolmentState::Failed) => true,
            Some(EnrolmentState::Pending) => false,
            // An agent need not know of a pod that is not for it.
            Some(EnrolmentState::NotSelected) | None => !self.selected,
        }
    }

    /// Whether it is asked for and not possible.
    pub fn has_failed(&self) -> bool {
        self.selected && self.state == Some(EnrolmentState::Failed)
    }

    /// Its row.
    pub fn cells(&self) -> [String; 5] {
        let meshed = match (self.selected, self.state) {
            (true, Some(EnrolmentState::Enrolled)) => "yes",
            (true, Some(EnrolmentState::Failed)) => "failed",
            (false, _) => "no",
            (true, _) if self.node.is_empty() => "once it runs",
            (true, None) => "will be",
            (true, Some(_)) => "pending",
        };
        let reason = self.reason.clone().unwrap_or_default();
        [self.namespace.clone(), self.name.clone(), self.node.clone(), meshed.to_owned(), reason]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::resource::enrolment::LABEL;
    use serde_json::json;

    fn pod(host_network: bool, phase: &str) -> Pod {
        let text = json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"nodeName": "node1", "hostNetwork": host_network, "containers": []},
            "status": {"phase": phase},
        });
        serde_json::from_value(text).unwrap()
    }

    fn enabled() -> Labels {
        [(LABEL.to_owned(), "enabled".to_owned())].into()
    }

    fn said(state: EnrolmentState) -> Vec<PodStatus> {
        let text = |text: &str| text.to_owned();
        vec![PodStatus {
            uid: text("u"),
            namespace: text("n"),
            name: text("p"),
            state,
            reason: None,
            netns: None,
            link: None,
            strict_egress: None,
        }]
    }

    #[test]
    fn a_pod_on_the_hosts_network_is_told_of_and_not_waited_for() {
        let fate = Fate::of(&enabled(), &pod(true, "Running")).unwrap();
        assert!(fate.is_settled() && !fate.has_failed());
        assert_eq!(fate.cells()[3..], ["no", "the pod uses the network of its node"]);
    }

    #[test]
    fn one_that_has_ended_has_no_fate() {
        assert_eq!(Fate::of(&enabled(), &pod(false, "Succeeded")), None);
    }

    #[test]
    fn it_is_settled_when_the_agent_says_what_the_labels_ask() {
        let mut fate = Fate::of(&enabled(), &pod(false, "Running")).unwrap();
        assert!(!fate.is_settled());
        for (state, settled) in [
            (EnrolmentState::NotSelected, false),
            (EnrolmentState::Pending, false),
            (EnrolmentState::Enrolled, true),
        ] {
            fate.hear(&said(state));
            assert_eq!(fate.is_settled(), settled, "{state:?}");
        }
        fate.hear(&said(EnrolmentState::Failed));
        assert!(fate.is_settled() && fate.has_failed());
        let mut out = Fate::of(&Labels::new(), &pod(false, "Running")).unwrap();
        out.hear(&said(EnrolmentState::Enrolled));
        assert!(!out.is_settled());
    }
}
