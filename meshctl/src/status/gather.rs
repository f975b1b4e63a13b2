//! Asks everyone, several at a time; who does not answer becomes a line of the answer.

use anyhow::Result;
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use kube::ResourceExt;
use mesh_api::admin::{AgentStatus, CertificateStatus, ConnectedAgent, ControlStatus, PodStatus};

use super::{NodeState, PodCounts, Replica, Status};
use crate::ask::Endpoint;
use crate::cluster::{Cluster, MeshPod, OtherControl};
use crate::reason::reason;
use crate::source::{Agent, Mesh, each};
use crate::standing::{self, NotEnrolled};

/// The state of a mesh.
pub async fn gather(mesh: &Mesh) -> Result<Status> {
    match mesh {
        Mesh::Local { agents, control, .. } => {
            let mut status = Status { nodes: each(agents.clone(), node).await, ..Status::default() };
            if let Some(endpoint) = control {
                let name = endpoint.to_string();
                status.control.push(replica(name, None, Ok(endpoint.clone())).await);
            }
            Ok(joined(status))
        }
        Mesh::Cluster(cluster) => of_cluster(cluster).await,
    }
}

async fn of_cluster(cluster: &Cluster) -> Result<Status> {
    let agents = cluster.agents().await?;
    let agents = agents.into_iter().map(|pod| Agent { node: Some(pod.node), endpoint: pod.endpoint });
    let mut status = Status { nodes: each(agents.collect(), node).await, ..Status::default() };
    status.control = each(cluster.control().await?, replica_of).await;
    if let Err(error) = mark_leader(cluster, &mut status.control).await {
        status.problems.push(reason(&error));
    }
    let set = cluster.daemon_set().await?;
    status.other_control = set.as_ref().and_then(OtherControl::of);
    let deployment = cluster.deployment().await?;
    status.problems = missing(&cluster.namespace, deployment.as_ref(), set.as_ref(), &status);
    add_bare_nodes(cluster, &mut status).await;
    let mut status = joined(status);
    match standing::without_address(cluster).await {
        Ok(pods) => add_without_address(&mut status.not_enrolled, pods),
        Err(error) => {
            remark!("warning: which pods have no address is not known: {}", reason(&error));
        }
    }
    Ok(status)
}

async fn replica_of(pod: MeshPod) -> Replica {
    let mut replica = replica(pod.name, Some(pod.node), pod.endpoint).await;
    replica.ready = pod.ready;
    replica
}

async fn replica(name: String, node: Option<String>, endpoint: Result<Endpoint, String>) -> Replica {
    let asked: Result<ControlStatus> = async {
        let endpoint = endpoint.map_err(anyhow::Error::msg)?;
        endpoint.open().await?.json("/status").await
    }
    .await;
    let (status, error) = split(asked);
    Replica { name, node, ready: status.is_some(), leader: None, status, error }
}

async fn node(agent: Agent) -> NodeState {
    let mut state =
        NodeState { expected: true, node: agent.node.unwrap_or_default(), ..NodeState::default() };
    let asked = async {
        let endpoint = agent.endpoint.map_err(anyhow::Error::msg)?;
        if state.node.is_empty() {
            state.node = endpoint.to_string();
        }
        ask_agent(&endpoint, &mut state).await
    }
    .await;
    state.error = asked.err().map(|error| reason(&error));
    state
}

async fn ask_agent(endpoint: &Endpoint, state: &mut NodeState) -> Result<()> {
    let mut session = endpoint.open().await?;
    let status: AgentStatus = session.json("/status").await?;
    state.node.clone_from(&status.node);
    state.status = Some(status);
    let pods = session.json::<Vec<PodStatus>>("/pods").await?;
    state.pods = Some(PodCounts::of(&pods));
    state.not_enrolled = pods.iter().filter_map(|pod| NotEnrolled::of_agent(pod, &state.node)).collect();
    let certificates: Vec<CertificateStatus> = session.json("/certs").await?;
    state.first_expiry = certificates.iter().filter_map(|certificate| certificate.not_after).min();
    Ok(())
}

/// The holder's name is that of its pod, with or without something that makes it unique behind it.
async fn mark_leader(cluster: &Cluster, replicas: &mut [Replica]) -> Result<()> {
    let leader = cluster.leader().await?;
    for replica in replicas {
        replica.leader = Some(leader.as_ref().is_some_and(|leader| holds(leader, &replica.name)));
    }
    Ok(())
}

fn holds(leader: &str, pod: &str) -> bool {
    leader.strip_prefix(pod).is_some_and(|rest| rest.is_empty() || rest.starts_with(['_', '/']))
}

/// What the control plane's and the agents' owners want and have not got, after what was found out otherwise.
/// Agents that use another control plane need none of the mesh's own.
fn missing(
    namespace: &str,
    deployment: Option<&Deployment>,
    set: Option<&DaemonSet>,
    status: &Status,
) -> Vec<String> {
    let mut problems = status.problems.clone();
    match deployment {
        None if status.other_control.is_some() => {}
        None => problems
            .push(format!("no control plane in the namespace {namespace}: `meshctl install` installs it")),
        Some(deployment) => {
            let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
            let found = status.control.len();
            if usize::try_from(wanted).is_ok_and(|wanted| found < wanted) {
                problems.push(format!("{}: {found} of {wanted} replicas have a pod", deployment.name_any()));
            }
        }
    }
    match set.and_then(|set| set.status.as_ref()) {
        None => problems.push(format!("no agents in the namespace {namespace}")),
        Some(set) => {
            let (wanted, found) = (set.desired_number_scheduled, status.nodes.len());
            if usize::try_from(wanted).is_ok_and(|wanted| found < wanted) {
                problems
                    .push(format!("{found} of {wanted} nodes that should have an agent have a pod of it"));
            }
        }
    }
    problems
}

