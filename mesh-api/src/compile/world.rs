//! The objects of a mesh, sorted for looking up.

use std::collections::{BTreeMap, HashMap};
use std::net::IpAddr;
use std::sync::Arc;

use super::index::Index;
use crate::manifest::{Kind, Located, ObjectKey};
use crate::resource::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, Labels, Metadata, Namespace, Node, Object,
    PeerAuthentication, Pod, Service,
};

/// An object, shared with whoever read it.
pub type Shared = Arc<Located<Object>>;

/// Namespace and name.
pub(super) type Name = (String, String);

/// All objects that a mesh is compiled from.
#[derive(Debug, Default)]
pub(super) struct World {
    namespaces: HashMap<String, Shared>,
    nodes: HashMap<String, Shared>,
    pods: BTreeMap<Name, Shared>,
    services: BTreeMap<Name, Shared>,
    slices: BTreeMap<Name, Shared>,
    authorization_policies: BTreeMap<Name, Shared>,
    peer_authentications: BTreeMap<Name, Shared>,
    destination_rules: BTreeMap<Name, Shared>,
    pub index: Index,
}

impl World {
    /// Puts an object in the place of whatever had its key, or takes that out. Returns what had it.
    pub fn set(&mut self, key: &ObjectKey, object: Option<&Shared>) -> Option<Shared> {
        let name = (key.namespace.clone(), key.name.clone());
        let old = match key.kind {
            Kind::Namespace => set(&mut self.namespaces, name.1, object.cloned()),
            Kind::Node => set(&mut self.nodes, name.1, object.cloned()),
            Kind::Pod => put(&mut self.pods, name, object.cloned()),
            Kind::Service => put(&mut self.services, name, object.cloned()),
            Kind::EndpointSlice => put(&mut self.slices, name, object.cloned()),
            Kind::AuthorizationPolicy => put(&mut self.authorization_policies, name, object.cloned()),
            Kind::PeerAuthentication => put(&mut self.peer_authentications, name, object.cloned()),
            Kind::DestinationRule => put(&mut self.destination_rules, name, object.cloned()),
            // Pods say all that matters of these.
            Kind::Deployment | Kind::ServiceAccount => None,
        };
        if let Some(old) = &old {
            self.index.remove(old);
        }
        if let Some(new) = object {
            self.index.add(new);
        }
        old
    }

    /// The object that has a key.
    pub fn object(&self, key: &ObjectKey) -> Option<&Shared> {
        let name = || (key.namespace.clone(), key.name.clone());
        match key.kind {
            Kind::Namespace => self.namespaces.get(&key.name),
            Kind::Node => self.nodes.get(&key.name),
            Kind::Pod => self.pods.get(&name()),
            Kind::Service => self.services.get(&name()),
            Kind::EndpointSlice => self.slices.get(&name()),
            Kind::AuthorizationPolicy => self.authorization_policies.get(&name()),
            Kind::PeerAuthentication => self.peer_authentications.get(&name()),
            Kind::DestinationRule => self.destination_rules.get(&name()),
            Kind::Deployment | Kind::ServiceAccount => None,
        }
    }

    /// Labels of a namespace; none if it is not known.
    pub fn namespace_labels(&self, name: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.namespaces.get(name).and_then(as_namespace).map_or(&NONE, |namespace| &namespace.metadata.labels)
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.get(name).and_then(as_node)
    }

    /// A pod that takes part: that has not ended.
    pub fn live_pod(&self, name: &Name) -> Option<&Pod> {
        self.pods.get(name).and_then(as_pod).filter(|pod| !pod.is_terminal())
    }

    pub fn live_pods(&self) -> impl Iterator<Item = &Pod> {
        self.pods.values().filter_map(as_pod).filter(|pod| !pod.is_terminal())
    }

