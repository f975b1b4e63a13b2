//! The startup taint: a node that joins with it takes no pods before its agent is ready, and so none that
//! would start outside of the mesh. Whoever makes nodes puts it there; the replica that leads takes it off.
//!
//! An agent is ready where its CNI plugin is in place, which is what its pod begins with.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures_util::{Stream, StreamExt as _, pin_mut};
use k8s_openapi::api::core::v1::{Node, Pod, Taint};
use kube::api::{Api, Patch, PatchParams};
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Client, ResourceExt as _};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use super::{Cluster, pauses};

/// The taint's key; its effect may be any.
const KEY: &str = "nodemesh.io/agent-not-ready";

/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(5);

/// Takes the taint off nodes while this replica leads. Agents are the pods of `account` in the own namespace.
/// All replicas watch, so that a new leader has nothing to list.
pub async fn remove(cluster: Cluster, account: String, mut leads: watch::Receiver<bool>) {
    let (nodes, agents) = (Api::<Node>::all(cluster.client.clone()), agents(&cluster));
    let account = format!("spec.serviceAccountName={account}");
    let nodes = watcher(nodes, watcher::Config::default()).backoff(pauses());
    let agents = watcher(agents, watcher::Config::default().fields(&account)).backoff(pauses());
    follow(&cluster.client, nodes, agents, &mut leads).await;
}

fn agents(cluster: &Cluster) -> Api<Pod> {
    Api::namespaced(cluster.client.clone(), &cluster.namespace)
}

/// Until nobody can say any more who leads.
async fn follow(
    client: &Client,
    nodes: impl Stream<Item = Result<Event<Node>, watcher::Error>>,
    agents: impl Stream<Item = Result<Event<Pod>, watcher::Error>>,
    leads: &mut watch::Receiver<bool>,
) {
    pin_mut!(nodes, agents);
    let mut view = View::default();
    let mut failed = false;
    loop {
        tokio::select! {
            Some(event) = nodes.next() => view.note_node(event),
            Some(event) = agents.next() => view.note_agent(event),
            () = tokio::time::sleep(RETRY), if failed => {}
            changed = leads.changed() => if changed.is_err() { return },
        }
        failed = false;
        if !*leads.borrow() {
            continue;
        }
        for node in view.due() {
            match take_off(client, &view.tainted[&node], &node).await {
                Ok(()) => {
                    info!(node, taint = KEY, "agent ready: startup taint removed");
                    view.tainted.remove(&node);
                }
                Err(error) => {
                    warn!(node, %error, "startup taint not removed; trying again");
                    failed = true;
                }
            }
        }
    }
}

/// What there is to know of a node: its version, and the taints that it keeps.
#[derive(Clone, Debug, PartialEq)]
struct Tainted {
    version: String,
    others: Vec<Taint>,
}

#[derive(Default)]
struct View {
    /// Nodes that have the taint.
    tainted: BTreeMap<String, Tainted>,
    /// By the agent's name: the node, where that is ready.
    ready: BTreeMap<String, String>,
}

impl View {
    fn note_node(&mut self, event: Result<Event<Node>, watcher::Error>) {
        match event {
            Ok(Event::Init) => self.tainted.clear(),
            Ok(Event::InitApply(node) | Event::Apply(node)) => {
                self.tainted.remove(&node.name_any());
                self.tainted.extend(tainted(&node).map(|it| (node.name_any(), it)));
            }
            Ok(Event::Delete(node)) => drop(self.tainted.remove(&node.name_any())),
            Ok(Event::InitDone) => {}
            Err(error) => warn!(%error, "nodes not watched; trying again"),
        }
    }

