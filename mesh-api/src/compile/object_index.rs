//! Who is affected by what: the ways from a pod to the services that may have it, and back.
//!
//! They let the compiler look at the neighbours of what changed, and at nothing else.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::object_store::{NamespacedName, SharedObject, as_pod, as_service, as_slice};
use crate::persistent_table::{PersistentTable, hash_of};
use crate::resource::{Endpoint, EndpointSlice, Metadata, Object, Pod, Service};

/// The ways.
#[derive(Debug, Default)]
pub(super) struct ObjectIndex {
    /// Live pods, by each address that is their own.
    pods: PersistentTable<SharedObject>,
    /// Services with a selector, by namespace and one of the labels that they select by: the one that fewest
    /// had.
    selecting: HashMap<(String, String, String), Vec<SharedObject>>,
    /// Slices, by namespace and name of their service.
    slices: HashMap<NamespacedName, Vec<SharedObject>>,
    /// Slices, by namespace and name of each pod that they name.
    naming: PersistentTable<SharedObject>,
    /// Slices, by each address that they do not name a pod for.
    addressing: PersistentTable<SharedObject>,
}

impl ObjectIndex {
    pub fn add(&mut self, object: &SharedObject) {
        match &object.value {
            Object::Pod(pod) => {
                for address in own_addresses(pod) {
                    self.pods.insert(hash_of(&address), object.clone());
                }
            }
            Object::Service(service) => {
                let buckets = labels_of(service);
                let count = |key: &_| self.selecting.get(key).map_or(0, Vec::len);
                if let Some(key) = buckets.min_by_key(count) {
                    self.selecting.entry(key).or_default().push(object.clone());
                }
            }
            Object::EndpointSlice(slice) => {
                if let Some(service) = service_name_of_slice(slice) {
                    self.slices.entry(service).or_default().push(object.clone());
                }
                for pod in pods_named(slice) {
                    self.naming.insert(hash_of(&(&slice.metadata.namespace, pod)), object.clone());
                }
                for address in addresses_alone(slice) {
                    self.addressing.insert(hash_of(&address), object.clone());
                }
            }
            _ => {}
        }
    }

    pub fn remove(&mut self, object: &SharedObject) {
        let same = |held: &SharedObject| Arc::ptr_eq(held, object);
        match &object.value {
            Object::Pod(pod) => {
                for address in own_addresses(pod) {
                    self.pods.remove(hash_of(&address), same);
                }
            }
            Object::Service(service) => {
                labels_of(service).for_each(|key| take(&mut self.selecting, &key, same));
            }
            Object::EndpointSlice(slice) => {
                if let Some(service) = service_name_of_slice(slice) {
                    take(&mut self.slices, &service, same);
                }
                for pod in pods_named(slice) {
                    self.naming.remove(hash_of(&(&slice.metadata.namespace, pod)), same);
                }
                for address in addresses_alone(slice) {
                    self.addressing.remove(hash_of(&address), same);
                }
            }
            _ => {}
        }
    }

    /// Live pods that have an address of their own.
    pub fn pods_with_address(&self, address: IpAddr) -> impl Iterator<Item = &Pod> {
        let candidates = self.pods.values_with_hash(hash_of(&address)).filter_map(as_pod);
        candidates.filter(move |pod| pod.addresses().contains(&address))
    }

    /// Services whose selector selects a pod.
    pub fn services_selecting(&self, pod: &Metadata) -> impl Iterator<Item = &Service> {
        let keys = pod.labels.iter().map(|(key, value)| (pod.namespace.clone(), key.clone(), value.clone()));
        let services = keys.filter_map(|key| self.selecting.get(&key)).flatten().filter_map(as_service);
        services.filter(|service| service_selects_pod(service, pod))
    }

    /// Slices of a service.
    pub fn slices_of_service(&self, service: &NamespacedName) -> impl Iterator<Item = &EndpointSlice> {
        self.slices.get(service).into_iter().flatten().filter_map(as_slice)
    }

    /// Whether a service has a slice.
    pub fn has_slices(&self, service: &NamespacedName) -> bool {
        self.slices.contains_key(service)
    }

    /// Slices of the pod's namespace that name it. May name one twice.
    pub fn slices_naming_pod(&self, pod: &Metadata) -> impl Iterator<Item = &EndpointSlice> {
        let candidates = self.naming.values_with_hash(hash_of(&(&pod.namespace, pod.name.as_str())));
        let candidates = candidates.filter_map(as_slice);
        candidates.filter(|slice| {
            slice.metadata.namespace == pod.namespace
                && slice.endpoints.iter().any(|endpoint| pod_name_of_endpoint(endpoint) == Some(&pod.name))
        })
    }

    /// Slices that have an address for which they name no pod. May name one twice.
    pub fn slices_with_address(&self, address: IpAddr) -> impl Iterator<Item = &EndpointSlice> {
        let candidates = self.addressing.values_with_hash(hash_of(&address)).filter_map(as_slice);
        candidates.filter(move |slice| addresses_alone(slice).any(|alone| alone == address))
    }
}

/// Whether a service's selector selects a pod. An empty one selects none.
pub(super) fn service_selects_pod(service: &Service, pod: &Metadata) -> bool {
    let selector = &service.spec.selector;
    service.metadata.namespace == pod.namespace
        && !selector.is_empty()
        && selector.iter().all(|(key, value)| pod.labels.get(key) == Some(value))
}

/// The pod, of the slice's own namespace, that an endpoint names.
pub(super) fn pod_name_of_endpoint(endpoint: &Endpoint) -> Option<&str> {
    let target = endpoint.target_ref.as_ref().filter(|target| target.kind == "Pod")?;
    Some(&target.name)
}

/// The service of a slice.
pub(super) fn service_name_of_slice(slice: &EndpointSlice) -> Option<NamespacedName> {
    Some((slice.metadata.namespace.clone(), slice.service_name()?.to_owned()))
}

fn pods_named(slice: &EndpointSlice) -> impl Iterator<Item = &str> {
    slice.endpoints.iter().filter_map(pod_name_of_endpoint)
}

/// Addresses for which a slice names no pod.
fn addresses_alone(slice: &EndpointSlice) -> impl Iterator<Item = IpAddr> {
    let unnamed = slice.endpoints.iter().filter(|endpoint| pod_name_of_endpoint(endpoint).is_none());
    unnamed.flat_map(Endpoint::ip_addresses)
}

fn own_addresses(pod: &Pod) -> Vec<IpAddr> {
    if pod.is_terminal() || pod.spec.host_network { Vec::new() } else { pod.addresses() }
}

fn labels_of(service: &Service) -> impl Iterator<Item = (String, String, String)> {
    let namespace = &service.metadata.namespace;
    service.spec.selector.iter().map(|(key, value)| (namespace.clone(), key.clone(), value.clone()))
}

fn take<K: std::hash::Hash + Eq>(
    table: &mut HashMap<K, Vec<SharedObject>>,
    key: &K,
    same: impl Fn(&SharedObject) -> bool,
) {
    if let Some(list) = table.get_mut(key) {
        list.retain(|held| !same(held));
        if list.is_empty() {
            table.remove(key);
        }
    }
}
