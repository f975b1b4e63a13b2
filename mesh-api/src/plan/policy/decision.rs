//! The policy's decision on a connection, and its text in a log.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{ConnectionAttributes, Policy};
use crate::identity::SpiffeId;
use crate::plan::Invalid;
use crate::wire::security;

/// A decision on a connection, with everything to record about it.
#[derive(Debug)]
#[must_use]
pub struct Decision {
    /// Allowed or denied.
    pub verdict: Verdict,
    /// `namespace/name` of the AUDIT policies that matched.
    pub audited: Vec<Arc<str>>,
    /// What policies in dry run would have done.
    pub dry_run: Vec<DryRunResult>,
}

impl Decision {
    /// Whether the connection is allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allow(_))
    }

    /// Returns `namespace/name` of the policy that decided, if one did.
    pub fn policy_name(&self) -> Option<&Arc<str>> {
        match &self.verdict {
            Verdict::Allow(permit) => permit.policy_name(),
            Verdict::Deny(denial) => denial.policy_name(),
        }
    }
}

/// Whether a connection is allowed.
#[derive(Debug)]
pub enum Verdict {
    /// It is allowed; the permit proves it.
    Allow(Permit),
    /// It is denied.
    Deny(Denial),
}

/// Proof that the policy was asked and allowed the connection. Only [`authorize`](super::authorize) makes
/// one, and opening a connection to an application takes one, so nobody can forget to ask.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    reason: AllowReason,
}

/// Why a connection is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowReason {
    /// No ALLOW policy applies to the workload, and no DENY policy matches.
    NoAllowPolicy,
    /// The ALLOW policy `namespace/name` matches.
    Policy(Arc<str>),
}

impl Permit {
    pub(super) fn new(reason: AllowReason) -> Self {
        Self { reason }
    }

    /// Returns why.
    pub fn reason(&self) -> &AllowReason {
        &self.reason
    }

    /// Returns `namespace/name` of the ALLOW policy that matches, if one had to.
    pub fn policy_name(&self) -> Option<&Arc<str>> {
        match &self.reason {
            AllowReason::NoAllowPolicy => None,
            AllowReason::Policy(policy) => Some(policy),
        }
    }
}

/// A denial: why, and whose connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial {
    reason: DenyReason,
    identity: Option<SpiffeId>,
    source_ip: IpAddr,
    destination_port: u16,
}

/// Why a connection is denied.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DenyReason {
    /// A DENY policy matches.
    Policy {
        /// `namespace/name` of the policy.
        policy: Arc<str>,
        /// The first rule that matches, counted from 1.
        rule: usize,
    },
    /// Mutual TLS is required (a `PeerAuthentication`, which arrives as a DENY policy), and there was none.
    Plaintext {
        /// `namespace/name` of that policy.
        policy: Arc<str>,
    },
    /// ALLOW policies apply, and none matches.
    NoAllowMatches {
        /// `namespace/name` of each of them.
        policies: Box<[Arc<str>]>,
    },
    /// The workload names a policy that has not arrived.
    Missing {
        /// `namespace/name` of the policy.
        policy: Arc<str>,
    },
    /// A policy applies that could not be parsed.
    Faulty {
        /// `namespace/name` of the policy.
        policy: Arc<str>,
        /// What is wrong with it.
        fault: Invalid,
    },
}

impl DenyReason {
    pub(super) fn from_deny_policy(
        policy: &Policy,
        rule: usize,
        connection: &ConnectionAttributes<'_>,
    ) -> Self {
        let name = policy.namespaced_name().clone();
        if connection.identity.is_none() && security::requires_mutual_tls(&name) {
            Self::Plaintext { policy: name }
        } else {
            Self::Policy { policy: name, rule: rule + 1 }
        }
    }
}

impl Denial {
    pub(super) fn new(reason: DenyReason, connection: &ConnectionAttributes<'_>) -> Self {
        Self {
            reason,
            identity: connection.identity.cloned(),
            source_ip: connection.source_ip,
            destination_port: connection.destination_port,
        }
    }

    /// Returns why.
    pub fn reason(&self) -> &DenyReason {
        &self.reason
    }

    /// Returns `namespace/name` of the policy that denied, if it was a single one.
    pub fn policy_name(&self) -> Option<&Arc<str>> {
        match &self.reason {
            DenyReason::Policy { policy, .. }
            | DenyReason::Plaintext { policy }
            | DenyReason::Missing { policy }
            | DenyReason::Faulty { policy, .. } => Some(policy),
            DenyReason::NoAllowMatches { .. } => None,
        }
    }

    fn write_peer(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.identity {
            Some(identity) => write!(f, "{identity} at {}", self.source_ip)?,
            None => write!(f, "plaintext from {}", self.source_ip)?,
        }
        write!(f, " to port {}", self.destination_port)
    }
}

/// The effect that a policy in dry run would have had.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DryRunResult {
    /// `namespace/name` of the policy.
    pub policy: Arc<str>,
    /// The effect.
    pub would: DryRunEffect,
}

/// The effect of a policy on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DryRunEffect {
    /// Allows it.
    Allow,
    /// Denies it.
    Deny,
}

impl fmt::Display for DryRunEffect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
        })
    }
}

impl fmt::Display for Decision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.verdict.fmt(f)?;
        for policy in &self.audited {
            write!(f, "; audited by {policy}")?;
        }
        for DryRunResult { policy, would } in &self.dry_run {
            write!(f, "; {policy} (dry run) would {would}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Allow(permit) => permit.fmt(f),
            Self::Deny(denial) => denial.fmt(f),
        }
    }
}

impl fmt::Display for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            AllowReason::NoAllowPolicy => {
                f.write_str("allowed: no DENY policy matches and no ALLOW policy applies")
            }
            AllowReason::Policy(policy) => write!(f, "allowed by policy {policy} (ALLOW)"),
        }
    }
}

impl fmt::Display for Denial {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.reason {
            DenyReason::Policy { policy, rule } => {
                write!(f, "denied by policy {policy} (DENY): rule {rule} matches ")?;
                self.write_peer(f)
            }
            DenyReason::Plaintext { policy } => {
                write!(f, "denied by policy {policy}: ")?;
                self.write_peer(f)?;
                f.write_str(", STRICT mutual TLS required")
            }
            DenyReason::NoAllowMatches { policies } => {
                f.write_str("denied: no ALLOW policy matches ")?;
                self.write_peer(f)?;
                let verb = if policies.len() == 1 { "applies" } else { "apply" };
                write!(f, " ({} {verb}: {})", policies.len(), policies.join(", "))
            }
            DenyReason::Missing { policy } => {
                write!(f, "denied: policy {policy} applies to the workload but has not arrived; ")?;
                self.write_peer(f)
            }
            DenyReason::Faulty { policy, fault } => {
                write!(
                    f,
                    "denied: policy {policy} applies to the workload but is not understood ({fault}); "
                )?;
                self.write_peer(f)
            }
        }
    }
}
