//! A pod of this node.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::{Snapshot, Workload};

/// An enrolled pod, as a worker knows it.
pub struct LocalPod {
    /// Kubernetes' uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Identity of its processes.
    pub identity: SpiffeId,
    /// Addresses, canonical: IPv4-mapped IPv6 is IPv4.
    pub addresses: Vec<IpAddr>,
    /// The cookie of its network namespace, by which the keeper and the kernel know it.
    pub netns: u64,
}

impl fmt::Display for LocalPod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl LocalPod {
    /// Returns the pod as the control plane tells of it, if it does.
    pub fn find_workload(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let mut found = self.addresses.iter().filter_map(|address| snapshot.workload_by_address(*address));
        // An address may still be told as that of a pod that had it before.
        found.find(|it| {
            it.identity == self.identity && (&it.namespace, &it.name) == (&self.namespace, &self.name)
        })
    }

    /// Returns the pod's address of the same family as `other`, or `other` if it has none.
    pub fn same_family_address_or_given(&self, other: IpAddr) -> IpAddr {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4()).unwrap_or(other)
    }
}
