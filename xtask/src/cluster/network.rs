//! The network of the nodes: a namespace each, joined by a bridge that this machine is on too.

use std::process::Command;

use anyhow::Result;

use super::layout::{BRIDGE, HOST_CIDRS, Node};
use crate::command::CommandExt;

const FORWARDING: [&str; 2] = ["net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1"];

/// Makes the bridge and gives this machine its addresses on it.
pub fn create_bridge() -> Result<()> {
    ip(&["link", "add", BRIDGE, "type", "bridge"])?;
    ip(&["link", "set", BRIDGE, "up"])?;
    HOST_CIDRS.iter().try_for_each(|address| add_address(&[], BRIDGE, address))
}

/// Makes the namespace of `node` and joins it to the bridge.
pub fn create_node(node: Node) -> Result<()> {
    let (namespace, link) = (node.namespace(), node.link());
    ip(&["netns", "add", &namespace])?;
    ip(&["link", "add", &link, "type", "veth", "peer", "name", "eth0", "netns", &namespace])?;
    ip(&["link", "set", &link, "master", BRIDGE, "up"])?;
    let inside = ["-n", &namespace];
    ip(&["-n", &namespace, "link", "set", "lo", "up"])?;
    ip(&["-n", &namespace, "link", "set", "eth0", "up"])?;
    add_address(&inside, "eth0", &format!("{}/24", node.ipv4()))?;
    add_address(&inside, "eth0", &format!("{}/64", node.ipv6()))?;
    let [host4, host6] = HOST_CIDRS.map(|cidr| cidr.split('/').next().unwrap_or(cidr));
    ip(&["-n", &namespace, "route", "add", "default", "via", host4])?;
    ip(&["-n", &namespace, "-6", "route", "add", "default", "via", host6])?;
    let mut sysctl = Command::new("nsenter");
    sysctl.arg(format!("--net=/run/netns/{namespace}")).args(["sysctl", "-qw"]).args(FORWARDING).checked()
}

/// Leads the pod addresses of `node` to it, from all `others` and from this machine.
pub fn route_pods(node: Node, cidrs: &[String], others: &[Node]) -> Result<()> {
    for cidr in cidrs {
        let gateway = if cidr.contains(':') { node.ipv6().to_string() } else { node.ipv4().to_string() };
        ip(&["route", "replace", cidr, "via", &gateway])?;
        for other in others.iter().filter(|other| **other != node) {
            ip(&["-n", &other.namespace(), "route", "replace", cidr, "via", &gateway])?;
        }
    }
    Ok(())
}

/// Removes what `create_node` and `create_bridge` made, as far as it is there.
///
/// A namespace ends when its last process does; its end of a link, and so the other one, goes with it.
pub fn remove() -> Result<()> {
    let namespaces = Command::new("ip").args(["netns", "list"]).captured()?;
    let links = Command::new("ip").args(["-o", "link", "show"]).captured()?;
    for node in Node::all() {
        if first_words(&namespaces).any(|name| name == node.namespace()) {
            ip(&["netns", "delete", &node.namespace()])?;
        }
        if link_names(&links).any(|name| name == node.link()) {
            // It may go by itself between the two looks.
            let _ = Command::new("ip").args(["link", "delete", &node.link()]).outcome()?;
        }
    }
    if link_names(&links).any(|name| name == BRIDGE) {
        ip(&["link", "delete", BRIDGE])?;
    }
    Ok(())
}

fn first_words(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter_map(|line| line.split_whitespace().next())
}

/// The names in what `ip -o link` prints: `7: veth0@if2: <BROADCAST…`.
fn link_names(text: &str) -> impl Iterator<Item = &str> {
    let names = text.lines().filter_map(|line| line.split_whitespace().nth(1));
    names.filter_map(|name| name.split(['@', ':']).next())
}

/// Without duplicate address detection, which would hold an IPv6 address back for two seconds.
fn add_address(namespace: &[&str], link: &str, cidr: &str) -> Result<()> {
    let mut arguments = namespace.to_vec();
    arguments.extend(["address", "add", cidr, "dev", link]);
    if cidr.contains(':') {
        arguments.push("nodad");
    }
    ip(&arguments)
}

fn ip(arguments: &[&str]) -> Result<()> {
    Command::new("ip").args(arguments).captured().map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_ip_prints() {
        let links = "1: lo: <LOOPBACK,UP> mtu 65536\n9: nmcl-node1@if2: <BROADCAST> mtu 1500\n";
        assert_eq!(link_names(links).collect::<Vec<_>>(), ["lo", "nmcl-node1"]);
        assert_eq!(
            first_words("nodemesh-cluster-node1 (id: 0)\nlab\n").collect::<Vec<_>>(),
            ["nodemesh-cluster-node1", "lab"]
        );
    }
}
