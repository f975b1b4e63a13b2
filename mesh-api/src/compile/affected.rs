//! What a change of one object may change of the result: itself, and what is made with a look at it.

use std::collections::{BTreeMap, BTreeSet};

use super::index::{pod_named, selects, service_of};
use super::world::{
    Name, Shared, World, as_authorization_policy, as_destination_rule, as_namespace, as_node, as_pod,
    as_service, as_slice, name_of,
};
use super::{MeshConfig, host, traffic};
use crate::kind::{Kind, ObjectKey};
use crate::resource::{AuthorizationPolicy, EndpointSlice, Metadata, Node, Pod};

/// What has to be compiled again.
#[derive(Debug, Default)]
pub(super) struct Affected {
    /// Pods whose workloads may be others.
    pub pods: BTreeSet<Name>,
    /// Services.
    pub services: BTreeSet<Name>,
    /// Slices whose endpoints that are no pods may be others.
    pub slices: BTreeSet<Name>,
    /// `AuthorizationPolicy`s.
    pub policies: BTreeSet<Name>,
    /// Some `PeerAuthentication` changed.
    pub mutual_tls: bool,
    /// Some `DestinationRule` changed.
    pub traffic: bool,
    /// Services of slices that change, and whether each had any slice before.
    had_slices: BTreeMap<Name, bool>,
}

impl Affected {
    /// To be told of every change before the world has it.
    pub fn note_slices(&mut self, world: &World, change: [Option<&Shared>; 2]) {
        for service in change.into_iter().flatten().filter_map(as_slice).filter_map(service_of) {
            let had = world.index.has_slices(&service);
            self.had_slices.entry(service).or_insert(had);
        }
    }

    /// The first slice of a service takes its selector out of force, and the last one that goes puts it back.
    pub fn add_turned(&mut self, world: &World) {
        let turned = self.had_slices.iter().filter(|(service, had)| world.index.has_slices(service) != **had);
        for service in turned.filter_map(|(service, _)| world.service(service)) {
            let pods = world.live_pods_in(&service.metadata.namespace);
            let selected = pods.filter(|pod| selects(service, &pod.metadata));
            self.pods.extend(selected.map(|pod| name_of(&pod.metadata)));
        }
    }

    /// Adds what a change affects. The world has the new object already, and no more the old one.
    pub fn add(&mut self, world: &World, mesh: &MeshConfig, key: &ObjectKey, change: [Option<&Shared>; 2]) {
        let name = (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Pod => self.pod(world, name, change),
            Kind::Service => self.service(world, name, change),
            Kind::EndpointSlice => self.slice(world, name, change),
            Kind::Namespace => self.namespace(world, &key.name, change),
            Kind::Node => self.node(world, &key.name, change),
            Kind::AuthorizationPolicy => self.authorization(world, mesh, name, change),
            Kind::PeerAuthentication => {
                self.mutual_tls = true;
                self.pods_in_scope(world, mesh, &key.namespace, |_| true);
            }
            Kind::DestinationRule => self.rule(world, mesh, &key.namespace, change),
            // Nothing is made of the others; tests/kinds.rs knows which these are.
            _ => {}
        }
    }

    fn pod(&mut self, world: &World, name: Name, change: [Option<&Shared>; 2]) {
        let addresses = change.into_iter().flatten().filter_map(as_pod).flat_map(Pod::addresses);
        for address in addresses.collect::<BTreeSet<_>>() {
            let mut named_by_address = false;
            for slice in world.index.slices_with(address) {
                named_by_address = true;
                self.slices.insert(name_of(&slice.metadata));
            }
            if named_by_address {
                self.pods.extend(world.index.pods_at(address).map(|pod| name_of(&pod.metadata)));
            }
        }
        self.pods.insert(name);
    }

    fn service(&mut self, world: &World, name: Name, change: [Option<&Shared>; 2]) {
        for slice in world.index.slices_of(&name) {
            self.slices.insert(name_of(&slice.metadata));
            self.pods_of_slice(world, slice);
        }
        for service in change.into_iter().flatten().filter_map(as_service) {
            let pods = world.live_pods_in(&name.0).filter(|pod| selects(service, &pod.metadata));
            self.pods.extend(pods.map(|pod| name_of(&pod.metadata)));
        }
        self.services.insert(name);
    }

    fn slice(&mut self, world: &World, name: Name, change: [Option<&Shared>; 2]) {
        for slice in change.into_iter().flatten().filter_map(as_slice) {
            self.pods_of_slice(world, slice);
        }
        self.slices.insert(name);
    }

    fn pods_of_slice(&mut self, world: &World, slice: &EndpointSlice) {
        for endpoint in &slice.endpoints {
            if let Some(pod) = pod_named(endpoint) {
                self.pods.insert((slice.metadata.namespace.clone(), pod.to_owned()));
            } else {
                let pods =
                    endpoint.ip_addresses().into_iter().flat_map(|address| world.index.pods_at(address));
                self.pods.extend(pods.map(|pod| name_of(&pod.metadata)));
            }
        }
    }

    fn namespace(&mut self, world: &World, name: &str, change: [Option<&Shared>; 2]) {
        let [old, new] = change.map(|it| it.and_then(as_namespace).map(|it| &it.metadata.labels));
        if old != new {
            self.pods.extend(world.live_pods_in(name).map(|pod| name_of(&pod.metadata)));
        }
    }

    /// Nodes change every few seconds, but not where they are.
    fn node(&mut self, world: &World, name: &str, change: [Option<&Shared>; 2]) {
        let [old, new] = change.map(|it| it.and_then(as_node).map(Node::locality));
        if old != new {
            let pods = world.live_pods().filter(|pod| pod.spec.node_name == name);
            self.pods.extend(pods.map(|pod| name_of(&pod.metadata)));
        }
    }

    fn authorization(&mut self, world: &World, mesh: &MeshConfig, name: Name, change: [Option<&Shared>; 2]) {
        let selected = |policy: &AuthorizationPolicy, pod: &Metadata| {
            policy.selector.as_ref().is_some_and(|selector| selector.matches(&pod.labels))
        };
        let selecting = change.into_iter().flatten().filter_map(as_authorization_policy);
        for policy in selecting.filter(|policy| policy.selector.is_some()) {
            self.pods_in_scope(world, mesh, &name.0, |pod| selected(policy, pod));
        }
        self.policies.insert(name);
    }

    fn rule(&mut self, world: &World, mesh: &MeshConfig, namespace: &str, change: [Option<&Shared>; 2]) {
        self.traffic = true;
        for rule in change.into_iter().flatten().filter_map(as_destination_rule) {
            let services = world.services().map(|service| name_of(&service.metadata));
            let fitting = services.filter(|(namespace, name)| {
                traffic::is_about(rule, &host::of_service(name, namespace, mesh), mesh)
            });
            self.services.extend(fitting);
            if rule.workload_selector.is_some() {
                // Workloads show the labels that rules of their namespace ask about.
                self.pods.extend(world.live_pods_in(namespace).map(|pod| name_of(&pod.metadata)));
            }
        }
    }

    /// The pods that policies of a namespace are for.
    fn pods_in_scope(
        &mut self,
        world: &World,
        mesh: &MeshConfig,
        namespace: &str,
        concerned: impl Fn(&Metadata) -> bool,
    ) {
        let mut add = |pod: &Pod| {
            if concerned(&pod.metadata) {
                self.pods.insert(name_of(&pod.metadata));
            }
        };
        if namespace == mesh.root_namespace {
            world.live_pods().for_each(&mut add);
        } else {
            world.live_pods_in(namespace).for_each(&mut add);
        }
    }
}