/// Nodes that no agent runs on, where nodes may be listed.
async fn add_bare_nodes(cluster: &Cluster, status: &mut Status) {
    match cluster.nodes().await {
        Err(error) => status.problems.push(reason(&error)),
        Ok(nodes) => {
            for name in nodes.iter().map(ResourceExt::name_any) {
                if status.nodes.iter().all(|node| node.node != name) {
                    let error = Some("has no agent: no pod of it was scheduled here".to_owned());
                    status.nodes.push(NodeState { node: name, error, ..NodeState::default() });
                }
            }
            status.nodes.sort_by(|a, b| a.node.cmp(&b.node));
        }
    }
}

/// Of a pod without an address Kubernetes knows more than its agent.
fn add_without_address(all: &mut Vec<NotEnrolled>, pods: Vec<NotEnrolled>) {
    all.retain(|it| pods.iter().all(|pod| pod.pod != it.pod));
    all.extend(pods);
    all.sort_by(|a, b| a.pod.cmp(&b.pod));
}

/// Adds to each node what the replica that serves it says of it.
fn joined(mut status: Status) -> Status {
    let pods = status.nodes.iter_mut().flat_map(|node| std::mem::take(&mut node.not_enrolled));
    status.not_enrolled = pods.collect();
    let links: Vec<ConnectedAgent> = status
        .control
        .iter()
        .filter_map(|replica| replica.status.as_ref())
        .flat_map(|replica| replica.agents.iter().cloned())
        .collect();
    for node in &mut status.nodes {
        // Of a node's old stream, which may not have ended yet, and its new one, the new one counts.
        let of_node = links.iter().filter(|link| link.node == node.node);
        if let Some(link) = of_node.min_by_key(|link| link.connected_seconds) {
            node.lag = Some(link.unacknowledged);
            node.last_nack.clone_from(&link.last_nack);
        }
    }
    status
}

fn split<T>(asked: Result<T>) -> (Option<T>, Option<String>) {
    match asked {
        Ok(answer) => (Some(answer), None),
        Err(error) => (None, Some(reason(&error))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mesh_api::admin::EnrolmentState;

    fn link(node: &str, connected_seconds: u64, unacknowledged: usize) -> ConnectedAgent {
        ConnectedAgent {
            node: node.to_owned(),
            address: String::new(),
            connected_seconds,
            unacknowledged,
            last_nack: None,
        }
    }

    fn replica(agents: Vec<ConnectedAgent>) -> Replica {
        let status = ControlStatus {
            version: String::new(),
            source: String::new(),
            objects: 0,
            errors: 0,
            roots: Vec::new(),
            agents,
        };
        Replica {
            name: String::new(),
            node: None,
            ready: true,
            leader: None,
            status: Some(status),
            error: None,
        }
    }

    #[test]
    fn a_node_is_as_far_behind_as_its_newest_stream_says() {
        let node = |name: &str| NodeState { node: name.to_owned(), ..NodeState::default() };
        let control = vec![replica(vec![link("a", 90, 5)]), replica(vec![link("a", 2, 1), link("b", 9, 0)])];
        let nodes = vec![node("a"), node("b"), node("c")];
        let status = joined(Status { control, nodes, ..Status::default() });
        let lags: Vec<_> = status.nodes.iter().map(|node| node.lag).collect();
        assert_eq!(lags, [Some(1), Some(0), None]);
    }

    #[test]
    fn no_control_plane_of_its_own_is_missed_where_agents_use_another() {
        let status = serde_json::json!({
            "desiredNumberScheduled": 0, "currentNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0,
        });
        let set = serde_json::json!({"spec": {"selector": {}, "template": {}}, "status": status});
        let set: DaemonSet = serde_json::from_value(set).unwrap();
        let alone = missing("mesh", None, Some(&set), &Status::default());
        assert!(alone.len() == 1 && alone[0].contains("no control plane in the namespace mesh"), "{alone:?}");
        let address = "https://istiod.istio-system.svc:15012".to_owned();
        let other = OtherControl { address, name: None, root_config_map: None };
        let under_istiod = Status { other_control: Some(other), ..Status::default() };
        assert_eq!(missing("mesh", None, Some(&set), &under_istiod), [""; 0]);
        let agents = missing("mesh", None, None, &under_istiod);
        assert_eq!(agents, ["no agents in the namespace mesh"], "that counts all the same");
    }

    #[test]
    fn of_a_pod_without_an_address_kubernetes_reason_counts() {
        let pod = |name: &str, reason: &str| NotEnrolled {
            pod: name.to_owned(),
            node: None,
            state: EnrolmentState::Pending,
            reason: reason.to_owned(),
        };
        let mut all = vec![pod("shop/b", "agent's"), pod("shop/c", "agent's")];
        add_without_address(&mut all, vec![pod("shop/b", "no image"), pod("shop/a", "no node")]);
        assert_eq!(all, [pod("shop/a", "no node"), pod("shop/b", "no image"), pod("shop/c", "agent's")]);
    }

    #[test]
    fn the_leader_is_found_by_the_name_of_its_pod() {
        assert!(holds("mesh-control-1", "mesh-control-1"));
        assert!(holds("mesh-control-1_6f1c", "mesh-control-1"));
        assert!(!holds("mesh-control-10", "mesh-control-1"));
    }
}
