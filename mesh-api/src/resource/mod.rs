//! The objects that users write, typed and checked.
//!
//! Kubernetes' own kinds are read leniently (the API server has checked them, and knows more fields than we
//! do); Istio's and the Gateway API's are read strictly, since a misspelt field of a policy is a hole in it.

mod authorization_policy;
mod deployment;
mod destination_rule;
pub mod egress;
mod endpoint_slice;
pub mod enrolment;
mod export_to;
pub mod gateway_api;
mod host;
mod lenient;
mod metadata;
mod namespace;
mod network;
mod node;
mod pattern;
mod peer_authentication;
pub mod pod;
mod selector;
mod service;
mod service_entry;
mod shared_labels;
pub mod virtual_service;

pub use authorization_policy::{
    Action, AuthorizationPolicy, Operation, Rule, ServiceAccountRef, Source, TargetRef, When, WhenValue,
};
pub use deployment::{Deployment, DeploymentSpec, PodTemplate};
pub use destination_rule::{
    ConnectionPool, DestinationRule, HashCookie, HashKey, HttpPool, LoadBalancer, OutlierDetection,
    RetryBudget, Subset, TcpKeepalive, TrafficPolicy, TrafficSettings,
};
pub use endpoint_slice::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice, TargetReference};
pub use gateway_api::{GRPCRoute, HTTPRoute, ReferenceGrant};
pub use metadata::{Metadata, OwnerReference};
pub use namespace::{Namespace, ServiceAccount};
pub use node::{Locality, Node};
pub use pattern::Pattern;
pub use peer_authentication::{MtlsMode, PeerAuthentication};
pub use pod::Pod;
pub use selector::{LabelSelector, Labels};
pub use service::{
    InternalTrafficPolicy, IpFamily, IpFamilyPolicy, Service, ServicePort, ServiceSpec, SessionAffinity,
    TrafficDistribution,
};
pub use service_entry::{EntryEndpoint, EntryPort, Location, Resolution, ServiceEntry};
pub use shared_labels::SharedLabels;
pub use virtual_service::VirtualService;

use crate::document::{cursor::Findings, yaml_tree};
use crate::kind::{Kind, ObjectKey};

/// Namespace of a namespaced object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Reads the documents of one kind.
trait Readable: Sized {
    /// What is wrong with `root` goes into `findings`. None: so much is that nothing can be told of the rest.
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self>;
}

/// Makes [`Object`] and the reader of any kind of the types that have a reader.
macro_rules! objects {
    ($($kind:ident,)*) => {
        /// Any object that the mesh reads.
        #[derive(Clone, Debug)]
        pub enum Object {
            $(#[doc = concat!("A `", stringify!($kind), "`.")] $kind(Box<$kind>),)*
        }

        impl Object {
            /// The kind.
            pub fn kind(&self) -> Kind {
                match self {
                    $(Self::$kind(_) => Kind::$kind,)*
                }
            }

            /// Name, namespace, labels and the rest that every object has.
            pub fn metadata(&self) -> &Metadata {
                match self {
                    $(Self::$kind(object) => &object.metadata,)*
                }
            }
        }

        /// Reads a document that is of `kind`. What is wrong goes into `findings`; the object counts only if
        /// no error did.
        pub(crate) fn read(kind: Kind, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Object> {
            let metadata = metadata::read(kind, root, findings)?;
            Some(match kind {
                $(Kind::$kind => Object::$kind(Box::new($kind::read(metadata, root, findings)?)),)*
            })
        }
    };
}

objects! {
    Namespace,
    Node,
    ServiceAccount,
    Pod,
    Deployment,
    Service,
    EndpointSlice,
    AuthorizationPolicy,
    PeerAuthentication,
    DestinationRule,
    ServiceEntry,
    VirtualService,
    HTTPRoute,
    GRPCRoute,
    ReferenceGrant,
}

impl Object {
    /// Lets go what only whoever runs the object's programs needs and is the larger part of it: of a pod its
    /// images, commands, environments and probes, of it and of services, slices and nodes the annotations. A
    /// pod's labels are `shared` with those of others.
    pub fn forget_programs(&mut self, shared: &mut SharedLabels) {
        match self {
            Self::Pod(pod) => {
                pod.forget_programs();
                shared.share(&mut pod.metadata.labels);
            }
            Self::Service(service) => service.metadata.annotations.clear(),
            Self::EndpointSlice(slice) => slice.metadata.annotations.clear(),
            Self::Node(node) => node.metadata.annotations.clear(),
            _ => {}
        }
    }

    /// What tells the object from every other.
    pub fn key(&self) -> ObjectKey {
        let Metadata { name, namespace, .. } = self.metadata();
        ObjectKey { kind: self.kind(), namespace: namespace.clone(), name: name.clone() }
    }
}

#[cfg(test)]
mod tests;
