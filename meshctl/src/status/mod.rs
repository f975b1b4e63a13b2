//! `meshctl status`: the control plane's replicas and every node's agent.

mod gather;
mod show;

use std::process::ExitCode;

use anyhow::Result;
use mesh_api::admin::{AgentStatus, ControlStatus, EnrolmentState, PodStatus};
use serde::Serialize;

use crate::cluster::OtherControl;
use crate::output::Format;
use crate::source::Source;
use crate::standing::NotEnrolled;

pub use gather::gather;

/// The state of a mesh.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// The control plane's replicas.
    pub control: Vec<Replica>,
    /// The control plane that the agents use, where it is not this mesh's own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub other_control: Option<OtherControl>,
    /// One for each node: those with an agent, and in a cluster those without.
    pub nodes: Vec<NodeState>,
    /// Pods that are to be in the mesh and are not.
    pub not_enrolled: Vec<NotEnrolled>,
    /// What is missing or could not be found out, besides what the replicas and nodes say of themselves.
    pub problems: Vec<String>,
}

/// A replica of the control plane.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Replica {
    /// Name of its pod, or its endpoint.
    pub name: String,
    /// Node that it runs on, in a cluster.
    pub node: Option<String>,
    /// Whether Kubernetes calls it ready; elsewhere, whether it answers.
    pub ready: bool,
    /// Whether it holds the lease, in a cluster.
    pub leader: Option<bool>,
    /// What it said.
    pub status: Option<ControlStatus>,
    /// Why it said nothing.
    pub error: Option<String>,
}

/// A node and its agent.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeState {
    /// Name of the node.
    pub node: String,
    /// What its agent said.
    pub status: Option<AgentStatus>,
    /// How far the node's pods are.
    pub pods: Option<PodCounts>,
    /// Those that are to be in the mesh and are not.
    #[serde(skip)]
    pub not_enrolled: Vec<NotEnrolled>,
    /// When the first of its certificates ends, in seconds since 1970.
    pub first_expiry: Option<i64>,
    /// Resources that the control plane has sent and the agent has not acknowledged.
    pub lag: Option<usize>,
    /// The last rejection that the agent sent to the control plane.
    pub last_nack: Option<String>,
    /// Whether there should be an agent: it has a pod, or it was named.
    pub expected: bool,
    /// Why the agent said nothing.
    pub error: Option<String>,
}

/// How many pods of a node are in which state.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct PodCounts {
    /// In the mesh.
    pub enrolled: usize,
    /// Selected, on their way.
    pub pending: usize,
    /// Selected and not to be taken in.
    pub failed: usize,
}

impl PodCounts {
    fn of(pods: &[PodStatus]) -> Self {
        let count = |state| pods.iter().filter(|pod| pod.state == state).count();
        Self {
            enrolled: count(EnrolmentState::Enrolled),
            pending: count(EnrolmentState::Pending),
            failed: count(EnrolmentState::Failed),
        }
    }
}

impl Status {
    /// Whether everything that should be there is, and is ready.
    pub fn is_well(&self) -> bool {
        let replicas = self.control.iter().all(|replica| replica.ready && replica.error.is_none());
        replicas && self.problems.is_empty() && self.nodes.iter().all(NodeState::is_well)
    }
}

impl Status {
    fn exit_code(&self) -> u8 {
        match (self.is_well(), self.not_enrolled.is_empty()) {
            (false, _) => 1,
            (true, false) => 3,
            (true, true) => 0,
        }
    }
}

impl NodeState {
    /// Whether its agent serves, or there need not be one.
    pub fn is_well(&self) -> bool {
        match &self.status {
            Some(agent) => agent.ready && agent.control.connected,
            None => !self.expected,
        }
    }
}

/// Shows the state of everything. The exit status is 1 if something of the mesh is not there or not ready, 3
/// if a pod that is to be in the mesh is not.
pub async fn run(source: &Source, format: Format) -> Result<ExitCode> {
    let status = gather(&source.mesh().await?).await?;
    format.print(&status, show::text)?;
    Ok(ExitCode::from(status.exit_code()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_without_an_agent_is_well_only_where_none_belongs() {
        let mut node = NodeState { node: "node1".to_owned(), ..NodeState::default() };
        assert!(node.is_well());
        node.expected = true;
        assert!(!node.is_well());
        let status = Status { nodes: vec![node], ..Status::default() };
        assert!(!status.is_well());
    }

    #[test]
    fn a_pod_that_should_be_in_the_mesh_and_is_not_has_an_exit_status_of_its_own() {
        assert_eq!(Status::default().exit_code(), 0);
        let pod = NotEnrolled {
            pod: "shop/web".to_owned(),
            node: None,
            state: EnrolmentState::Pending,
            reason: String::new(),
        };
        let status = Status { not_enrolled: vec![pod], ..Status::default() };
        assert_eq!(status.exit_code(), 3);
        assert_eq!(Status { problems: vec![String::new()], ..status }.exit_code(), 1);
    }

    #[test]
    fn pods_that_nobody_selected_are_not_counted() {
        let pod = |state| PodStatus {
            uid: String::new(),
            namespace: String::new(),
            name: String::new(),
            state,
            reason: None,
            netns: None,
            link: None,
            strict_egress: None,
        };
        let pods = [EnrolmentState::Enrolled, EnrolmentState::NotSelected, EnrolmentState::Failed].map(pod);
        assert_eq!(PodCounts::of(&pods), PodCounts { enrolled: 1, pending: 0, failed: 1 });
    }
}
