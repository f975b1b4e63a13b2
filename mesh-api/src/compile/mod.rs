//! From resources to what node agents are sent.
//!
//! The result is a pure function of the objects and the mesh's settings. A [`Compiler`] holds the objects
//! and, on each change, makes again what the change affects; [`compile`] makes all of it. The result is in
//! Istio's ambient types ([`wire::workload`], [`wire::security`]), filled as istiod fills them. What a policy
//! says that these types cannot carry is reported as a [`Condition`], never dropped in silence.
//!
//! Reading order: `object_store` sorts the objects, `object_index` has the ways between them, `affected` says
//! what a change affects and `compiler` makes that: `service_membership` finds which pods are behind which
//! service, `workload` and `service` make the addresses, `policy` the authorizations, `destination_rules` the
//! rules for clients, `virtual_services` and `gateway_routes` their routes.

mod affected;
mod asked_labels;
mod canonical_names;
mod compiler;
mod condition;
mod destination_rules;
mod gateway_routes;
mod object_index;
mod object_store;
mod policy;
mod service;
mod service_host;
mod service_membership;
mod traffic_policies;
mod virtual_services;
mod workload;

use std::{collections::BTreeMap, net::IpAddr};

pub use compiler::{Compiler, ObjectChange, ResourceUpdate};
pub use condition::{Condition, ConditionEffect, RouteFault};
pub use object_store::SharedObject;

use crate::wire;

/// Settings that hold for the whole mesh.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MeshConfig {
    /// Trust domain of every identity.
    pub trust_domain: String,
    /// Namespace whose policies apply to the whole mesh.
    pub root_namespace: String,
    /// DNS domain of services.
    pub cluster_domain: String,
    /// Name of the cluster.
    pub cluster_id: String,
    /// Name of the network that all pods are on; empty is Istio's default.
    pub network: String,
}

impl Default for MeshConfig {
    /// Istio's defaults.
    fn default() -> Self {
        Self {
            trust_domain: "cluster.local".to_owned(),
            root_namespace: "istio-system".to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            cluster_id: "Kubernetes".to_owned(),
            network: String::new(),
        }
    }
}

/// What the agents are to know, by resource name.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Compiled {
    /// Workloads by uid, services by `namespace/hostname`.
    pub addresses: BTreeMap<String, wire::workload::Address>,
    /// Policies by `namespace/name`.
    pub authorizations: BTreeMap<String, wire::security::Authorization>,
    /// What is not in force as it was written.
    pub conditions: Vec<Condition>,
}

/// Compiles all objects of a mesh.
pub fn compile(objects: impl IntoIterator<Item = SharedObject>, mesh: &MeshConfig) -> Compiled {
    let mut compiler = Compiler::new(mesh.clone());
    let mut compiled = Compiled::default();
    let changes = objects.into_iter().map(|it| ObjectChange { key: it.value.key(), object: Some(it) });
    compiler.apply(changes, |output| match output {
        ResourceUpdate::Address(name, Some(address)) => drop(compiled.addresses.insert(name, *address)),
        ResourceUpdate::Authorization(name, Some(policy)) => {
            drop(compiled.authorizations.insert(name, policy));
        }
        ResourceUpdate::Address(_, None) | ResourceUpdate::Authorization(_, None) => {}
    });
    compiled.conditions = compiler.conditions();
    compiled
}

/// An address as the wire types carry it: 4 or 16 bytes.
fn octets(address: IpAddr) -> Vec<u8> {
    match address.to_canonical() {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests;
