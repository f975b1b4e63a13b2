//! Services by virtual address (VIP).

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::compact_workloads_and_services::CompactService;
use super::service::Service;
use crate::persistent_table::{PersistentTable, hash_of};

/// Services by virtual address.
#[derive(Clone, Debug, Default)]
pub(super) struct Vips {
    exact: PersistentTable<Arc<CompactService>>,
    /// Services with address ranges; few have one.
    ranges: Arc<Vec<(IpNet, Arc<CompactService>)>>,
}

impl Vips {
    pub(super) fn insert(&mut self, service: &Arc<CompactService>) {
        for network in &service.addresses {
            if is_single(network) {
                self.exact.insert(hash_of(&network.addr()), service.clone());
            } else {
                Arc::make_mut(&mut self.ranges).push((*network, service.clone()));
            }
        }
    }

    pub(super) fn remove(&mut self, service: &Arc<CompactService>) {
        for network in &service.addresses {
            if is_single(network) {
                self.exact.remove(hash_of(&network.addr()), |held| Arc::ptr_eq(held, service));
            }
        }
        if self.ranges.iter().any(|(_, held)| Arc::ptr_eq(held, service)) {
            Arc::make_mut(&mut self.ranges).retain(|(_, held)| !Arc::ptr_eq(held, service));
        }
    }

    /// Returns the service that a client in a namespace means by an address: one with just that address
    /// before one with a range; the client's own namespace first; the longest prefix; the canonical one.
    /// Among equals the first by key, so that every node chooses the same.
    pub(super) fn service_for_client(&self, ip: IpAddr, namespace: &str) -> Option<Arc<Service>> {
        let rank =
            |service: &Service| (&*service.namespace != namespace, !service.canonical, service.key.clone());
        let exact = self.with(ip).map(|compact| compact.decode_cached());
        let exact = exact.filter(|service| service.is_visible_to(namespace)).min_by_key(|it| rank(it));
        exact.or_else(|| {
            let ranges = self.ranges.iter().filter(|(network, _)| network.contains(&ip));
            let services = ranges.map(|(network, compact)| (network, compact.decode_cached()));
            let visible = services.filter(|(_, service)| service.is_visible_to(namespace));
            let best = visible.min_by_key(|(network, service)| {
                let (foreign, secondary, key) = rank(service);
                (foreign, u8::MAX - network.prefix_len(), secondary, key)
            });
            best.map(|(_, service)| service)
        })
    }

    /// Whether a service has just that address.
    pub(super) fn contains_exact(&self, ip: IpAddr) -> bool {
        self.with(ip).next().is_some()
    }

    /// Iterates over the services that have just that address, for a look at them.
    pub(super) fn services_at(&self, ip: IpAddr) -> impl Iterator<Item = Arc<Service>> {
        self.with(ip).map(|compact| compact.decode_without_caching())
    }

    /// Iterates over every single address. May return one twice.
    pub(super) fn all_single_addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.exact.iter().flat_map(|service| singles(service))
    }

    /// Iterates over every range of addresses.
    pub(super) fn range_cidrs(&self) -> impl Iterator<Item = IpNet> {
        self.ranges.iter().map(|(network, _)| *network)
    }

    /// Returns single addresses that may have come or gone since an older state.
    pub(super) fn addresses_changed_since(&self, older: &Self) -> Vec<IpAddr> {
        let changes = self.exact.changes_since(&older.exact, Arc::ptr_eq);
        changes.gone.into_iter().chain(changes.come).flat_map(|service| singles(service)).collect()
    }

    fn with(&self, ip: IpAddr) -> impl Iterator<Item = &Arc<CompactService>> {
        let candidates = self.exact.values_with_hash(hash_of(&ip));
        candidates.filter(move |service| singles(service).any(|single| single == ip))
    }
}

fn singles(service: &CompactService) -> impl Iterator<Item = IpAddr> {
    service.addresses.iter().filter(|network| is_single(network)).map(IpNet::addr)
}

fn is_single(network: &IpNet) -> bool {
    network.prefix_len() == network.max_prefix_len()
}
