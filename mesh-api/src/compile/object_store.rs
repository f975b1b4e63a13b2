//! The objects of a mesh, sorted for looking up.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::object_index::ObjectIndex;
use crate::kind::{Kind, ObjectKey, Treatment};
use crate::manifest::Located;
use crate::resource::{
    AuthorizationPolicy, DestinationRule, EndpointSlice, GRPCRoute, HTTPRoute, Labels, Metadata, Namespace,
    Node, Object, PeerAuthentication, Pod, ReferenceGrant, Service, VirtualService,
    gateway_api::GatewayRoute,
};

/// An object, shared with whoever read it.
pub type SharedObject = Arc<Located<Object>>;

/// Namespace and name.
pub(super) type NamespacedName = (String, String);

/// All objects that a mesh is compiled from.
#[derive(Debug, Default)]
pub(super) struct ObjectStore {
    /// By kind; those of kinds without namespaces have an empty one.
    kinds: [BTreeMap<NamespacedName, SharedObject>; Kind::ALL.len()],
    pub index: ObjectIndex,
}

impl ObjectStore {
    /// Puts an object in the place of whatever had its key, or takes that out. Returns what had it.
    pub fn set(&mut self, key: &ObjectKey, object: Option<&SharedObject>) -> Option<SharedObject> {
        if key.kind.table_row().treatment == Treatment::FromManifests {
            // Pods say all that matters of these.
            return None;
        }
        let objects = &mut self.kinds[key.kind as usize];
        let name = (key.namespace.clone(), key.name.clone());
        let old = match object {
            Some(object) => objects.insert(name, object.clone()),
            None => objects.remove(&name),
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
    pub fn object(&self, key: &ObjectKey) -> Option<&SharedObject> {
        self.of(key.kind).get(&(key.namespace.clone(), key.name.clone()))
    }

    /// The objects of a kind.
    fn of(&self, kind: Kind) -> &BTreeMap<NamespacedName, SharedObject> {
        &self.kinds[kind as usize]
    }

    /// Those of a namespace, by name.
    fn of_in<'a>(&'a self, kind: Kind, namespace: &'a str) -> impl Iterator<Item = &'a SharedObject> {
        let objects = self.of(kind).range((namespace.to_owned(), String::new())..);
        objects.take_while(move |((ns, _), _)| ns == namespace).map(|(_, object)| object)
    }

    /// An object of a kind that has no namespaces.
    fn of_cluster(&self, kind: Kind, name: &str) -> Option<&SharedObject> {
        self.of(kind).get(&(String::new(), name.to_owned()))
    }

    /// Labels of a namespace; none if it is not known.
    pub fn namespace_labels(&self, name: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        let namespace = self.of_cluster(Kind::Namespace, name).and_then(as_namespace);
        namespace.map_or(&NONE, |namespace| &namespace.metadata.labels)
    }

    pub fn node(&self, name: &str) -> Option<&Node> {
        self.of_cluster(Kind::Node, name).and_then(as_node)
    }

    /// A pod that takes part: that has not ended.
    pub fn live_pod(&self, name: &NamespacedName) -> Option<&Pod> {
        self.of(Kind::Pod).get(name).and_then(as_pod).filter(|pod| !pod.is_terminal())
    }

    pub fn live_pods(&self) -> impl Iterator<Item = &Pod> {
        self.of(Kind::Pod).values().filter_map(as_pod).filter(|pod| !pod.is_terminal())
    }

    /// Live pods of a namespace.
    pub fn live_pods_in<'a>(&'a self, namespace: &'a str) -> impl Iterator<Item = &'a Pod> {
        self.of_in(Kind::Pod, namespace).filter_map(as_pod).filter(|pod| !pod.is_terminal())
    }

    /// The pod that has an address alone. Should several have it, the last by name.
    pub fn pod_with_address(&self, address: IpAddr) -> Option<&Pod> {
        self.index.pods_with_address(address).max_by_key(|pod| (&pod.metadata.namespace, &pod.metadata.name))
    }

    pub fn service(&self, name: &NamespacedName) -> Option<&Service> {
        self.of(Kind::Service).get(name).and_then(as_service)
    }

    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.of(Kind::Service).values().filter_map(as_service)
    }

    pub fn slice(&self, name: &NamespacedName) -> Option<&EndpointSlice> {
        self.of(Kind::EndpointSlice).get(name).and_then(as_slice)
    }

    pub fn authorization_policy(&self, name: &NamespacedName) -> Option<&AuthorizationPolicy> {
        self.of(Kind::AuthorizationPolicy).get(name).and_then(as_authorization_policy)
    }

    /// Those of a namespace, the oldest first.
    pub fn authorization_policies_in(&self, namespace: &str) -> Vec<SharedObject> {
        let mut policies: Vec<_> = self.of_in(Kind::AuthorizationPolicy, namespace).cloned().collect();
        policies.sort_by(|a, b| a.value.metadata().age_key().cmp(&b.value.metadata().age_key()));
        policies
    }

    /// What people write for the mesh, kind by kind.
    pub fn policies(&self) -> impl Iterator<Item = &SharedObject> {
        Kind::policies().flat_map(|kind| self.of(kind).values())
    }

    /// The oldest first, as wherever one of several counts.
    pub fn peer_authentications(&self) -> Vec<&PeerAuthentication> {
        let policies = self.of(Kind::PeerAuthentication);
        by_age(policies, as_peer_authentication, |policy| &policy.metadata)
    }

    /// The oldest first.
    pub fn destination_rules(&self) -> Vec<&DestinationRule> {
        by_age(self.of(Kind::DestinationRule), as_destination_rule, |rule| &rule.metadata)
    }

    pub fn virtual_service(&self, name: &NamespacedName) -> Option<&VirtualService> {
        self.of(Kind::VirtualService).get(name).and_then(as_virtual_service)
    }

    /// The oldest first.
    pub fn virtual_services(&self) -> Vec<&VirtualService> {
        by_age(self.of(Kind::VirtualService), as_virtual_service, |service| &service.metadata)
    }

    /// The Gateway API's routes that clients in the mesh follow: the oldest first, then by namespace and
    /// name.
    pub fn gateway_routes(&self) -> Vec<(Kind, &Metadata, &GatewayRoute)> {
        let http = self.of(Kind::HTTPRoute).values().filter_map(as_http_route);
        let http = http.map(|it| (Kind::HTTPRoute, &it.metadata, &it.route));
        let grpc = self.of(Kind::GRPCRoute).values().filter_map(as_grpc_route);
        let grpc = grpc.map(|it| (Kind::GRPCRoute, &it.metadata, &it.route));
        let mut all: Vec<_> = http.chain(grpc).filter(|(_, _, route)| !route.parents.is_empty()).collect();
        all.sort_by_key(|(kind, of, _)| (of.creation_timestamp, &of.namespace, &of.name, *kind));
        all
    }

    pub fn reference_grants(&self) -> impl Iterator<Item = &ReferenceGrant> {
        self.of(Kind::ReferenceGrant).values().filter_map(as_reference_grant)
    }
}

fn by_age<'a, T>(
    table: &'a BTreeMap<NamespacedName, SharedObject>,
    of: impl Fn(&'a SharedObject) -> Option<&'a T>,
    metadata: impl Fn(&T) -> &Metadata,
) -> Vec<&'a T> {
    let mut list: Vec<&T> = table.values().filter_map(of).collect();
    list.sort_by(|a, b| metadata(a).age_key().cmp(&metadata(b).age_key()));
    list
}

/// Namespace and name of an object.
pub(super) fn namespaced_name(metadata: &Metadata) -> NamespacedName {
    (metadata.namespace.clone(), metadata.name.clone())
}

/// Makes the functions that see an object as what it is.
macro_rules! views {
    ($($function:ident: $kind:ident,)*) => {
        $(pub(super) fn $function(object: &SharedObject) -> Option<&$kind> {
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
    as_virtual_service: VirtualService,
    as_http_route: HTTPRoute,
    as_grpc_route: GRPCRoute,
    as_reference_grant: ReferenceGrant,
}
