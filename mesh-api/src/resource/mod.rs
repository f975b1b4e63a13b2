//! The objects that users write, typed and checked.
//!
//! Kubernetes' own kinds are read leniently (the API server has checked them, and knows more fields than we
//! do); Istio's are read strictly, since a misspelt field of a policy is a hole in it.

mod authorization_policy;
mod deployment;
mod destination_rule;
pub mod egress;
mod endpoint_slice;
pub mod enrolment;
mod lenient;
mod metadata;
mod namespace;
mod node;
mod pattern;
mod peer_authentication;
pub mod pod;
mod selector;
mod service;
mod shared_labels;

pub use authorization_policy::{
    Action, AuthorizationPolicy, Operation, Rule, ServiceAccountRef, Source, TargetRef, When, WhenValue,
};
pub use deployment::{Deployment, DeploymentSpec, PodTemplate};
pub use destination_rule::{
    ConnectionPool, DestinationRule, LoadBalancer, OutlierDetection, Subset, TcpKeepalive, TrafficPolicy,
    TrafficSettings,
};
pub use endpoint_slice::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice, TargetReference};
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
pub use shared_labels::SharedLabels;

use crate::manifest::{Kind, ObjectKey, cursor::Findings, tree};

/// Namespace of a namespaced object that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Any object that the mesh reads.
#[derive(Clone, Debug)]
pub enum Object {
    /// A namespace.
    Namespace(Box<Namespace>),
    /// A node.
    Node(Box<Node>),
    /// A service account.
    ServiceAccount(Box<ServiceAccount>),
    /// A pod.
    Pod(Box<Pod>),
    /// A deployment.
    Deployment(Box<Deployment>),
    /// A service.
    Service(Box<Service>),
    /// A part of a service's endpoints.
    EndpointSlice(Box<EndpointSlice>),
    /// Who may talk to whom.
    AuthorizationPolicy(Box<AuthorizationPolicy>),
    /// Whether mutual TLS is required.
    PeerAuthentication(Box<PeerAuthentication>),
    /// How clients connect to a service.
    DestinationRule(Box<DestinationRule>),
}

impl Object {
    /// The kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::Node(_) => Kind::Node,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Pod(_) => Kind::Pod,
            Self::Deployment(_) => Kind::Deployment,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::AuthorizationPolicy(_) => Kind::AuthorizationPolicy,
            Self::PeerAuthentication(_) => Kind::PeerAuthentication,
            Self::DestinationRule(_) => Kind::DestinationRule,
        }
    }

    /// Name, namespace, labels and the rest that every object has.
    pub fn metadata(&self) -> &Metadata {
        match self {
            Self::Namespace(object) => &object.metadata,
            Self::Node(object) => &object.metadata,
            Self::ServiceAccount(object) => &object.metadata,
            Self::Pod(object) => &object.metadata,
            Self::Deployment(object) => &object.metadata,
            Self::Service(object) => &object.metadata,
            Self::EndpointSlice(object) => &object.metadata,
            Self::AuthorizationPolicy(object) => &object.metadata,
            Self::PeerAuthentication(object) => &object.metadata,
            Self::DestinationRule(object) => &object.metadata,
        }
    }

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

/// Reads a document that is of `kind`. What is wrong goes into `findings`; the object counts only if no error
/// did.
pub(crate) fn read(kind: Kind, root: &tree::Node, findings: &Findings) -> Option<Object> {
    let metadata = metadata::read(kind, root, findings)?;
    Some(match kind {
        Kind::Namespace => Object::Namespace(Box::new(Namespace::read(metadata, root, findings))),
        Kind::ServiceAccount => Object::ServiceAccount(Box::new(ServiceAccount { metadata })),
        Kind::Node => {
            let status = lenient::field(root, "status", findings)?;
            Object::Node(Box::new(Node { metadata, status }))
        }
        Kind::Pod => Object::Pod(Box::new(Pod::read(metadata, root, findings)?)),
        Kind::Deployment => Object::Deployment(Box::new(Deployment::read(metadata, root, findings)?)),
        Kind::Service => Object::Service(Box::new(Service::read(metadata, root, findings)?)),
        Kind::EndpointSlice => {
            Object::EndpointSlice(Box::new(EndpointSlice::read(metadata, root, findings)?))
        }
        Kind::AuthorizationPolicy => {
            Object::AuthorizationPolicy(Box::new(AuthorizationPolicy::read(metadata, root, findings)?))
        }
        Kind::PeerAuthentication => {
            Object::PeerAuthentication(Box::new(PeerAuthentication::read(metadata, root, findings)))
        }
        Kind::DestinationRule => {
            Object::DestinationRule(Box::new(DestinationRule::read(metadata, root, findings)?))
        }
    })
}

#[cfg(test)]
mod tests;
