//! What a cluster is made of: its names, addresses and directories.
//!
//! All of it is apart from what a lab uses, so that both can be up at a time.

use std::fmt;
use std::net::{Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

/// Where everything that the cluster writes is, but for what the kernel keeps.
pub const STATE: &str = "/run/nodemesh-cluster";
/// Where the agents of the cluster pin maps and links, a directory for each node.
pub const BPF: &str = "/sys/fs/bpf/nodemesh-cluster";
/// The bridge between the nodes and this machine.
pub const BRIDGE: &str = "nodemesh-cl";
/// This machine on that bridge, with its prefix length.
pub const HOST_CIDRS: [&str; 2] = ["172.31.0.1/24", "fd00:31::1/64"];
/// This machine on that bridge, where the API server listens.
pub const HOST: Ipv4Addr = Ipv4Addr::new(172, 31, 0, 1);
/// The API server's port.
pub const API_PORT: u16 = 6443;
/// Addresses of pods; each node gets a /24 and a /64 of them.
pub const POD_CIDRS: &str = "10.245.0.0/16,fd00:245::/56";
/// Addresses of Services.
pub const SERVICE_CIDRS: &str = "10.97.0.0/16,fd00:97::/112";
/// The name server's Service; `coredns.yaml` says the same.
pub const DNS: &str = "10.97.0.10";
/// The suffix of all names in the cluster.
pub const DOMAIN: &str = "cluster.local";

/// More nodes than this have no use on one machine; the addresses would suffice for more.
const MOST_NODES: u8 = 9;
const ZONES: [&str; 2] = ["zone-a", "zone-b"];

/// One node; nodes are numbered from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Node {
    number: u8,
}

impl Node {
    /// The first `count` nodes.
    pub fn first(count: u8) -> Result<Vec<Self>> {
        ensure!((1..=MOST_NODES).contains(&count), "a cluster has 1 to {MOST_NODES} nodes, not {count}");
        Ok((1..=count).map(|number| Self { number }).collect())
    }

    /// Every node that a cluster on this machine can have had.
    pub fn all() -> impl Iterator<Item = Self> {
        (1..=MOST_NODES).map(|number| Self { number })
    }

    /// Its name in Kubernetes, and that of its cgroup.
    pub fn name(self) -> String {
        format!("node{}", self.number)
    }

    /// Its network namespace, as `ip netns` lists it.
    pub fn namespace(self) -> String {
        format!("nodemesh-cluster-{}", self.name())
    }

    /// This machine's end of its link to the bridge.
    pub fn link(self) -> String {
        format!("nmcl-{}", self.name())
    }

    /// Its IPv4 address on the bridge.
    pub fn ipv4(self) -> Ipv4Addr {
        Ipv4Addr::new(172, 31, 0, 10 + self.number)
    }

    /// Its IPv6 address on the bridge.
    pub fn ipv6(self) -> Ipv6Addr {
        Ipv6Addr::new(0xfd00, 0x31, 0, 0, 0, 0, 0, 0x10 + u16::from(self.number))
    }

    /// Its `topology.kubernetes.io/zone`: neighbours are in different ones.
    pub fn zone(self) -> &'static str {
        ZONES[usize::from(self.number - 1) % ZONES.len()]
    }

    /// Its part of the state directory.
    pub fn directory(self) -> PathBuf {
        Path::new(STATE).join(self.name())
    }

    /// The socket of its containerd, as this machine sees it.
    pub fn containerd(self) -> PathBuf {
        self.directory().join("run-containerd/containerd.sock")
    }
}

impl fmt::Display for Node {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "node{}", self.number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_have_addresses_and_zones_of_their_own() {
        let nodes = Node::first(2).unwrap();
        assert_eq!(nodes[0].ipv4().to_string(), "172.31.0.11");
        assert_eq!(nodes[1].ipv6().to_string(), "fd00:31::12");
        assert_ne!(nodes[0].zone(), nodes[1].zone());
        assert_eq!(nodes[1].namespace(), "nodemesh-cluster-node2");
    }

    #[test]
    fn the_number_of_nodes_has_bounds() {
        assert!(Node::first(0).is_err());
        assert!(Node::first(10).is_err());
    }

    #[test]
    fn names_of_links_fit_the_kernel() {
        assert!(BRIDGE.len() < 16);
        assert!(Node::all().all(|node| node.link().len() < 16));
    }

    #[test]
    fn a_containerd_socket_fits_a_socket_address() {
        assert!(Node::all().all(|node| node.containerd().as_os_str().len() < 100));
    }
}
