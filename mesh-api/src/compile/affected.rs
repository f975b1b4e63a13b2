//! What a change of one object may change of the result: itself, and what is made with a look at it.

use std::collections::{BTreeMap, BTreeSet};

use super::object_index::{pod_name_of_endpoint, service_name_of_slice, service_selects_pod};
use super::object_store::{
    NamespacedName, ObjectStore, SharedObject, as_authorization_policy, as_destination_rule, as_namespace,
    as_node, as_pod, as_service, as_slice, as_virtual_service, namespaced_name,
};
use super::{MeshConfig, destination_rules, service_host, virtual_services};
use crate::kind::{Kind, ObjectKey};
use crate::resource::{AuthorizationPolicy, EndpointSlice, Metadata, Node, Pod};

/// What has to be compiled again.
#[derive(Debug, Default)]
#[expect(clippy::struct_excessive_bools, reason = "each says that some object of a kind changed")]
pub(super) struct AffectedObjects {
    /// Pods whose workloads may be others.
    pub pods: BTreeSet<NamespacedName>,
    /// Services.
    pub services: BTreeSet<NamespacedName>,
    /// Slices whose endpoints that are no pods may be others.
    pub slices: BTreeSet<NamespacedName>,
    /// `AuthorizationPolicy`s.
    pub policies: BTreeSet<NamespacedName>,
    /// Some `PeerAuthentication` changed.
    pub mutual_tls: bool,
    /// Some `DestinationRule` changed.
    pub traffic: bool,
    /// Some `VirtualService` changed.
    pub routes: bool,
    /// Some route of the Gateway API, or some grant, changed. Which services that is for the compiler knows
    /// when it has resolved all of them.
    pub gateway_routes: bool,
    /// Nodes that are elsewhere now.
    moved_nodes: BTreeSet<String>,
    /// Services of slices that change, and whether each had any slice before.
    had_slices: BTreeMap<NamespacedName, bool>,
}

impl AffectedObjects {
    /// To be told of every change before the store has it.
    pub fn record_slices_before_change(&mut self, objects: &ObjectStore, change: [Option<&SharedObject>; 2]) {
        for service in change.into_iter().flatten().filter_map(as_slice).filter_map(service_name_of_slice) {
            let had = objects.index.has_slices(&service);
            self.had_slices.entry(service).or_insert(had);
        }
    }

    /// The first slice of a service takes its selector out of force, and the last one that goes puts it back.
    pub fn add_pods_of_switched_selectors(&mut self, objects: &ObjectStore) {
        let turned =
            self.had_slices.iter().filter(|(service, had)| objects.index.has_slices(service) != **had);
        for service in turned.filter_map(|(service, _)| objects.service(service)) {
            let pods = objects.live_pods_in(&service.metadata.namespace);
            let selected = pods.filter(|pod| service_selects_pod(service, &pod.metadata));
            self.pods.extend(selected.map(|pod| namespaced_name(&pod.metadata)));
        }
    }

