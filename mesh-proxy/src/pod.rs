//! A pod of this node.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::{Snapshot, Workload};

/// An enrolled pod, as a worker knows it.
pub struct LocalPod {
    /// Kubernetes uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Who its processes are.
    pub identity: SpiffeId,
    /// Addresses, canonical.
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
    /// The pod as the mesh knows it, if it does.
    pub fn workload_in(&self, snapshot: &Snapshot) -> Option<Arc<Workload>> {
        let mut found = self.addresses.iter().filter_map(|address| snapshot.workload_by_address(*address));
        // An address that another pod had before may not be told anew yet.
        found.find(|it| {
            it.identity == self.identity && (&it.namespace, &it.name) == (&self.namespace, &self.name)
        })
    }

    /// The pod's address of the same family as `other`, or `other` if it has none.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4()).unwrap_or(other)
    }
}
