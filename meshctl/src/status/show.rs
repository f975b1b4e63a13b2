//! The state as people read it.

use mesh_api::admin::{ControlStatus, ControlStreamStatus};

use super::{NodeState, PodCounts, Replica, Status};
use crate::output::{Table, age, until};
use crate::standing::NotEnrolled;

/// Pods that are named; the rest are counted.
const MOST: usize = 20;

/// The text.
pub fn text(status: &Status) -> String {
    let mut parts = Vec::new();
    if !status.not_enrolled.is_empty() {
        parts.push(not_enrolled(&status.not_enrolled));
    }
    if !status.control.is_empty() {
        parts.push(replicas(&status.control));
    }
    if let Some(other) = &status.other_control {
        parts.push(format!("control plane: {other}\n"));
    }
    parts.push(nodes(&status.nodes));
    let remarks = remarks(status);
    if !remarks.is_empty() {
        parts.push(remarks);
    }
    parts.join("\n")
}

/// A line for each of the first, and how many more there are: a roll-out has many for a moment.
fn not_enrolled(all: &[NotEnrolled]) -> String {
    let mut lines: Vec<_> = all.iter().take(MOST).map(ToString::to_string).collect();
    if all.len() > MOST {
        lines.push(format!("{} more; -o json has them all", all.len() - MOST));
    }
    lines.join("\n") + "\n"
}

fn replicas(all: &[Replica]) -> String {
    let mut table = Table::new(&[
        "CONTROL PLANE",
        "NODE",
        "READY",
        "LEADER",
        "VERSION",
        "SOURCE",
        "OBJECTS",
        "ERRORS",
        "ROOTS",
        "AGENTS",
    ]);
    for replica in all {
        let said = |of: fn(&ControlStatus) -> String| replica.status.as_ref().map(of).unwrap_or_default();
        table.row([
            replica.name.clone(),
            replica.node.clone().unwrap_or_default(),
            yes(replica.ready),
            replica.leader.map(yes).unwrap_or_default(),
            said(|it| it.version.clone()),
            said(|it| it.source.clone()),
            said(|it| it.objects.to_string()),
            said(|it| it.errors.to_string()),
            said(|it| it.roots.len().to_string()),
            said(|it| it.agents.len().to_string()),
        ]);
    }
    table.render()
}

fn nodes(all: &[NodeState]) -> String {
    let mut table = Table::new(&[
        "NODE",
        "READY",
        "VERSION",
        "ENROLLED",
        "PENDING",
        "FAILED",
        "CONTROL PLANE",
        "LAG",
        "CERTIFICATES",
        "CONNECTIONS",
        "UP",
    ]);
    for node in all {
        let agent = node.status.as_ref();
        let count =
            |of: fn(PodCounts) -> usize| node.pods.map(|pods| of(pods).to_string()).unwrap_or_default();
        table.row([
            node.node.clone(),
            yes(agent.is_some_and(|agent| agent.ready)),
            agent.map(|agent| agent.version.clone()).unwrap_or_default(),
            count(|pods| pods.enrolled),
            count(|pods| pods.pending),
            count(|pods| pods.failed),
            agent.map(|agent| link(&agent.control)).unwrap_or_default(),
            node.lag.map(|lag| lag.to_string()).unwrap_or_default(),
            node.first_expiry.map(until).unwrap_or_default(),
            agent.map(|agent| agent.open_connections.to_string()).unwrap_or_default(),
            agent.map(|agent| age(agent.uptime_seconds)).unwrap_or_default(),
        ]);
    }
    table.render()
}

/// What does not fit into a cell.
fn remarks(status: &Status) -> String {
    let replicas =
        status.control.iter().filter_map(|it| Some(format!("{}: {}", it.name, it.error.as_ref()?)));
    let nodes = status.nodes.iter().filter_map(|it| Some(format!("{}: {}", it.node, it.error.as_ref()?)));
    let links = status.nodes.iter().filter_map(|it| {
        Some(format!("{}: control plane: {}", it.node, it.status.as_ref()?.control.error.as_ref()?))
    });
    let rejected = status
        .nodes
        .iter()
        .filter_map(|it| Some(format!("{}: rejected: {}", it.node, it.last_nack.as_ref()?)));
    let all = replicas.chain(nodes).chain(links).chain(rejected).chain(status.problems.iter().cloned());
    all.map(|line| line + "\n").collect()
}

fn link(of: &ControlStreamStatus) -> String {
    let since = age(of.since_seconds);
    match (&of.error, of.connected) {
        (_, true) => format!("connected for {since}"),
        (Some(_), false) => format!("lost for {since}"),
        (None, false) => format!("not connected for {since}"),
    }
}

fn yes(is: bool) -> String {
    if is { "yes" } else { "no" }.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cluster::OtherControl;
    use mesh_api::admin::EnrolmentState;

    #[test]
    fn pods_that_are_not_in_the_mesh_come_first_and_many_are_counted() {
        let pod = |number: usize| NotEnrolled {
            pod: format!("shop/web-{number}"),
            node: Some("node1".to_owned()),
            state: EnrolmentState::Failed,
            reason: "ports are taken".to_owned(),
        };
        let status = Status { not_enrolled: (0..MOST + 5).map(pod).collect(), ..Status::default() };
        let shown = text(&status);
        let lines: Vec<_> = shown.lines().collect();
        assert_eq!(lines[0], "pod shop/web-0 on node1 is not in the mesh, failed: ports are taken");
        assert_eq!(lines[MOST], "5 more; -o json has them all");
    }

    #[test]
    fn a_control_plane_that_is_another_one_is_a_line() {
        let other = OtherControl {
            address: "https://istiod.istio-system.svc:15012".to_owned(),
            name: None,
            root_config_map: None,
        };
        let shown = text(&Status { other_control: Some(other), ..Status::default() });
        let line = "control plane: agents use another one, https://istiod.istio-system.svc:15012";
        assert_eq!(shown.lines().next(), Some(line), "{shown}");
    }

    #[test]
    fn a_node_that_does_not_answer_keeps_its_row_and_says_why_below() {
        let node = NodeState {
            node: "node1".to_owned(),
            expected: true,
            error: Some("can't ask: refused".to_owned()),
            ..NodeState::default()
        };
        let shown = text(&Status { nodes: vec![node], ..Status::default() });
        let lines: Vec<_> = shown.lines().collect();
        assert!(lines[1].starts_with("node1  no"), "{shown}");
        assert_eq!(lines[3], "node1: can't ask: refused", "{shown}");
    }
}