    /// Adds what a change affects. The store has the new object already, and no more the old one.
    pub fn add_change(
        &mut self,
        objects: &ObjectStore,
        mesh: &MeshConfig,
        key: &ObjectKey,
        change: [Option<&SharedObject>; 2],
    ) {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Pod => self.pod(objects, name, change),
            Kind::Service => self.service(objects, name, change),
            Kind::EndpointSlice => self.slice(objects, name, change),
            Kind::Namespace => self.namespace(objects, &key.name, change),
            Kind::Node => self.node(&key.name, change),
            Kind::AuthorizationPolicy => self.authorization(objects, mesh, name, change),
            Kind::PeerAuthentication => {
                self.mutual_tls = true;
                self.pods_in_scope(objects, mesh, &key.namespace, |_| true);
            }
            Kind::DestinationRule => self.rule(objects, mesh, change),
            Kind::VirtualService => {
                self.routes = true;
                for service in change.into_iter().flatten().filter_map(as_virtual_service) {
                    self.services.extend(virtual_services::services_named_by(service, objects, mesh));
                }
            }
            Kind::HTTPRoute | Kind::GRPCRoute | Kind::ReferenceGrant => self.gateway_routes = true,
            // Nothing is made of the others; tests/kinds.rs knows which these are.
            _ => {}
        }
    }

    fn pod(&mut self, objects: &ObjectStore, name: NamespacedName, change: [Option<&SharedObject>; 2]) {
        let addresses = change.into_iter().flatten().filter_map(as_pod).flat_map(Pod::addresses);
        for address in addresses.collect::<BTreeSet<_>>() {
            let mut named_by_address = false;
            for slice in objects.index.slices_with_address(address) {
                named_by_address = true;
                self.slices.insert(namespaced_name(&slice.metadata));
            }
            if named_by_address {
                self.pods.extend(
                    objects.index.pods_with_address(address).map(|pod| namespaced_name(&pod.metadata)),
                );
            }
        }
        self.pods.insert(name);
    }

    fn service(&mut self, objects: &ObjectStore, name: NamespacedName, change: [Option<&SharedObject>; 2]) {
        for slice in objects.index.slices_of_service(&name) {
            self.slices.insert(namespaced_name(&slice.metadata));
            self.pods_of_slice(objects, slice);
        }
        for service in change.into_iter().flatten().filter_map(as_service) {
            let pods =
                objects.live_pods_in(&name.0).filter(|pod| service_selects_pod(service, &pod.metadata));
            self.pods.extend(pods.map(|pod| namespaced_name(&pod.metadata)));
        }
        self.services.insert(name);
    }

    fn slice(&mut self, objects: &ObjectStore, name: NamespacedName, change: [Option<&SharedObject>; 2]) {
        for slice in change.into_iter().flatten().filter_map(as_slice) {
            self.pods_of_slice(objects, slice);
        }
        self.slices.insert(name);
    }

    fn pods_of_slice(&mut self, objects: &ObjectStore, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            if let Some(pod) = pod_name_of_endpoint(endpoint) {
                self.pods.insert((slice.metadata.namespace.clone(), pod.to_owned()));
            } else {
                let pods = endpoint
                    .ip_addresses()
                    .into_iter()
                    .flat_map(|address| objects.index.pods_with_address(address));
                self.pods.extend(pods.map(|pod| namespaced_name(&pod.metadata)));
            }
        }
    }

    fn namespace(&mut self, objects: &ObjectStore, name: &str, change: [Option<&SharedObject>; 2]) {
        let [old, new] = change.map(|it| it.and_then(as_namespace).map(|it| &it.metadata.labels));
        if old != new {
            self.pods.extend(objects.live_pods_in(name).map(|pod| namespaced_name(&pod.metadata)));
        }
    }

    /// Nodes change every few seconds, but not where they are.
    fn node(&mut self, name: &str, change: [Option<&SharedObject>; 2]) {
        let [old, new] = change.map(|it| it.and_then(as_node).map(Node::locality));
        if old != new {
            self.moved_nodes.insert(name.to_owned());
        }
    }

    /// Adds the pods of the nodes that changes have moved: one look at all pods, however many nodes these
    /// are.
    pub fn add_pods_of_moved_nodes(&mut self, objects: &ObjectStore) {
        if !self.moved_nodes.is_empty() {
            let pods = objects.live_pods().filter(|pod| self.moved_nodes.contains(&pod.spec.node_name));
            self.pods.extend(pods.map(|pod| namespaced_name(&pod.metadata)));
        }
    }

    fn authorization(
        &mut self,
        objects: &ObjectStore,
        mesh: &MeshConfig,
        name: NamespacedName,
        change: [Option<&SharedObject>; 2],
    ) {
        let selected = |policy: &AuthorizationPolicy, pod: &Metadata| {
            policy.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
        };
        let selecting = change.into_iter().flatten().filter_map(as_authorization_policy);
        for policy in selecting.filter(|policy| policy.selector.is_some()) {
            self.pods_in_scope(objects, mesh, &name.0, |pod| selected(policy, pod));
        }
        self.policies.insert(name);
    }

    /// Of pods that are to show other labels the compiler knows when it has joined all rules.
    fn rule(&mut self, objects: &ObjectStore, mesh: &MeshConfig, change: [Option<&SharedObject>; 2]) {
        self.traffic = true;
        for rule in change.into_iter().flatten().filter_map(as_destination_rule) {
            let services = objects.services().map(|service| namespaced_name(&service.metadata));
            let fitting = services.filter(|(namespace, name)| {
                destination_rules::rule_covers_host(
                    rule,
                    &service_host::service_hostname(name, namespace, mesh),
                    mesh,
                )
            });
            self.services.extend(fitting);
        }
    }

    /// The pods that policies of a namespace are for.
    fn pods_in_scope(
        &mut self,
        objects: &ObjectStore,
        mesh: &MeshConfig,
        namespace: &str,
        concerned: impl Fn(&Metadata) -> bool,
    ) {
        let mut add = |pod: &Pod| {
            if concerned(&pod.metadata) {
                self.pods.insert(namespaced_name(&pod.metadata));
            }
        };
        if namespace == mesh.root_namespace {
            objects.live_pods().for_each(&mut add);
        } else {
            objects.live_pods_in(namespace).for_each(&mut add);
        }
    }
}