    /// Live pods of a namespace.
    pub fn live_pods_in(&self, namespace: &str) -> impl Iterator<Item = &Pod> {
        let pods = self.pods.range((namespace.to_owned(), String::new())..);
        let pods = pods.take_while(move |((ns, _), _)| ns == namespace);
        pods.filter_map(|(_, pod)| as_pod(pod)).filter(|pod| !pod.is_terminal())
    }

    /// The pod that has an address alone. Should several have it, the last by name.
    pub fn pod_at(&self, address: IpAddr) -> Option<&Pod> {
        self.index.pods_at(address).max_by_key(|pod| (&pod.metadata.namespace, &pod.metadata.name))
    }

    pub fn service(&self, name: &Name) -> Option<&Service> {
        self.services.get(name).and_then(as_service)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.values().filter_map(as_service)
    }

    pub fn slice(&self, name: &Name) -> Option<&EndpointSlice> {
        self.slices.get(name).and_then(as_slice)
    }

    pub fn authorization_policy(&self, name: &Name) -> Option<&AuthorizationPolicy> {
        self.authorization_policies.get(name).and_then(as_authorization_policy)
    }

    /// Those of a namespace, the oldest first.
    pub fn authorization_policies_in(&self, namespace: &str) -> Vec<Shared> {
        let policies = self.authorization_policies.range((namespace.to_owned(), String::new())..);
        let policies = policies.take_while(|((ns, _), _)| ns == namespace).map(|(_, policy)| policy.clone());
        let mut policies: Vec<_> = policies.collect();
        policies.sort_by(|a, b| a.value.metadata().age_key().cmp(&b.value.metadata().age_key()));
        policies
    }

    /// What people write for the mesh, kind by kind.
    pub fn policies(&self) -> impl Iterator<Item = &Shared> {
        let kinds = [&self.authorization_policies, &self.peer_authentications, &self.destination_rules];
        kinds.into_iter().flat_map(BTreeMap::values)
    }

    /// The oldest first, as wherever one of several counts.
    pub fn peer_authentications(&self) -> Vec<&PeerAuthentication> {
        by_age(&self.peer_authentications, as_peer_authentication, |policy| &policy.metadata)
    }

    /// The oldest first.
    pub fn destination_rules(&self) -> Vec<&DestinationRule> {
        by_age(&self.destination_rules, as_destination_rule, |rule| &rule.metadata)
    }
}

fn put(table: &mut BTreeMap<Name, Shared>, name: Name, object: Option<Shared>) -> Option<Shared> {
    match object {
        Some(object) => table.insert(name, object),
        None => table.remove(&name),
    }
}

fn set(table: &mut HashMap<String, Shared>, name: String, object: Option<Shared>) -> Option<Shared> {
    match object {
        Some(object) => table.insert(name, object),
        None => table.remove(&name),
    }
}

fn by_age<'a, T>(
    table: &'a BTreeMap<Name, Shared>,
    of: impl Fn(&'a Shared) -> Option<&'a T>,
    metadata: impl Fn(&T) -> &Metadata,
) -> Vec<&'a T> {
    let mut list: Vec<&T> = table.values().filter_map(of).collect();
    list.sort_by(|a, b| metadata(a).age_key().cmp(&metadata(b).age_key()));
    list
}

/// Namespace and name of an object.
pub(super) fn name_of(metadata: &Metadata) -> Name {
    (metadata.namespace.clone(), metadata.name.clone())
}

/// Makes the functions that see an object as what it is.
macro_rules! views {
    ($($function:ident: $kind:ident,)*) => {
        $(pub(super) fn $function(object: &Shared) -> Option<&$kind> {
            match &object.value {
                Object::$kind(object) => Some(object),
                _ => None,
            }
        })*
    };
}

views! {
    as_namespace: Namespace,
    as_node: Node,
    as_pod: Pod,
    as_service: Service,
    as_slice: EndpointSlice,
    as_authorization_policy: AuthorizationPolicy,
    as_peer_authentication: PeerAuthentication,
    as_destination_rule: DestinationRule,
}
