//! Takes the resources that the control plane sent: keeps the good ones, reports the bad ones.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;

use prost_types::Any;

use super::blocking_waypoint::WaypointHandling;
use super::compact_workloads_and_services::{CompactService, CompactWorkload};
use super::field_parsing::{self, Invalid};
use super::mesh_index::MeshIndexEditor;
use super::policy::{Policy, PolicyEditor};
use super::snapshot::Snapshot;
use super::xds_resource_type::XdsResourceType;
use crate::persistent_table::PersistentTable;
use crate::wire::type_url;
use crate::wire::workload::address::Type as AddressType;
use crate::wire::xds::{DeltaDiscoveryResponse, Resource};
use crate::wire::{security, workload};

/// Holds the resources of a discovery stream, across reconnects. Belongs to one task; others get
/// [`Snapshot`]s.
#[derive(Debug, Default)]
pub struct Store {
    generation: u64,
    changed: bool,
    index: MeshIndexEditor,
    policies: PolicyEditor,
    authorizations: Authorizations,
    waypoints: WaypointHandling,
}

type Authorizations = BTreeMap<String, Held>;

/// The contents of a [`Store`] at one moment. They share with the store what did not change since.
#[derive(Clone, Debug)]
pub struct StoredResources {
    workloads: PersistentTable<Arc<CompactWorkload>>,
    services: Vec<Arc<CompactService>>,
    authorizations: Authorizations,
}

/// A policy as it came. There are few; workloads and services, of which there are many, are held smaller by
/// the index.
#[derive(Clone, Debug)]
struct Held {
    version: String,
    bytes: Arc<[u8]>,
}

/// A resource that was not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RejectedResource {
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub reason: Invalid,
}

impl fmt::Display for RejectedResource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.name, self.reason)
    }
}

impl StoredResources {
    /// Iterates over all resources of a type, in no order, encoding one at a time. Another store that applies
    /// them is equal.
    pub fn resources(&self, resource_type: &XdsResourceType) -> Box<dyn Iterator<Item = Resource> + '_> {
        (resource_type.resources)(self)
    }

    /// Returns everything held as responses of one type each, with at most `most` resources, made one by one:
    /// a whole type of a large mesh would take more memory than holding it.
    pub fn discovery_responses(&self, most: usize) -> impl Iterator<Item = DeltaDiscoveryResponse> {
        XdsResourceType::ALL.into_iter().flat_map(move |of| {
            let mut all = self.resources(&of);
            std::iter::from_fn(move || {
                let resources: Vec<_> = all.by_ref().take(most).collect();
                let type_url = of.type_url.to_owned();
                let response = DeltaDiscoveryResponse { type_url, resources, ..Default::default() };
                (!response.resources.is_empty()).then_some(response)
            })
        })
    }

    pub(super) fn address_resources(&self) -> Box<dyn Iterator<Item = Resource> + '_> {
        let workloads = self.workloads.iter().map(|compact| compact.to_resource());
        Box::new(workloads.chain(self.services.iter().map(|compact| compact.to_resource())))
    }

    pub(super) fn authorization_resources(&self) -> Box<dyn Iterator<Item = Resource> + '_> {
        let resource = |(name, held): (&String, &Held)| {
            let (type_url, value) = (type_url::AUTHORIZATION.to_owned(), held.bytes.to_vec());
            let resource = Some(Any { type_url, value });
            Resource { name: name.clone(), version: held.version.clone(), resource, aliases: Vec::new() }
        };
        Box::new(self.authorizations.iter().map(resource))
    }
}

impl Store {
    /// Sets how its snapshots treat waypoints.
    #[must_use]
    pub fn with_waypoint_handling(self, waypoints: WaypointHandling) -> Self {
        Self { waypoints, ..self }
    }

    /// Applies one response. Bad resources are returned; those held under their names stay in force.
    ///
    /// The exception is a policy that can't be parsed, if none was held under its name: without it too much
    /// could be allowed, so it denies wherever it applies until a good one comes.
    pub fn apply_response(
        &mut self,
        type_url: &str,
        resources: Vec<Resource>,
        removed: Vec<String>,
    ) -> Vec<RejectedResource> {
        let Some(resource_type) = XdsResourceType::from_type_url(type_url) else {
            let reason = Invalid::UnknownType { type_url: type_url.to_owned() };
            let rejected =
                |resource: Resource| RejectedResource { name: resource.name, reason: reason.clone() };
            return resources.into_iter().map(rejected).collect();
        };
        for name in removed {
            (resource_type.remove)(self, &name);
        }
        let mut rejected = Vec::new();
        for resource in resources {
            if let Err(reason) = (resource_type.insert)(self, &resource) {
                rejected.push(RejectedResource { name: resource.name, reason });
            }
        }
        rejected
    }

