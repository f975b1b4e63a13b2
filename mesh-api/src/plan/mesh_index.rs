//! All workloads and services, indexed by uid, key and address, kept up to date change by change.
//!
//! An index shares everything that did not change with the one before ([`PersistentTable`]). A service's
//! endpoints are built when somebody first connects to it: a node's pods talk to few of the mesh's
//! services.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, OnceLock};

use super::compact_workloads_and_services::{CompactService, CompactWorkload, WorkloadPartsInterner};
use super::endpoints::ServiceEndpoints;
use super::field_parsing::Invalid;
use super::intern::Interner;
use super::vips::Vips;
use super::workload::{Health, Workload};
use crate::persistent_table::{PersistentTable, hash_of};
use crate::wire::workload as wire;

type Key = Arc<str>;

/// All workloads and services.
#[derive(Clone, Debug, Default)]
pub(super) struct MeshIndex {
    /// By uid.
    pub(super) workloads: PersistentTable<Arc<CompactWorkload>>,
    /// By each address of their own. For a moment two pods can have one: one ends, another has got its
    /// address.
    pub(super) by_address: PersistentTable<Arc<CompactWorkload>>,
    /// By key; also those that only their workloads tell of.
    pub(super) services: PersistentTable<Arc<ServiceWithWorkloads>>,
    pub(super) vips: Vips,
    /// Number of services that are known.
    pub(super) service_count: usize,
}

/// A service and its workloads.
#[derive(Debug)]
pub(super) struct ServiceWithWorkloads {
    key: Key,
    pub(super) service: Option<Arc<CompactService>>,
    /// In the order of their uids.
    members: Box<[Arc<CompactWorkload>]>,
    endpoints: OnceLock<Option<ServiceEndpoints>>,
}

impl ServiceWithWorkloads {
    fn new(key: Key, service: Option<Arc<CompactService>>, members: Box<[Arc<CompactWorkload>]>) -> Self {
        Self { key, service, members, endpoints: OnceLock::new() }
    }

    /// Returns its endpoints; none if only its workloads tell of it.
    pub(super) fn endpoints(&self) -> Option<&ServiceEndpoints> {
        let build = || {
            let members = self.members.iter().map(|member| member.decode_cached()).collect();
            self.service.as_ref().map(|service| ServiceEndpoints::build(service.decode_cached(), members))
        };
        self.endpoints.get_or_init(build).as_ref()
    }

    /// Whether `is_one` holds for one of its workloads. They are decoded one by one, and none stays.
    pub(super) fn has_workload_where(&self, is_one: impl Fn(&Workload) -> bool) -> bool {
        self.members.iter().any(|member| is_one(&member.decode_without_caching()))
    }

    /// Returns its workloads for a look at them.
    pub(super) fn workloads_without_caching(&self) -> Vec<Arc<Workload>> {
        self.members.iter().map(|member| member.decode_without_caching()).collect()
    }

    /// Returns how many workloads it has, and how many of them are ready.
    pub(super) fn total_and_ready_counts(&self) -> (usize, usize) {
        let ready = self.members.iter().filter(|member| member.health() == Health::Healthy);
        (self.members.len(), ready.count())
    }
}

impl MeshIndex {
    pub(super) fn workload(&self, uid: &str) -> Option<&Arc<CompactWorkload>> {
        self.workloads.find(hash_of(uid), |workload| workload.has_uid(uid))
    }

    pub(super) fn service(&self, key: &str) -> Option<&Arc<ServiceWithWorkloads>> {
        self.services.find(hash_of(key), |entry| *entry.key == *key)
    }

    /// Returns the workload that owns an address: a healthy one before others, then the latest.
    pub(super) fn workload_by_address(&self, ip: IpAddr) -> Option<&Arc<CompactWorkload>> {
        let claims = self.by_address.values_with_hash(hash_of(&ip));
        let claims = claims.filter(|workload| workload.owned_addresses().any(|claimed| claimed == ip));
        claims.max_by_key(|workload| workload.health() == Health::Healthy)
    }
}

/// Changes an index.
#[derive(Debug, Default)]
pub(super) struct MeshIndexEditor {
    index: MeshIndex,
    texts: Interner,
    pool: WorkloadPartsInterner,
    /// Services with changes, as they will be.
    touched: HashMap<Key, Touched>,
}

#[derive(Debug)]
struct Touched {
    service: Option<Arc<CompactService>>,
    /// Its workloads, in no order.
    members: Vec<Arc<CompactWorkload>>,
}

