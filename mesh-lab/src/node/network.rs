//! Links, addresses and routes of the fabric, the nodes and the pods.
//!
//! A pod has its addresses with a full-length prefix and reaches everything, pods of its own node too,
//! through the node's bridge address. So all its packets pass the node's routing, where Services are
//! translated both ways.

use std::{fmt::Write, net::IpAddr};

use super::{Node, inside};
use crate::{
    host::{HostError, netns, program},
    layout::{FABRIC_ADDRESSES, Layout, NodeNumber},
};

/// The bridge of a node to which its pods are attached.
const POD_BRIDGE: &str = "pods";

/// Nodes are routers. Redirects would tell pods to go round the node's routing; duplicate detection would
/// delay addresses by a second for nothing.
const NODE_PARAMETERS: &[(&str, &str)] = &[
    ("ipv4/ip_forward", "1"),
    ("ipv4/conf/all/send_redirects", "0"),
    ("ipv4/conf/default/send_redirects", "0"),
    ("ipv4/conf/all/rp_filter", "0"),
    ("ipv4/conf/default/rp_filter", "0"),
    ("ipv6/conf/all/accept_dad", "0"),
    ("ipv6/conf/default/accept_dad", "0"),
    ("ipv6/conf/all/forwarding", "1"),
];

/// Machines with `br_netfilter` loaded would translate packets while they cross the bridge, and then not
/// deliver those that lead back to the pod they came from.
const BRIDGE_PARAMETERS: &[(&str, &str)] =
    &[("bridge/bridge-nf-call-iptables", "0"), ("bridge/bridge-nf-call-ip6tables", "0")];

/// `ip` commands for the fabric's namespace: a bridge, and on it one port for each node.
pub fn fabric_script(nodes: u8) -> String {
    let mut script =
        String::from("link set lo up\nlink add br0 type bridge mcast_snooping 0\nlink set br0 up\n");
    let [v4, v6] = FABRIC_ADDRESSES;
    push(&mut script, format_args!("addr add {v4}/24 dev br0\naddr add {v6}/64 dev br0 nodad"));
    for node in NodeNumber::all(nodes) {
        push_routes(&mut script, node);
    }
    script
}

/// Configures the network of the fabric, in whose namespace this thread is, by `ip` commands.
pub fn configure_fabric(script: &str) -> Result<(), HostError> {
    // It is a switch, and no firewall.
    netns::set_parameters_if_there(BRIDGE_PARAMETERS)?;
    program::ip_batch(script)
}

/// `ip` commands for the fabric's namespace that connect the nodes to the bridge.
pub fn node_links_script(layout: &Layout, nodes: u8) -> String {
    let mut script = String::new();
    for node in NodeNumber::all(nodes) {
        let (name, netns) = (node.name(), layout.netns_name(&node.name()));
        push(&mut script, format_args!("link add {name} type veth peer name eth0 netns {netns}"));
        push(&mut script, format_args!("link set {name} master br0 up"));
    }
    script
}

/// Configures the network of the node in whose namespace this thread is.
pub fn configure(node: &Node) -> Result<(), HostError> {
    netns::set_parameters(NODE_PARAMETERS)?;
    netns::set_parameters_if_there(BRIDGE_PARAMETERS)?;
    program::ip_batch(&node_script(node.number, node.nodes))
}

fn node_script(node: NodeNumber, nodes: u8) -> String {
    let mut script = String::from("link set lo up\nlink set eth0 up\n");
    let [v4, v6] = node.addresses();
    push(&mut script, format_args!("addr add {v4}/24 dev eth0\naddr add {v6}/64 dev eth0 nodad"));
    push(
        &mut script,
        format_args!("link add {POD_BRIDGE} address {} type bridge mcast_snooping 0", node.bridge_mac()),
    );
    push(&mut script, format_args!("link set {POD_BRIDGE} up"));
    let [v4, v6] = node.gateway();
    push(
        &mut script,
        format_args!("addr add {v4}/24 dev {POD_BRIDGE}\naddr add {v6}/64 dev {POD_BRIDGE} nodad"),
    );
    for other in NodeNumber::all(nodes).filter(|other| *other != node) {
        push_routes(&mut script, other);
    }
    // Whatever is not in the lab: the fabric answers that there is no way.
    for gateway in FABRIC_ADDRESSES {
        push(&mut script, format_args!("route add default via {gateway}"));
    }
    script
}

/// Routes to a node's pods, by way of the node.
fn push_routes(script: &mut String, node: NodeNumber) {
    for (network, address) in node.pod_networks().iter().zip(node.addresses()) {
        push(script, format_args!("route add {network} via {address}"));
    }
}

/// Connects the namespace of the process `pid` to the node's bridge, with these addresses.
pub async fn attach_pod(node: &Node, uid: &str, pid: u32, addresses: [IpAddr; 2]) -> Result<(), HostError> {
    let (outer, inner) = (pod_link_script(uid, pid), pod_script(node.number, addresses));
    let pod = format!("/proc/{pid}/ns/net");
    inside(node.paths.netns(), move || {
        program::ip_batch(&outer)?;
        netns::enter(pod.as_ref())?;
        program::ip_batch(&inner)
    })
    .await
}

fn pod_link_script(uid: &str, pid: u32) -> String {
    // Interface names have at most 15 characters.
    let name: String = "veth".chars().chain(uid.chars().filter(|c| *c != '-').take(11)).collect();
    format!("link add {name} type veth peer name eth0 netns {pid}\nlink set {name} master {POD_BRIDGE} up\n")
}

fn pod_script(node: NodeNumber, addresses: [IpAddr; 2]) -> String {
    let mut script = String::from("link set lo up\nlink set eth0 up\n");
    for (address, gateway) in addresses.iter().zip(node.gateway()) {
        let (length, nodad) = if address.is_ipv4() { (32, "") } else { (128, " nodad") };
        push(&mut script, format_args!("addr add {address}/{length} dev eth0{nodad}"));
        push(&mut script, format_args!("route add {gateway} dev eth0"));
        push(&mut script, format_args!("route add default via {gateway} dev eth0"));
    }
    script
}

fn push(script: &mut String, line: std::fmt::Arguments<'_>) {
    // Writing to a string cannot fail.
    let _ = writeln!(script, "{line}");
}
