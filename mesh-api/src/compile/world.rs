//! The objects of a mesh, sorted for looking up.

use std::collections::{BTreeMap, HashMap};

use crate::resource::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, Labels, Namespace, Node, Object, PeerAuthentication,
    Pod, Service,
};

/// All objects that a mesh is compiled from, by reference. Collect them into one.
#[derive(Debug, Default)]
pub struct World<'a> {
    pub(super) namespaces: HashMap<&'a str, &'a Namespace>,
    pub(super) nodes: HashMap<&'a str, &'a Node>,
    /// By namespace and name.
    pub(super) pods: BTreeMap<(&'a str, &'a str), &'a Pod>,
    pub(super) services: Vec<&'a Service>,
    pub(super) slices: Vec<&'a EndpointSlice>,
    pub(super) authorization_policies: Vec<&'a AuthorizationPolicy>,
    pub(super) peer_authentications: Vec<&'a PeerAuthentication>,
    pub(super) destination_rules: Vec<&'a DestinationRule>,
}

impl<'a> World<'a> {
    /// Labels of a namespace; none if it is not known.
    pub(super) fn namespace_labels(&self, name: &str) -> &'a Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(name).map_or(&NONE, |namespace| &namespace.metadata.labels)
    }

    /// Pods that take part: those that have not ended.
    pub(super) fn live_pods(&self) -> impl Iterator<Item = &'a Pod> {
        self.pods.values().copied().filter(|pod| !pod.is_terminal())
    }

    /// Live pods of a namespace.
    pub(super) fn live_pods_in(&self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        let pods = self.pods.range((namespace, "")..).take_while(move |((ns, _), _)| *ns == namespace);
        pods.map(|(_, pod)| *pod).filter(|pod| !pod.is_terminal())
    }
}

impl<'a> FromIterator<&'a Object> for World<'a> {
    fn from_iter<I: IntoIterator<Item = &'a Object>>(objects: I) -> Self {
        let mut world = Self::default();
        for object in objects {
            world.add(object);
        }
        // The oldest first wherever one of several counts; and the same result whatever the order of files.
        world.services.sort_by_key(|service| service.metadata.age_key());
        world.slices.sort_by_key(|slice| slice.metadata.age_key());
        world.authorization_policies.sort_by_key(|policy| policy.metadata.age_key());
        world.peer_authentications.sort_by_key(|policy| policy.metadata.age_key());
        world.destination_rules.sort_by_key(|rule| rule.metadata.age_key());
        world
    }
}

impl<'a> World<'a> {
    fn add(&mut self, object: &'a Object) {
        let metadata = object.metadata();
        let (namespace, name) = (metadata.namespace.as_str(), metadata.name.as_str());
        match object {
            Object::Namespace(object) => {
                self.namespaces.insert(name, object);
            }
            Object::Node(object) => {
                self.nodes.insert(name, object);
            }
            Object::Pod(object) => {
                self.pods.insert((namespace, name), object);
            }
            Object::Service(object) => self.services.push(object),
            Object::EndpointSlice(object) => self.slices.push(object),
            Object::AuthorizationPolicy(object) => self.authorization_policies.push(object),
            Object::PeerAuthentication(object) => self.peer_authentications.push(object),
            Object::DestinationRule(object) => self.destination_rules.push(object),
            // Pods say all that matters of these.
            Object::Deployment(_) | Object::ServiceAccount(_) => {}
        }
    }
}
