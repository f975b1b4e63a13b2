//! `AuthorizationPolicy`: who may talk to whom (Istio's `security.istio.io`).

mod nobody;
mod read;
mod when;

use ipnet::IpNet;

pub use when::{When, WhenValue};

use super::{LabelSelector, Metadata, Pattern};

/// An authorization policy.
#[derive(Clone, Debug)]
pub struct AuthorizationPolicy {
    /// Name, namespace, annotations.
    pub metadata: Metadata,
    /// Workloads that it applies to; `None` means all of the namespace, or of the mesh from the root
    /// namespace.
    pub selector: Option<LabelSelector>,
    /// Gateways or services that it is attached to instead.
    pub target_refs: Vec<TargetRef>,
    /// What a match means.
    pub action: Action,
    /// Name of the mesh's extension provider, for [`Action::Custom`].
    pub provider: Option<String>,
    /// Connections that it matches: those that any rule matches.
    pub rules: Vec<Rule>,
}

/// What a match of a policy means.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Action {
    /// Let it through; and nothing else, unless another such policy matches.
    #[default]
    Allow,
    /// Refuse it, whatever else matches.
    Deny,
    /// Log it.
    Audit,
    /// Ask an extension provider.
    Custom,
}

/// Something that a policy is attached to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TargetRef {
    /// API group; empty for core kinds.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name, in the policy's namespace.
    pub name: String,
}

/// One rule: all of its three parts must match; an absent part matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Where the connection comes from: any of these.
    pub from: Vec<Source>,
    /// What it asks for: any of these.
    pub to: Vec<Operation>,
    /// Further conditions: all of these.
    pub when: Vec<When>,
}

/// Where a connection comes from. All that is set must match; within one list, any value. The `not_` lists
/// match if no value does.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Source {
    /// SPIFFE ids without `spiffe://`.
    pub principals: Vec<Pattern>,
    /// See [`Source`].
    pub not_principals: Vec<Pattern>,
    /// Service accounts.
    pub service_accounts: Vec<ServiceAccountRef>,
    /// See [`Source`].
    pub not_service_accounts: Vec<ServiceAccountRef>,
    /// Namespaces of the identity.
    pub namespaces: Vec<Pattern>,
    /// See [`Source`].
    pub not_namespaces: Vec<Pattern>,
    /// Trust domains of the identity.
    pub trust_domains: Vec<Pattern>,
    /// See [`Source`].
    pub not_trust_domains: Vec<Pattern>,
    /// Addresses of the peer.
    pub ip_blocks: Vec<IpNet>,
    /// See [`Source`].
    pub not_ip_blocks: Vec<IpNet>,
    /// Addresses of the client behind proxies (HTTP only).
    pub remote_ip_blocks: Vec<IpNet>,
    /// See [`Source`].
    pub not_remote_ip_blocks: Vec<IpNet>,
    /// `issuer/subject` of a JSON web token (HTTP only).
    pub request_principals: Vec<Pattern>,
    /// See [`Source`].
    pub not_request_principals: Vec<Pattern>,
}

/// What a connection asks for. As in [`Source`], all that is set must match.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Operation {
    /// Ports of the workload.
    pub ports: Vec<u16>,
    /// See [`Source`].
    pub not_ports: Vec<u16>,
    /// Values of the `Host` header (HTTP only).
    pub hosts: Vec<Pattern>,
    /// See [`Source`].
    pub not_hosts: Vec<Pattern>,
    /// Methods (HTTP only).
    pub methods: Vec<Pattern>,
    /// See [`Source`].
    pub not_methods: Vec<Pattern>,
    /// Paths (HTTP only), with stars or templates.
    pub paths: Vec<String>,
    /// See [`Source`].
    pub not_paths: Vec<String>,
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceAccountRef {
    /// Its namespace; the policy's own if none was written.
    pub namespace: String,
    /// Its name.
    pub name: String,
}

impl AuthorizationPolicy {
    /// Whether it is only to be evaluated and reported (`istio.io/dry-run: "true"`).
    pub fn is_dry_run(&self) -> bool {
        self.metadata.annotations.get("istio.io/dry-run").is_some_and(|value| value == "true")
    }
}
