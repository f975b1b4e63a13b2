//! One immutable state of the configuration.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::blocking_waypoint::WaypointHandling;
use super::compact_workloads_and_services::CompactWorkload;
use super::mesh_index::{MeshIndex, ServiceWithWorkloads};
use super::policy::{Policy, PolicySet};
use super::service::Service;
use super::workload::Workload;

/// One state of the configuration. Cheap to clone, free to share.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) index: MeshIndex,
    pub(super) policies: PolicySet,
    pub(super) waypoints: WaypointHandling,
}

impl Snapshot {
    /// Returns the number of the state: grows with every change; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// Returns the workload with that uid.
    pub fn workload(&self, uid: &str) -> Option<Arc<Workload>> {
        self.index.workload(uid).map(|compact| compact.decode_cached())
    }

    /// Whether there is a workload with that uid.
    pub fn contains_workload(&self, uid: &str) -> bool {
        self.index.workload(uid).is_some()
    }

    /// Returns the workload that owns an address. Workloads in their node's network own none.
    pub fn workload_by_address(&self, ip: IpAddr) -> Option<Arc<Workload>> {
        self.index.workload_by_address(ip.to_canonical()).map(|compact| compact.decode_cached())
    }

    /// Returns the service that a client in a namespace means by a virtual address.
    pub fn service_by_vip(&self, ip: IpAddr, client_namespace: &str) -> Option<Arc<Service>> {
        self.index.vips.service_for_client(ip.to_canonical(), client_namespace)
    }

    /// Returns the service with that namespace and fully qualified host name.
    pub fn service_by_name(&self, namespace: &str, hostname: &str) -> Option<Arc<Service>> {
        let entry = self.index.service(&format!("{namespace}/{hostname}"))?;
        entry.service.as_ref().map(|compact| compact.decode_cached())
    }

