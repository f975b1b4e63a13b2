//! Types and services on the wire, generated from `proto/*.proto`.
//!
//! Agent and control plane speak delta xDS with Istio's own resource types, so each works with Istio's counterpart
//! as well; [`ext`] has what Istio's types have no place for. Protobuf ignores fields that it does not know:
//! the messages are trimmed to what the mesh reads or writes.

pub mod type_url;

/// Delta discovery (`envoy.service.discovery.v3`) and the messages that it needs.
pub mod xds {
    pub use super::generated::envoy::config::core::v3::*;
    pub use super::generated::envoy::service::discovery::v3::*;
    pub use super::generated::google::rpc::*;
}

/// Workloads and services (`istio.workload`).
pub mod workload {
    pub use super::generated::istio::workload::*;
}

/// Policies of layer 4 (`istio.security`).
pub mod security {
    pub use super::generated::istio::security::*;

    /// Name of the policy that requires mutual TLS on all ports of the workloads that name it. It lives in the root
    /// namespace and stands for every `PeerAuthentication` that is STRICT.
    pub const STRICT: &str = "istio_converted_static_strict";
    /// Start of the names of policies that require mutual TLS on some ports. The rest is the name of the
    /// `PeerAuthentication` that one stands for, in its namespace.
    pub const PORT_LEVEL_STRICT: &str = "converted_peer_authentication_";

    /// Whether a policy (`namespace/name`) stands for a `PeerAuthentication` that requires mutual TLS.
    pub fn requires_mutual_tls(policy: &str) -> bool {
        let name = policy.rsplit_once('/').map_or(policy, |(_, name)| name);
        name == STRICT || name.starts_with(PORT_LEVEL_STRICT)
    }
}

/// The certificate authority (`istio.v1.auth`).
pub mod ca {
    pub use super::generated::istio::v1::auth::*;
}

/// Our own messages (`nodemesh.v1`), carried in `extensions`.
pub mod ext {
    pub use super::generated::nodemesh::v1::*;

    /// Name of the service extension that holds [`TrafficPolicies`].
    pub const TRAFFIC_POLICIES: &str = "nodemesh.io/traffic-policies";
    /// Name of the workload extension that holds [`Labels`].
    pub const LABELS: &str = "nodemesh.io/labels";
    /// Name of the policy extension, without content, that makes a dry-run policy an AUDIT policy.
    pub const AUDIT: &str = "nodemesh.io/audit";
}

// Generated: the comments in the protos are the docs, and not every field needs one.
#[allow(missing_docs, unused_qualifications, clippy::all, clippy::pedantic, clippy::unwrap_used)]
mod generated {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}
