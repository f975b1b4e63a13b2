//! The policy's decision on a connection, and its text in a log.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Peer, Policy};
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
    pub dry_run: Vec<DryRun>,
}

impl Decision {
    /// Whether the connection is allowed.
    pub fn is_allowed(&self) -> bool {
        matches!(self.verdict, Verdict::Allow(_))
    }

    /// Returns `namespace/name` of the policy that decided, if one did.
    pub fn policy(&self) -> Option<&Arc<str>> {
        match &self.verdict {
            Verdict::Allow(permit) => permit.policy(),
            Verdict::Deny(denial) => denial.policy(),
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
    grant: Grant,
}

/// Why a connection is allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Grant {
    /// No ALLOW policy applies to the workload, and no DENY policy matches.
    NoAllowPolicy,
    /// The ALLOW policy `namespace/name` matches.
    Policy(Arc<str>),
}

impl Permit {
    pub(super) fn new(grant: Grant) -> Self {
        Self { grant }
    }

    /// Returns why.
    pub fn grant(&self) -> &Grant {
        &self.grant
    }

    /// Returns `namespace/name` of the ALLOW policy that matches, if one had to.
    pub fn policy(&self) -> Option<&Arc<str>> {
        match &self.grant {
            Grant::NoAllowPolicy => None,
            Grant::Policy(policy) => Some(policy),
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
    pub(super) fn of_match(policy: &Policy, rule: usize, peer: &Peer<'_>) -> Self {
        let name = policy.name().clone();
        if peer.identity.is_none() && security::requires_mutual_tls(&name) {
            Self::Plaintext { policy: name }
        } else {
            Self::Policy { policy: name, rule: rule + 1 }
        }
    }
}

impl Denial {
    pub(super) fn new(reason: DenyReason, peer: &Peer<'_>) -> Self {
        Self {
            reason,
            identity: peer.identity.cloned(),
            source_ip: peer.source_ip,
            destination_port: peer.destination_port,
        }
    }

    /// Returns why.
    pub fn reason(&self) -> &DenyReason {
        &self.reason
    }

    /// Returns `namespace/name` of the policy that denied, if it was a single one.
    pub fn policy(&self) -> Option<&Arc<str>> {
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
pub struct DryRun {
    /// `namespace/name` of the policy.
    pub policy: Arc<str>,
    /// The effect.
    pub would: Effect,
}

/// The effect of a policy on a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// Allows it.
    Allow,
    /// Denies it.
    Deny,
}

impl fmt::Display for Effect {
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
        for DryRun { policy, would } in &self.dry_run {
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
        match &self.grant {
            Grant::NoAllowPolicy => {
                f.write_str("allowed: no DENY policy matches and no ALLOW policy applies")
            }
            Grant::Policy(policy) => write!(f, "allowed by policy {policy} (ALLOW)"),
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
