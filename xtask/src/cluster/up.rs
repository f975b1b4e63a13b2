//! `cluster up`: the parts in the order in which they need each other.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use clap::Args;
use serde_json::Value;

use super::cgroup::Hierarchies;
use super::kubectl::Kubectl;
use super::layout::Node;
use super::state::State;
use super::tools::Tools;
use super::wait::until;
use super::{access, control_plane, dns, down, load, machine, mesh, network, node};
use crate::setup;
use crate::workspace::Workspace;

const TO_REGISTER: Duration = Duration::from_mins(1);
const TO_BE_READY: Duration = Duration::from_mins(2);

/// How large it is and what is in it.
#[derive(Args)]
pub struct Options {
    /// How many nodes
    #[arg(long, value_name = "N", default_value_t = 2)]
    pub nodes: u8,
    /// Install the mesh: its images from this checkout, and its chart
    #[arg(long)]
    pub mesh: bool,
}

/// Removes the cluster that is there, makes a new one and waits until it works.
pub fn run(workspace: &Workspace, state: &State, options: &Options) -> Result<()> {
    let nodes = Node::first(options.nodes)?;
    setup::cluster()?;
    let tools = Tools::ensure(workspace)?;
    // Before anything of an older cluster is taken away.
    let images = options.mesh.then(|| mesh::images(workspace)).transpose()?;
    let start = Instant::now();
    down::run(state)?;
    let result = start_cluster(workspace, state, &tools, &nodes);
    result.context(format!("the cluster is not up; its logs are in {}", state.path("log").display()))?;
    let names: Vec<_> = nodes.iter().map(Node::to_string).collect();
    say!("ready: {}, after {:.1} s", names.join(", "), start.elapsed().as_secs_f64());
    say!("kubeconfig: {}", state.path(access::KUBECONFIG).display());
    if let Some(images) = images {
        mesh::install(workspace, state, &tools, &images)?;
    }
    Ok(())
}

fn start_cluster(workspace: &Workspace, state: &State, tools: &Tools, nodes: &[Node]) -> Result<()> {
    let cgroups = Hierarchies::of_this_machine()?;
    let kubectl = control_plane::administrator(state, tools);
    state.create()?;
    machine::prepare(state)?;
    access::create(state, nodes)?;
    network::create_bridge()?;
    for &node in nodes {
        network::create_node(node)?;
        cgroups.create(node)?;
    }
    // The API server takes seconds to start: time enough for the nodes to get their images.
    thread::scope(|scope| {
        let runtimes = scope.spawn(|| start_runtimes(state, &cgroups, tools, nodes));
        control_plane::start(state, &cgroups, tools, &kubectl)?;
        runtimes.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })?;
    for &node in nodes {
        node::start_kubelet(state, &cgroups, tools, node)?;
    }
    dns::install(workspace, &kubectl)?;
    for &node in nodes {
        let cidrs = until(&format!("{node} to register"), TO_REGISTER, || pod_cidrs(&kubectl, node))?;
        network::route_pods(node, &cidrs, nodes)?;
        node::write_cni(node, &cidrs)?;
    }
    wait_until_ready(&kubectl, nodes)
}

fn start_runtimes(state: &State, cgroups: &Hierarchies, tools: &Tools, nodes: &[Node]) -> Result<()> {
    nodes.iter().try_for_each(|&node| node::start_containerd(state, cgroups, node))?;
    load::import(nodes, &tools.images())
}

/// What the controller manager gave to the node: an IPv4 and an IPv6 range.
fn pod_cidrs(kubectl: &Kubectl, node: Node) -> Result<Option<Vec<String>>> {
    let object = kubectl.get(&["node", &node.name()])?;
    Ok(cidrs_of(&object).filter(|cidrs| cidrs.len() == 2))
}

fn cidrs_of(node: &Value) -> Option<Vec<String>> {
    let cidrs = node["spec"]["podCIDRs"].as_array()?;
    cidrs.iter().map(|cidr| cidr.as_str().map(str::to_owned)).collect()
}

fn wait_until_ready(kubectl: &Kubectl, nodes: &[Node]) -> Result<()> {
    let timeout = format!("--timeout={}s", TO_BE_READY.as_secs());
    kubectl.run(&["wait", "node", "--all", "--for=condition=Ready", &timeout])?;
    kubectl.run(&["-n", "kube-system", "rollout", "status", "deployment/coredns", &timeout])?;
    nodes.iter().try_for_each(|&node| dns::wait_on(node))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_node_without_addresses_for_pods_has_none() {
        assert_eq!(cidrs_of(&json!({"spec": {}})), None);
        let node = json!({"spec": {"podCIDRs": ["10.245.0.0/24", "fd00:245::/64"]}});
        assert_eq!(cidrs_of(&node).unwrap().len(), 2);
    }
}