    fn note_agent(&mut self, event: Result<Event<Pod>, watcher::Error>) {
        match event {
            // One that is listed again says what it is.
            Ok(Event::Init) => self.ready.clear(),
            Ok(Event::InitApply(pod) | Event::Apply(pod)) => {
                self.ready.remove(&pod.name_any());
                self.ready.extend(ready_on(&pod).map(|node| (pod.name_any(), node.to_owned())));
            }
            Ok(Event::Delete(pod)) => drop(self.ready.remove(&pod.name_any())),
            Ok(Event::InitDone) => {}
            Err(error) => warn!(%error, "agents not watched; trying again"),
        }
    }

    fn due(&self) -> Vec<String> {
        let ready: BTreeSet<_> = self.ready.values().collect();
        self.tainted.keys().filter(|node| ready.contains(node)).cloned().collect()
    }
}

/// What a node is beside its taint, if it has that.
fn tainted(node: &Node) -> Option<Tainted> {
    let taints = node.spec.as_ref()?.taints.as_ref()?;
    let others: Vec<_> = taints.iter().filter(|taint| taint.key != KEY).cloned().collect();
    let version = node.resource_version()?;
    (others.len() < taints.len()).then_some(Tainted { version, others })
}

/// The node of an agent that is ready and stays.
fn ready_on(agent: &Pod) -> Option<&str> {
    let conditions = agent.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().any(|it| it.type_ == "Ready" && it.status == "True");
    let stays = agent.metadata.deletion_timestamp.is_none();
    agent.spec.as_ref()?.node_name.as_deref().filter(|_| ready && stays)
}

/// Refused if somebody else wrote the node meanwhile: then the watch brings what it is now.
async fn take_off(client: &Client, tainted: &Tainted, node: &str) -> Result<(), kube::Error> {
    let nodes = Api::<Node>::all(client.clone());
    match nodes.patch(node, &PatchParams::default(), &Patch::Merge(&patch(tainted))).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        result => result.map(drop),
    }
}

fn patch(tainted: &Tainted) -> Value {
    json!({"metadata": {"resourceVersion": tainted.version}, "spec": {"taints": tainted.others}})
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(taints: &Value) -> Node {
        let node = json!({"metadata": {"name": "node1", "resourceVersion": "7"}, "spec": {"taints": taints}});
        serde_json::from_value(node).unwrap()
    }

    fn agent(name: &str, ready: &str, deleted: Option<&str>) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "deletionTimestamp": deleted},
            "spec": {"nodeName": "node1", "containers": []},
            "status": {"conditions": [
                {"type": "Initialized", "status": "True"},
                {"type": "Ready", "status": ready},
            ]},
        }))
        .unwrap()
    }

    #[test]
    fn a_node_is_due_when_it_has_the_taint_and_its_agent_is_ready() {
        let mut view = View::default();
        let other = json!({"key": "dedicated", "value": "db", "effect": "NoSchedule"});
        let ours = json!({"key": KEY, "effect": "NoExecute"});
        view.note_node(Ok(Event::Apply(node(&json!([other, ours])))));
        assert!(view.due().is_empty(), "there is no agent");
        view.note_agent(Ok(Event::Apply(agent("a", "False", None))));
        assert!(view.due().is_empty(), "it is not ready");
        view.note_agent(Ok(Event::Apply(agent("a", "True", Some("2026-01-01T00:00:00Z")))));
        assert!(view.due().is_empty(), "it goes");
        view.note_agent(Ok(Event::Apply(agent("b", "True", None))));
        assert_eq!(view.due(), ["node1"]);
        let patch = patch(&view.tainted["node1"]);
        assert_eq!(patch["spec"]["taints"], json!([other]), "other taints stay");
        assert_eq!(patch["metadata"]["resourceVersion"], "7");
        view.note_node(Ok(Event::Apply(node(&json!([other])))));
        assert!(view.due().is_empty(), "it has none any more");
        view.note_node(Ok(Event::Apply(node(&json!([ours])))));
        view.note_agent(Ok(Event::Delete(agent("b", "True", None))));
        assert!(view.due().is_empty(), "the agent is gone");
    }
}
