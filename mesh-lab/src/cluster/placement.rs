//! Which node a pod runs on, and which addresses pods and Services get.

use std::{
    collections::{BTreeSet, HashMap},
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::{Mutex, PoisonError},
};

use mesh_api::{
    manifest::Kind,
    resource::{Object, Pod},
};

use super::Store;
use crate::layout::NodeNumber;

/// Label that selects a node by name.
const HOSTNAME_LABEL: &str = "kubernetes.io/hostname";
/// Pods' host numbers: 0 is the network, 1 the gateway, 255 the broadcast address.
const POD_HOSTS: std::ops::RangeInclusive<u8> = 2..=254;

/// Gives out nodes and addresses. What is in use is read from the store; only where to look next is kept, so
/// that an address just given back is not given out at once.
#[derive(Debug)]
pub struct Placement {
    nodes: Vec<NodeNumber>,
    next: Mutex<Next>,
}

#[derive(Debug, Default)]
struct Next {
    pod_host: HashMap<String, u8>,
    service: u16,
}

/// Why something could not be placed: the field at fault, what is wrong and what to write instead.
#[derive(Debug, PartialEq, Eq)]
pub struct Unplaced {
    /// Field of the object.
    pub field: &'static str,
    /// What is wrong.
    pub problem: String,
    /// What to do about it.
    pub fix: String,
}

impl Placement {
    /// For a lab with these nodes.
    pub fn new(nodes: Vec<NodeNumber>) -> Self {
        Self { nodes, next: Mutex::default() }
    }

    /// The node of a pod: the one it names, or else the one with the fewest of the same owner's pods, and
    /// of all pods.
    pub fn node(&self, pod: &Pod, store: &Store) -> Result<NodeNumber, Unplaced> {
        let selected = pod.spec.node_selector.get(HOSTNAME_LABEL);
        let wanted = if pod.spec.node_name.is_empty() { selected } else { Some(&pod.spec.node_name) };
        if let Some(name) = wanted {
            let names = || self.nodes.iter().map(|node| node.name()).collect::<Vec<_>>().join(", ");
            return self.nodes.iter().copied().find(|node| node.name() == *name).ok_or_else(|| Unplaced {
                field: if selected == wanted { "spec.nodeSelector" } else { "spec.nodeName" },
                problem: format!("the lab has no node {name:?}"),
                fix: format!("use one of {}, or leave it out", names()),
            });
        }
        let pods = store.list(Kind::Pod);
        let siblings = |other: &&Pod| {
            !pod.metadata.owner_references.is_empty()
                && other.metadata.owner_references == pod.metadata.owner_references
        };
        let load = |node: &NodeNumber| {
            let name = node.name();
            let here = pods.iter().filter_map(|stored| stored.pod()).filter(|pod| pod.spec.node_name == name);
            (here.clone().filter(siblings).count(), here.count())
        };
        self.nodes.iter().copied().min_by_key(load).ok_or_else(|| Unplaced {
            field: "spec.nodeName",
            problem: "the lab has no nodes".to_owned(),
            fix: "start it with at least one".to_owned(),
        })
    }

    /// Addresses for a pod on `node`.
    pub fn pod_addresses(&self, node: NodeNumber, store: &Store) -> Result<[IpAddr; 2], Unplaced> {
        let used: BTreeSet<IpAddr> =
            store.list(Kind::Pod).iter().filter_map(|s| s.pod()).flat_map(Pod::addresses).collect();
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        let cursor = next.pod_host.entry(node.name()).or_insert(*POD_HOSTS.start());
        for _ in POD_HOSTS {
            let host = *cursor;
            *cursor = if host == *POD_HOSTS.end() { *POD_HOSTS.start() } else { host + 1 };
            let addresses = node.pod_addresses(host);
            if !used.contains(&addresses[0]) {
                return Ok(addresses);
            }
        }
        Err(Unplaced {
            field: "spec.nodeName",
            problem: format!("{} has no pod address left", node.name()),
            fix: "use another node, or start the lab with more".to_owned(),
        })
    }

    /// A pair of addresses for a Service, one of each family.
    pub fn service_addresses(&self, store: &Store) -> [IpAddr; 2] {
        let used = service_addresses_in_use(store);
        let mut next = self.next.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            // The first ten are left to those who want a known one, such as a name server.
            next.service = if next.service == u16::MAX - 1 { 10 } else { next.service.max(9) + 1 };
            let [high, low] = next.service.to_be_bytes();
            let v4 = Ipv4Addr::new(10, 96, high, low).into();
            let v6 = Ipv6Addr::new(0xfd00, 0x96, 0, 0, 0, 0, 0, next.service).into();
            if !used.contains(&v4) && !used.contains(&v6) {
                return [v4, v6];
            }
        }
    }
}

/// Every Service address that is taken.
pub fn service_addresses_in_use(store: &Store) -> BTreeSet<IpAddr> {
    let services = store.list(Kind::Service);
    let typed = services.iter().filter_map(|stored| match &stored.object {
        Object::Service(service) => Some(service),
        _ => None,
    });
    typed.flat_map(|service| service.cluster_ips()).collect()
}
