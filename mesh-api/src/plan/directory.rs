//! Workloads and services with the ways to find them, kept up to date change by change.
//!
//! The tables are shared with the snapshots: an editor copies one only if a snapshot still holds it, so a change of
//! one workload among ten thousand copies a table of pointers and rebuilds the endpoints of that workload's services.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints::ServiceEndpoints;
use super::service::Service;
use super::workload::{Health, NetworkMode, Workload};

type Key = Arc<str>;

/// All workloads and services.
#[derive(Clone, Debug, Default)]
pub(super) struct Directory {
    pub(super) workloads: Arc<HashMap<Key, Arc<Workload>>>,
    pub(super) by_address: Arc<HashMap<IpAddr, Arc<Workload>>>,
    pub(super) services: Arc<HashMap<Key, Arc<Service>>>,
    pub(super) endpoints: Arc<HashMap<Key, Arc<ServiceEndpoints>>>,
    pub(super) vips: Arc<Vips>,
}

/// Changes a directory.
#[derive(Debug, Default)]
pub(super) struct Editor {
    directory: Directory,
    /// Who claims an address, the latest last. For a moment two pods can: one ends, another has got its address.
    claims: HashMap<IpAddr, Vec<Key>>,
    /// Workloads by service, whether the service is known yet or not.
    members: HashMap<Key, BTreeSet<Key>>,
    /// Services whose endpoints have to be rebuilt.
    stale_endpoints: HashSet<Key>,
    stale_vips: bool,
}

impl Editor {
    /// Whether that changed anything.
    pub(super) fn insert_workload(&mut self, workload: Workload) -> bool {
        let old = self.directory.workloads.get(&workload.uid);
        if old.is_some_and(|old| **old == workload) {
            return false;
        }
        let uid = workload.uid.clone();
        self.remove_workload(&uid);
        for service in workload.services.keys() {
            self.members.entry(service.clone()).or_default().insert(uid.clone());
            self.stale_endpoints.insert(service.clone());
        }
        let workload = Arc::new(workload);
        Arc::make_mut(&mut self.directory.workloads).insert(uid.clone(), workload.clone());
        for ip in claimed(&workload) {
            self.claims.entry(*ip).or_default().push(uid.clone());
            self.settle(*ip);
        }
        true
    }

    /// Whether there was one.
    pub(super) fn remove_workload(&mut self, uid: &str) -> bool {
        if !self.directory.workloads.contains_key(uid) {
            return false;
        }
        let Some(old) = Arc::make_mut(&mut self.directory.workloads).remove(uid) else { return false };
        for service in old.services.keys() {
            if let Some(members) = self.members.get_mut(service) {
                members.remove(uid);
                if members.is_empty() {
                    self.members.remove(service);
                }
            }
            self.stale_endpoints.insert(service.clone());
        }
        for ip in claimed(&old) {
            if let Some(claims) = self.claims.get_mut(ip) {
                claims.retain(|claim| **claim != *uid);
            }
            self.settle(*ip);
        }
        true
    }

    /// Whether that changed anything.
    pub(super) fn insert_service(&mut self, service: Service) -> bool {
        if self.directory.services.get(&service.key).is_some_and(|old| **old == service) {
            return false;
        }
        let key = service.key.clone();
        Arc::make_mut(&mut self.directory.services).insert(key.clone(), Arc::new(service));
        self.stale_endpoints.insert(key);
        self.stale_vips = true;
        true
    }

    /// Whether there was one.
    pub(super) fn remove_service(&mut self, key: &str) -> bool {
        if !self.directory.services.contains_key(key) {
            return false;
        }
        Arc::make_mut(&mut self.directory.services).remove(key);
        self.stale_endpoints.insert(key.into());
        self.stale_vips = true;
        true
    }

    /// The directory as it is now.
    pub(super) fn freeze(&mut self) -> Directory {
        if self.stale_vips {
            self.directory.vips = Arc::new(Vips::build(self.directory.services.values()));
            self.stale_vips = false;
        }
        for key in std::mem::take(&mut self.stale_endpoints) {
            let endpoints = Arc::make_mut(&mut self.directory.endpoints);
            let Some(service) = self.directory.services.get(&key) else {
                endpoints.remove(&key);
                continue;
            };
            let members = self.members.get(&key).into_iter().flatten();
            let members = members.filter_map(|uid| self.directory.workloads.get(uid)).cloned().collect();
            endpoints.insert(key, Arc::new(ServiceEndpoints::build(service, members)));
        }
        self.directory.clone()
    }

    /// Decides whose an address is: a healthy workload's before others', then the latest one's.
    fn settle(&mut self, ip: IpAddr) {
        let claims = self.claims.get(&ip).into_iter().flatten();
        let workloads = claims.filter_map(|uid| self.directory.workloads.get(uid));
        let owner = workloads.max_by_key(|workload| workload.health == Health::Healthy).cloned();
        let by_address = Arc::make_mut(&mut self.directory.by_address);
        if let Some(owner) = owner {
            by_address.insert(ip, owner);
        } else {
            by_address.remove(&ip);
            self.claims.remove(&ip);
        }
    }
}

fn claimed(workload: &Workload) -> impl Iterator<Item = &IpAddr> {
    workload.addresses.iter().filter(|_| workload.network_mode == NetworkMode::Standard)
}

/// Services by virtual address.
#[derive(Debug, Default)]
pub(super) struct Vips {
    exact: HashMap<IpAddr, Vec<Arc<Service>>>,
    ranges: Vec<(IpNet, Arc<Service>)>,
}

impl Vips {
    fn build<'a>(services: impl Iterator<Item = &'a Arc<Service>>) -> Self {
        // In the order of their keys, so that equal candidates rank alike on every node.
        let mut services: Vec<_> = services.collect();
        services.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let mut vips = Self::default();
        for service in services {
            for network in &service.addresses {
                if network.prefix_len() == network.max_prefix_len() {
                    vips.exact.entry(network.addr()).or_default().push(service.clone());
                } else {
                    vips.ranges.push((*network, service.clone()));
                }
            }
        }
        vips
    }

    /// The service that a client in a namespace means by an address: one with just that address before one with a
    /// range; the client's own namespace first; the longest prefix; the canonical one.
    pub(super) fn find(&self, ip: IpAddr, namespace: &str) -> Option<&Arc<Service>> {
        let foreign = |service: &Service| &*service.namespace != namespace;
        let exact = self.exact.get(&ip).into_iter().flatten();
        let exact = exact
            .filter(|service| service.is_visible_to(namespace))
            .min_by_key(|service| (foreign(service), !service.canonical));
        let range = || {
            let ranges = self.ranges.iter().filter(|(network, _)| network.contains(&ip));
            ranges
                .filter(|(_, service)| service.is_visible_to(namespace))
                .min_by_key(|(network, service)| {
                    (foreign(service), u8::MAX - network.prefix_len(), !service.canonical)
                })
                .map(|(_, service)| service)
        };
        exact.or_else(range)
    }

    pub(super) fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.exact.keys().copied()
    }

    pub(super) fn ranges(&self) -> impl Iterator<Item = IpNet> {
        self.ranges.iter().map(|(network, _)| *network)
    }
}