    /// Returns the service that a client in a namespace means by a name, as its resolver would find it:
    /// `web`, `web.shop`, `web.shop.svc` or a full name, with or without the last dot. Searches all services,
    /// so it is not for the data path.
    pub fn resolve_host(&self, name: &str, client_namespace: &str) -> Option<Arc<Service>> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let visible = || self.services().filter(|service| service.is_visible_to(client_namespace));
        let rank = |service: &Arc<Service>| {
            (&*service.namespace != client_namespace, !service.canonical, service.key.clone())
        };
        let short = short_name(&name, client_namespace).and_then(|(host, namespace)| {
            let prefix = format!("{host}.{namespace}.svc.");
            let fits = |service: &Arc<Service>| {
                *service.namespace == *namespace && service.hostname.starts_with(&prefix)
            };
            visible().filter(fits).min_by_key(rank)
        });
        short.or_else(|| visible().filter(|service| *service.hostname == *name).min_by_key(rank)).or_else(
            || {
                let covering = visible().filter(|service| covers(&service.hostname, &name));
                covering.min_by_key(|service| (usize::MAX - service.hostname.len(), rank(service)))
            },
        )
    }

    /// Iterates over all workloads, in no order.
    pub fn workloads(&self) -> impl Iterator<Item = Arc<Workload>> {
        self.index.workloads.iter().map(|compact| compact.decode_without_caching())
    }

    /// Returns the number of workloads.
    pub fn workload_count(&self) -> usize {
        self.index.workloads.len()
    }

    /// Iterates over the workloads of one node, in no order.
    pub fn workloads_on_node(&self, node: &str) -> impl Iterator<Item = Arc<Workload>> {
        let there = self.index.workloads.iter().filter(move |compact| compact.node() == node);
        there.map(|compact| compact.decode_without_caching())
    }

    /// Iterates over all services, in no order.
    pub fn services(&self) -> impl Iterator<Item = Arc<Service>> {
        let known = self.index.services.iter().filter_map(|entry| entry.service.as_ref());
        known.map(|compact| compact.decode_without_caching())
    }

    /// Returns the number of services.
    pub fn service_count(&self) -> usize {
        self.index.service_count
    }

    /// Iterates over all policies, in no order.
    pub fn all_policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.all()
    }

    /// Iterates over the policies that apply to a workload, without those that it names but that have not
    /// arrived.
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.applying_or_missing(workload).filter_map(Result::ok)
    }

    /// Returns the workloads of a service, ready or not, ordered by uid.
    pub fn workloads_of_service(&self, service: &Service) -> Vec<Arc<Workload>> {
        self.index.service(&service.key).map_or_else(Vec::new, |entry| entry.workloads_without_caching())
    }

    /// Returns how many workloads a service has, and how many of them are ready.
    pub fn workload_and_ready_counts_of(&self, service: &Service) -> (usize, usize) {
        self.index.service(&service.key).map_or((0, 0), |entry| entry.total_and_ready_counts())
    }

    /// Iterates over every single address that the mesh knows, of workloads and services. May return one
    /// twice.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        let workloads = self.index.workloads.iter().flat_map(|compact| compact.owned_addresses());
        workloads.chain(self.index.vips.all_single_addresses())
    }

    /// Whether an address belongs to a workload or service.
    pub fn contains_address(&self, ip: IpAddr) -> bool {
        let ip = ip.to_canonical();
        self.index.workload_by_address(ip).is_some() || self.index.vips.contains_exact(ip)
    }

    /// Returns the addresses that came, and those that went, since an older state. Parts that both states
    /// share are skipped, so the cost is that of the changes.
    pub fn added_and_removed_addresses_since(&self, older: &Self) -> (HashSet<IpAddr>, HashSet<IpAddr>) {
        let workloads = self.index.by_address.changes_since(&older.index.by_address, Arc::ptr_eq);
        let mut touched: HashSet<IpAddr> = workloads
            .gone
            .into_iter()
            .chain(workloads.come)
            .flat_map(|compact| compact.owned_addresses())
            .collect();
        touched.extend(self.index.vips.addresses_changed_since(&older.index.vips));
        let moved =
            touched.into_iter().filter(|ip| self.contains_address(*ip) != older.contains_address(*ip));
        moved.partition(|ip| self.contains_address(*ip))
    }

    /// Iterates over the address ranges of services.
    pub fn service_vip_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.index.vips.range_cidrs()
    }

    /// Whether another state has the same policies, so that both decide alike about a workload that is the
    /// same in both.
    pub fn has_same_policies(&self, other: &Self) -> bool {
        self.policies.ptr_eq(&other.policies)
    }

    /// Whether a workload is the same in both states, or in neither.
    pub fn has_same_workload(&self, other: &Self, uid: &str) -> bool {
        match (self.index.workload(uid), other.index.workload(uid)) {
            (Some(ours), Some(theirs)) => Arc::ptr_eq(ours, theirs),
            (None, None) => true,
            _ => false,
        }
    }

    /// Returns what the destination of a workload's connections to an address depends on, including decisions
    /// at its endpoints.
    pub fn destination_dependencies(
        &self,
        source: &[IpAddr],
        namespace: &str,
        destination: IpAddr,
    ) -> DestinationDependencies {
        let destination = destination.to_canonical();
        let service = self.index.vips.service_for_client(destination, namespace);
        let entry = service.and_then(|service| self.index.service(&service.key)).cloned();
        DestinationDependencies {
            source: source
                .iter()
                .map(|ip| self.index.workload_by_address(ip.to_canonical()).cloned())
                .collect(),
            entry,
            owner: self.index.workload_by_address(destination).cloned(),
            policies: self.policies.clone(),
        }
    }

    pub(super) fn service_with_workloads(&self, service: &Service) -> Option<&Arc<ServiceWithWorkloads>> {
        self.index.service(&service.key)
    }
}

/// What a destination depends on, kept to compare: as long as it is equal, so is the destination.
#[derive(Debug)]
pub struct DestinationDependencies {
    source: Box<[Option<Arc<CompactWorkload>>]>,
    entry: Option<Arc<ServiceWithWorkloads>>,
    owner: Option<Arc<CompactWorkload>>,
    policies: PolicySet,
}

impl PartialEq for DestinationDependencies {
    /// Whether both are the same objects, not just equal ones.
    fn eq(&self, other: &Self) -> bool {
        let sources = || self.source.iter().zip(&other.source);
        self.source.len() == other.source.len()
            && sources().all(|(ours, theirs)| is_same(ours.as_ref(), theirs.as_ref()))
            && is_same(self.entry.as_ref(), other.entry.as_ref())
            && is_same(self.owner.as_ref(), other.owner.as_ref())
            && self.policies.ptr_eq(&other.policies)
    }
}

fn is_same<T>(one: Option<&Arc<T>>, other: Option<&Arc<T>>) -> bool {
    match (one, other) {
        (Some(one), Some(other)) => Arc::ptr_eq(one, other),
        (None, None) => true,
        _ => false,
    }
}

/// Returns host and namespace of a name that a Kubernetes search list would complete.
fn short_name<'a>(name: &'a str, client_namespace: &'a str) -> Option<(&'a str, &'a str)> {
    let mut labels = name.split('.');
    match (labels.next()?, labels.next(), labels.next(), labels.next()) {
        (host, None, None, None) => Some((host, client_namespace)),
        (host, Some(namespace), None | Some("svc"), None) => Some((host, namespace)),
        _ => None,
    }
}

/// Whether a wildcard host name covers a name.
fn covers(hostname: &str, name: &str) -> bool {
    hostname.strip_prefix('*').is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
}