impl MeshIndexEditor {
    /// Checks and inserts a workload. Returns whether that changed anything. Errors: see [`Invalid`].
    pub(super) fn insert_workload(&mut self, from: wire::Workload, version: &str) -> Result<bool, Invalid> {
        let workload = Arc::new(CompactWorkload::new(from, version, &mut self.texts, &mut self.pool)?);
        let uid = workload.uid();
        let same = self.index.workload(&uid).filter(|old| old.is_same_except_version(&workload));
        if same.is_some_and(|old| old.version() == workload.version()) {
            return Ok(false);
        }
        let changed = same.is_none();
        self.take_out(&uid);
        for service in workload.service_keys() {
            self.touch(service).members.push(workload.clone());
        }
        for ip in workload.owned_addresses() {
            self.index.by_address.insert(hash_of(&ip), workload.clone());
        }
        self.index.workloads.insert(hash_of(uid.as_str()), workload);
        Ok(changed)
    }

    /// Removes a workload. Returns whether there was one.
    pub(super) fn remove_workload(&mut self, uid: &str) -> bool {
        self.take_out(uid).is_some()
    }

    fn take_out(&mut self, uid: &str) -> Option<Arc<CompactWorkload>> {
        let old = self.index.workloads.remove(hash_of(uid), |workload| workload.has_uid(uid))?;
        for service in old.service_keys() {
            self.touch(service).members.retain(|member| !Arc::ptr_eq(member, &old));
        }
        for ip in old.owned_addresses() {
            self.index.by_address.remove(hash_of(&ip), |workload| Arc::ptr_eq(workload, &old));
        }
        Some(old)
    }

    /// Checks and inserts a service. Returns whether that changed anything. Errors: see [`Invalid`].
    pub(super) fn insert_service(&mut self, from: wire::Service, version: &str) -> Result<bool, Invalid> {
        let service = Arc::new(CompactService::new(from, version, &mut self.texts)?);
        let key = service.key.clone();
        let old = self.touch(&key).service.replace(service.clone());
        if let Some(old) = &old {
            self.index.vips.remove(old);
        } else {
            self.index.service_count += 1;
        }
        self.index.vips.insert(&service);
        Ok(!old.is_some_and(|old| old.is_same_except_version(&service)))
    }

    /// Removes a service. Returns whether there was one.
    pub(super) fn remove_service(&mut self, key: &str) -> bool {
        if !self.touched.contains_key(key) && self.index.service(key).is_none() {
            return false;
        }
        let Some(old) = self.touch(&key.into()).service.take() else { return false };
        self.index.vips.remove(&old);
        self.index.service_count -= 1;
        true
    }

    /// Returns the index as it is now.
    pub(super) fn snapshot(&mut self) -> MeshIndex {
        for (key, Touched { service, mut members }) in std::mem::take(&mut self.touched) {
            let hash = hash_of(&*key);
            self.index.services.remove(hash, |entry| entry.key == key);
            if service.is_some() || !members.is_empty() {
                members.sort_unstable_by(|a, b| a.cmp_uid(b));
                let entry = ServiceWithWorkloads::new(key, service, members.into());
                self.index.services.insert(hash, Arc::new(entry));
            }
        }
        self.texts.sweep();
        self.pool.sweep();
        self.index.clone()
    }

    /// Iterates over all workloads.
    pub(super) fn all_workloads(&self) -> impl Iterator<Item = &Arc<CompactWorkload>> {
        self.index.workloads.iter()
    }

    /// Returns all workloads, to be kept.
    pub(super) fn clone_workloads(&self) -> PersistentTable<Arc<CompactWorkload>> {
        self.index.workloads.clone()
    }

    /// Iterates over all services.
    pub(super) fn services(&self) -> impl Iterator<Item = &Arc<CompactService>> {
        let settled = self.index.services.iter().filter(|entry| !self.touched.contains_key(&entry.key));
        let settled = settled.filter_map(|entry| entry.service.as_ref());
        settled.chain(self.touched.values().filter_map(|touched| touched.service.as_ref()))
    }

    fn touch(&mut self, key: &Key) -> &mut Touched {
        let index = &self.index;
        self.touched.entry(key.clone()).or_insert_with(|| match index.service(key) {
            Some(entry) => Touched { service: entry.service.clone(), members: entry.members.to_vec() },
            None => Touched { service: None, members: Vec::new() },
        })
    }
}
