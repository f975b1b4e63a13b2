//! Types and services on the wire, generated from `proto/*.proto`.
//!
//! Agent and control plane speak delta xDS with Istio's own resource types, so an agent works with istiod as
//! well; [`ext`] has what Istio's types have no place for. Protobuf ignores fields that it does not know: the
//! messages are trimmed to what the mesh reads or writes.

pub mod type_url;

/// Delta discovery (`envoy.service.discovery.v3`) and the messages that it needs.
pub mod xds {
    pub use super::generated::envoy::config::core::v3::*;
    pub use super::generated::envoy::service::discovery::v3::*;
    pub use super::generated::google::rpc::*;

    /// Field of a node's metadata, a text of any content, by which our agent says that it takes a state in
    /// several responses: it waits for the last of them before it lets the state count.
    pub const PARTS: &str = "NODEMESH_PARTS";
    /// Last character of `system_version_info` of every part but the last.
    pub const CONTINUES: char = '+';
}

/// Workloads and services (`istio.workload`).
pub mod workload {
    pub use super::generated::istio::workload::*;
}

/// Policies of layer 4 (`istio.security`).
pub mod security {
    pub use super::generated::istio::security::*;

    /// Name of the policy that requires mutual TLS on all ports of the workloads that name it. It lives in
    /// the root namespace and stands for every `PeerAuthentication` that is STRICT.
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
    /// Name of the service extension that holds [`HttpRoutes`].
    pub const HTTP_ROUTES: &str = "nodemesh.io/http-routes";
    /// Name of the extension with those of the Gateway API, which go before. Agents that do not know all that
    /// these say do not know the name either.
    pub const GATEWAY_ROUTES: &str = "nodemesh.io/gateway-routes";
    /// Name of the service extension that holds [`SessionAffinity`].
    pub const SESSION_AFFINITY: &str = "nodemesh.io/session-affinity";
    /// Name of the workload extension, without content, of a pod that is about to end and still serves. Its
    /// status is unhealthy for whoever does not know the extension.
    pub const TERMINATING: &str = "nodemesh.io/terminating";
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

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::{security, workload};

    /// Bytes written by hand from the numbers that Istio uses, at the places where one errs most easily.
    #[test]
    fn numbers_are_istios() {
        let sent = [
            &[0xa2, 0x01, 1, b'u'][..],               // uid 20
            &[0x12, 1, b'n'],                         // namespace 2
            &[0x1a, 4, 10, 0, 0, 1],                  // addresses 3
            &[0x28, 1],                               // tunnel_protocol 5: HBONE
            &[0x82, 0x01, 3, b'a', b'/', b'b'],       // authorization_policies 16
            &[0x88, 0x01, 1],                         // status 17: UNHEALTHY
            &[0xb2, 0x01, 5, 0x0a, 1, b's', 0x12, 0], // services 22
            &[0xda, 0x01, 2, 0x08, 7],                // capacity 27, a wrapped number
        ]
        .concat();
        let expected = workload::Workload {
            uid: "u".into(),
            namespace: "n".into(),
            addresses: vec![vec![10, 0, 0, 1]],
            tunnel_protocol: workload::TunnelProtocol::Hbone.into(),
            authorization_policies: vec!["a/b".into()],
            status: workload::WorkloadStatus::Unhealthy.into(),
            services: [("s".into(), workload::PortList::default())].into(),
            capacity: Some(7),
            ..workload::Workload::default()
        };
        assert_eq!(workload::Workload::decode(&*sent), Ok(expected));
        // rules 5, clauses 1, matches 2 (not 1), not_principals 4, presence 4.
        let sent = [0x2a, 8, 0x0a, 6, 0x12, 4, 0x22, 2, 0x22, 0];
        let policy = security::Authorization::decode(&sent[..]).unwrap();
        let not_principals = &policy.rules[0].clauses[0].matches[0].not_principals[0];
        assert_eq!(not_principals.match_type, Some(security::string_match::MatchType::Presence(())));
    }

    #[test]
    fn names_of_peer_authentications_are_known() {
        assert!(security::requires_mutual_tls("istio-system/istio_converted_static_strict"));
        assert!(security::requires_mutual_tls("shop/converted_peer_authentication_x"));
        assert!(!security::requires_mutual_tls("shop/istio_converted_static_strict_not"));
        assert!(!security::requires_mutual_tls("converted_peer_authentication_x/deny"));
    }
}
