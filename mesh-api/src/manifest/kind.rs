//! The kinds that the mesh reads, and those that it knows not to read.

use std::fmt;

use serde::{Deserialize, Serialize};

/// A kind of object that the mesh reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Kind {
    /// Core `Namespace`.
    Namespace,
    /// Core `Node`.
    Node,
    /// Core `ServiceAccount`.
    ServiceAccount,
    /// Core `Pod`.
    Pod,
    /// `apps` `Deployment`.
    Deployment,
    /// Core `Service`.
    Service,
    /// `discovery.k8s.io` `EndpointSlice`.
    EndpointSlice,
    /// Istio `AuthorizationPolicy`.
    AuthorizationPolicy,
    /// Istio `PeerAuthentication`.
    PeerAuthentication,
    /// Istio `DestinationRule`.
    DestinationRule,
}

impl Kind {
    /// Whether people write it for a mesh, so that it is answered with a status.
    pub const fn is_policy(self) -> bool {
        matches!(self, Self::AuthorizationPolicy | Self::PeerAuthentication | Self::DestinationRule)
    }

    /// Every kind.
    pub const ALL: [Self; 10] = [
        Self::Namespace,
        Self::Node,
        Self::ServiceAccount,
        Self::Pod,
        Self::Deployment,
        Self::Service,
        Self::EndpointSlice,
        Self::AuthorizationPolicy,
        Self::PeerAuthentication,
        Self::DestinationRule,
    ];

    /// The name that a manifest's `kind` has.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Namespace => "Namespace",
            Self::Node => "Node",
            Self::ServiceAccount => "ServiceAccount",
            Self::Pod => "Pod",
            Self::Deployment => "Deployment",
            Self::Service => "Service",
            Self::EndpointSlice => "EndpointSlice",
            Self::AuthorizationPolicy => "AuthorizationPolicy",
            Self::PeerAuthentication => "PeerAuthentication",
            Self::DestinationRule => "DestinationRule",
        }
    }

    /// Values of `apiVersion` under which the kind is served; the preferred one first.
    pub fn api_versions(self) -> &'static [&'static str] {
        match self {
            Self::Namespace | Self::Node | Self::ServiceAccount | Self::Pod | Self::Service => &["v1"],
            Self::Deployment => &["apps/v1"],
            Self::EndpointSlice => &["discovery.k8s.io/v1"],
            Self::AuthorizationPolicy | Self::PeerAuthentication => {
                &["security.istio.io/v1", "security.istio.io/v1beta1"]
            }
            Self::DestinationRule => {
                &["networking.istio.io/v1", "networking.istio.io/v1beta1", "networking.istio.io/v1alpha3"]
            }
        }
    }

    /// Whether objects of the kind live in a namespace.
    pub fn is_namespaced(self) -> bool {
        !matches!(self, Self::Namespace | Self::Node)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Kinds of Istio that exist but have no effect yet.
pub(super) const ISTIO_NOT_YET: [&str; 12] = [
    "VirtualService",
    "Gateway",
    "ServiceEntry",
    "WorkloadEntry",
    "WorkloadGroup",
    "Sidecar",
    "EnvoyFilter",
    "ProxyConfig",
    "RequestAuthentication",
    "Telemetry",
    "WasmPlugin",
    "TrafficExtension",
];

/// Whether the API group of `api_version` is one of Istio's.
pub(super) fn is_istio(api_version: &str) -> bool {
    api_version.split('/').next().is_some_and(|group| group.ends_with(".istio.io"))
}

/// The group of an `apiVersion`; empty for the core group.
pub(super) fn group(api_version: &str) -> &str {
    api_version.split_once('/').map_or("", |(group, _)| group)
}