    /// Returns name and version of all resources of a type, for the control plane after a reconnect.
    pub fn resource_versions(&self, resource_type: &XdsResourceType) -> HashMap<String, String> {
        (resource_type.versions)(self)
    }

    pub(super) fn address_versions(&self) -> HashMap<String, String> {
        let workloads = self.index.all_workloads().map(|it| (it.uid(), it.version().to_string()));
        let services = self.index.services().map(|it| (it.key.to_string(), it.version.to_string()));
        workloads.chain(services).collect()
    }

    pub(super) fn authorization_versions(&self) -> HashMap<String, String> {
        self.authorizations.iter().map(|(name, held)| (name.clone(), held.version.clone())).collect()
    }

    /// Returns everything that is held, for reading without a lock.
    pub fn contents(&self) -> StoredResources {
        StoredResources {
            workloads: self.index.clone_workloads(),
            services: self.index.services().cloned().collect(),
            authorizations: self.authorizations.clone(),
        }
    }

    /// Returns the present state, with a new generation if anything changed since the last one.
    pub fn snapshot(&mut self) -> Snapshot {
        if std::mem::take(&mut self.changed) || self.generation == 0 {
            self.generation += 1;
        }
        self.snapshot_of(self.generation)
    }

    /// Returns the present state as generation 0: any state of another store is newer.
    pub fn snapshot_as_generation_0(&mut self) -> Snapshot {
        self.snapshot_of(0)
    }

    fn snapshot_of(&mut self, generation: u64) -> Snapshot {
        Snapshot {
            generation,
            index: self.index.snapshot(),
            policies: self.policies.snapshot(),
            waypoints: self.waypoints,
        }
    }

    pub(super) fn insert_address(&mut self, resource: &Resource) -> Result<(), Invalid> {
        let any = resource.resource.as_ref().ok_or(Invalid::NoContent)?;
        let address: workload::Address = field_parsing::unpack_any(any, type_url::ADDRESS)?;
        // A name may change from a service to a workload or back: the type has one space of names.
        self.changed |= match address.r#type.ok_or(Invalid::NoContent)? {
            AddressType::Workload(workload) => {
                field_parsing::require_non_empty("uid", &workload.uid)?;
                check_name(resource, &workload.uid)?;
                let changed = self.index.insert_workload(workload, &resource.version)?;
                self.index.remove_service(&resource.name) | changed
            }
            AddressType::Service(service) => {
                field_parsing::require_non_empty("namespace", &service.namespace)?;
                field_parsing::require_non_empty("hostname", &service.hostname)?;
                check_name(resource, &format!("{}/{}", service.namespace, service.hostname))?;
                let changed = self.index.insert_service(service, &resource.version)?;
                self.index.remove_workload(&resource.name) | changed
            }
        };
        Ok(())
    }

    pub(super) fn remove_address(&mut self, name: &str) {
        self.changed |= self.index.remove_workload(name) || self.index.remove_service(name);
    }

    pub(super) fn insert_authorization(&mut self, resource: &Resource) -> Result<(), Invalid> {
        let any = resource.resource.as_ref().ok_or(Invalid::NoContent)?;
        let wire: security::Authorization = field_parsing::unpack_any(any, type_url::AUTHORIZATION)?;
        check_name(resource, &format!("{}/{}", wire.namespace, wire.name))?;
        let policy = Policy::try_from(wire)?;
        let fault = policy.parse_error().cloned();
        if let Some(fault) = fault {
            if !self.policies.contains_valid(policy.namespaced_name()) {
                self.changed |= self.policies.insert(policy);
                // Listed after a reconnect so that its removal is told, but not as a version that was
                // accepted.
                hold(&mut self.authorizations, &resource.name, "", any);
            }
            return Err(fault);
        }
        self.changed |= self.policies.insert(policy);
        hold(&mut self.authorizations, &resource.name, &resource.version, any);
        Ok(())
    }

    pub(super) fn remove_authorization(&mut self, name: &str) {
        self.changed |= self.policies.remove(name);
        self.authorizations.remove(name);
    }
}

fn hold(table: &mut BTreeMap<String, Held>, name: &str, version: &str, any: &Any) {
    let held = Held { version: version.to_owned(), bytes: any.value.as_slice().into() };
    table.insert(name.to_owned(), held);
}

fn check_name(resource: &Resource, content: &str) -> Result<(), Invalid> {
    if resource.name == content { Ok(()) } else { Err(Invalid::Name { content: content.to_owned() }) }
}

#[cfg(test)]
mod tests;
