//! Decides whether a workload accepts a connection.
//!
//! Evaluation follows Istio's ambient mode: any DENY policy that matches denies; if no ALLOW policy applies,
//! all is allowed; otherwise one of them has to match. Unlike in Istio's agent, a policy denies if a workload
//! names it and it has not arrived, or if it could not be parsed; and AUDIT policies are recorded.

mod decision;
mod rule;
mod set;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

pub use decision::{Decision, Denial, DenyReason, DryRun, Effect, Grant, Permit, Verdict};
pub use set::{Action, Policy, Scope};
pub(super) use set::{PolicyEditor, PolicySet};

use super::snapshot::Snapshot;
use super::workload::Workload;
use crate::identity::SpiffeId;

/// The connection that is decided on.
#[derive(Clone, Copy, Debug)]
pub struct Peer<'a> {
    /// The client's identity, if mutual TLS proved it.
    pub identity: Option<&'a SpiffeId>,
    /// The client's address.
    pub source_ip: IpAddr,
    /// The workload's address that was reached.
    pub destination_ip: IpAddr,
    /// The workload's port.
    pub destination_port: u16,
}

/// Decides whether a workload accepts a connection.
pub fn authorize(snapshot: &Snapshot, destination: &Workload, peer: &Peer<'_>) -> Decision {
    let peer = &Peer {
        source_ip: peer.source_ip.to_canonical(),
        destination_ip: peer.destination_ip.to_canonical(),
        ..*peer
    };
    let mut tally = Tally::default();
    for policy in snapshot.policies.applying_to(destination) {
        match policy {
            Ok(policy) => tally.count(policy, peer),
            Err(missing) => {
                tally.fault.get_or_insert_with(|| DenyReason::Missing { policy: missing.clone() });
            }
        }
    }
    tally.decide(peer)
}

/// Results of the policies so far.
#[derive(Default)]
struct Tally<'a> {
    denied: Option<DenyReason>,
    fault: Option<DenyReason>,
    allowed: Option<Arc<str>>,
    /// ALLOW policies that apply and do not match.
    unmatched: Vec<&'a Arc<Policy>>,
    audited: Vec<Arc<str>>,
    dry_run: Vec<DryRun>,
    /// ALLOW policies in dry run that apply and do not match.
    dry_unmatched: Vec<&'a Arc<Policy>>,
}

impl<'a> Tally<'a> {
    fn count(&mut self, policy: &'a Arc<Policy>, peer: &Peer<'_>) {
        let name = || policy.name().clone();
        if let Some(fault) = policy.fault() {
            if policy.is_enforced() {
                let reason = || DenyReason::Faulty { policy: name(), fault: fault.clone() };
                self.fault.get_or_insert_with(reason);
            }
            return;
        }
        let matching = policy.matching_rule(peer);
        match (policy.action(), policy.is_enforced(), matching) {
            (Action::Deny, true, Some(rule)) => {
                self.denied.get_or_insert_with(|| DenyReason::of_match(policy, rule, peer));
            }
            (Action::Allow, true, Some(_)) => {
                self.allowed.get_or_insert_with(name);
            }
            (Action::Allow, true, None) => self.unmatched.push(policy),
            (Action::Audit, _, Some(_)) => self.audited.push(name()),
            (Action::Deny, false, Some(_)) => {
                self.dry_run.push(DryRun { policy: name(), would: Effect::Deny });
            }
            (Action::Allow, false, Some(_)) => {
                self.dry_run.push(DryRun { policy: name(), would: Effect::Allow });
            }
            (Action::Allow, false, None) => self.dry_unmatched.push(policy),
            (Action::Deny | Action::Audit, _, None) => {}
        }
    }

    fn decide(mut self, peer: &Peer<'_>) -> Decision {
        let dry_allowed = self.dry_run.iter().any(|dry| dry.would == Effect::Allow);
        if self.allowed.is_none() && !dry_allowed {
            let would_deny =
                |policy: &&Arc<Policy>| DryRun { policy: policy.name().clone(), would: Effect::Deny };
            self.dry_run.extend(self.dry_unmatched.iter().map(would_deny));
        }
        let no_allow = || {
            let policies = self.unmatched.iter().map(|policy| policy.name().clone()).collect();
            DenyReason::NoAllowMatches { policies }
        };
        let reason = match (self.denied.or(self.fault), &self.allowed) {
            (Some(reason), _) => Some(reason),
            (None, None) if !self.unmatched.is_empty() => Some(no_allow()),
            (None, _) => None,
        };
        let verdict = match reason {
            Some(reason) => Verdict::Deny(Denial::new(reason, peer)),
            None => Verdict::Allow(Permit::new(self.allowed.map_or(Grant::NoAllowPolicy, Grant::Policy))),
        };
        Decision { verdict, audited: self.audited, dry_run: self.dry_run }
    }
}
