//! The lists: what every agent knows of the mesh, said once, and what each has for itself, with its node.

use std::collections::BTreeMap;

use anyhow::Result;
use mesh_api::admin::{
    CertificateStatus, ConnectionStatus, PolicyStatus, ResourceReport, ServiceStatus, WorkloadStatus,
};
use serde::Serialize;

use crate::output::{Format, Table, age, until};
use crate::policies::{self, Policy};
use crate::source::Answers;

/// Every workload once.
pub fn workloads(answers: Answers<Vec<WorkloadStatus>>, format: Format) -> Result<()> {
    let all = once(answers, |it| (it.namespace.clone(), it.name.clone(), it.uid.clone()), |_, _| {});
    format.print(&all, |all| {
        let mut table =
            Table::new(&["NAMESPACE", "NAME", "NODE", "READY", "TUNNEL", "IDENTITY", "ADDRESSES"]);
        for it in all {
            let ready = if it.healthy { "yes" } else { "no" };
            table.row([
                it.namespace.clone(),
                it.name.clone(),
                it.node.clone(),
                ready.into(),
                it.tunnel.clone(),
                it.identity.clone(),
                it.addresses.join(","),
            ]);
        }
        table.render()
    })
}

/// Every service once.
pub fn services(answers: Answers<Vec<ServiceStatus>>, format: Format) -> Result<()> {
    let all = once(answers, |it| (it.namespace.clone(), it.hostname.clone()), |_, _| {});
    format.print(&all, |all| {
        let mut table = Table::new(&["NAMESPACE", "HOST", "READY", "PORTS", "ADDRESSES"]);
        for it in all {
            let ready = format!("{}/{}", it.ready_endpoints, it.endpoints);
            let addresses = if it.addresses.is_empty() { "headless".into() } else { it.addresses.join(",") };
            table.row([it.namespace.clone(), it.hostname.clone(), ready, it.ports.join(","), addresses]);
        }
        table.render()
    })
}

/// Every policy as it was `written`; an agent counts the workloads of its own node, so the counts are added.
pub fn policies(answers: Answers<Vec<PolicyStatus>>, written: Option<&ResourceReport>) -> Vec<Policy> {
    let key = |it: &PolicyStatus| (it.namespace.clone(), it.name.clone());
    let held = once(answers, key, |held, other| {
        held.workloads += other.workloads;
        for (namespace, count) in other.by_namespace {
            *held.by_namespace.entry(namespace).or_default() += count;
        }
    });
    policies::join(held, written)
}

/// What belongs to nodes: each item with the name of its node.
pub fn of_nodes<T: NodeItem>(answers: Answers<Vec<T>>, format: Format) -> Result<()> {
    let all: Vec<OfNode<T>> = answers
        .into_iter()
        .flat_map(|(node, items)| items.into_iter().map(move |item| OfNode { node: node.name.clone(), item }))
        .collect();
    format.print(&all, |all| {
        let mut table = Table::new(T::HEADING);
        for OfNode { node, item } in all {
            table.row(item.cells(node));
        }
        table.render()
    })
}

/// An item that one node has.
pub trait NodeItem: Serialize {
    /// Heading of the table.
    const HEADING: &[&str];
    /// Its row.
    fn cells(&self, node: &str) -> Vec<String>;
}

#[derive(Serialize)]
struct OfNode<T> {
    node: String,
    #[serde(flatten)]
    item: T,
}

impl NodeItem for CertificateStatus {
    const HEADING: &[&str] = &["NODE", "IDENTITY", "STATE", "EXPIRES IN", "SERIAL", "ERROR"];

    fn cells(&self, node: &str) -> Vec<String> {
        vec![
            node.into(),
            self.identity.clone(),
            self.state.clone(),
            self.not_after.map(until).unwrap_or_default(),
            self.serial.clone().unwrap_or_default(),
            self.error.clone().unwrap_or_default(),
        ]
    }
}

impl NodeItem for ConnectionStatus {
    const HEADING: &[&str] =
        &["NODE", "DIRECTION", "FROM", "TO", "SERVICE", "UPSTREAM", "TRANSPORT", "POLICY", "AGE"];

    fn cells(&self, node: &str) -> Vec<String> {
        vec![
            node.into(),
            self.direction.clone(),
            named(self.source_workload.as_ref(), &self.source),
            named(self.destination_workload.as_ref(), &self.destination),
            self.destination_service.clone().unwrap_or_default(),
            self.upstream.clone(),
            self.transport.clone(),
            self.policy.clone().unwrap_or_default(),
            age(self.age_seconds),
        ]
    }
}

fn named(workload: Option<&String>, address: &str) -> String {
    workload.map_or_else(|| address.to_owned(), |workload| format!("{workload} ({address})"))
}

/// Items that several agents know, each once, in the order of their keys.
fn once<T, K: Ord>(answers: Answers<Vec<T>>, key: impl Fn(&T) -> K, merge: impl Fn(&mut T, T)) -> Vec<T> {
    let mut all = BTreeMap::new();
    for item in answers.into_iter().flat_map(|(_, items)| items) {
        match all.entry(key(&item)) {
            std::collections::btree_map::Entry::Vacant(place) => {
                place.insert(item);
            }
            std::collections::btree_map::Entry::Occupied(mut held) => merge(held.get_mut(), item),
        }
    }
    all.into_values().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ask::Endpoint;
    use crate::source::Node;

    #[test]
    fn what_two_agents_know_is_listed_once_and_merged() {
        let node = |name: &str| Node { name: name.into(), endpoint: Endpoint::Unix(name.into()) };
        let answers = vec![(node("a"), vec![("y", 1), ("x", 2)]), (node("b"), vec![("x", 40)])];
        let all = once(answers, |it| it.0, |held, other| held.1 += other.1);
        assert_eq!(all, [("x", 42), ("y", 1)]);
    }
}
