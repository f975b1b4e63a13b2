//! Decides whether a workload accepts a connection.
//!
//! Evaluation follows Istio's ambient mode: any DENY policy that matches denies; if no ALLOW policy applies,
//! all is allowed; otherwise one of them has to match. Unlike in Istio's agent, a policy denies if a workload
//! names it and it has not arrived, or if it could not be parsed; and AUDIT policies are recorded.

mod decision;
mod policies;
mod rule;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::sync::Arc;

pub use decision::{AllowReason, Decision, Denial, DenyReason, DryRunEffect, DryRunResult, Permit, Verdict};
pub use policies::{Action, Policy, Scope};
pub(super) use policies::{PolicyEditor, PolicySet};

use super::snapshot::Snapshot;
use super::workload::Workload;
use crate::identity::SpiffeId;

/// The connection that is decided on.
#[derive(Clone, Copy, Debug)]
pub struct ConnectionAttributes<'a> {
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
pub fn authorize(
    snapshot: &Snapshot,
    destination: &Workload,
    connection: &ConnectionAttributes<'_>,
) -> Decision {
    let connection = &ConnectionAttributes {
        source_ip: connection.source_ip.to_canonical(),
        destination_ip: connection.destination_ip.to_canonical(),
        ..*connection
    };
    let mut tally = Tally::default();
    for policy in snapshot.policies.applying_or_missing(destination) {
        match policy {
            Ok(policy) => tally.count(policy, connection),
            Err(missing) => {
                tally.fault.get_or_insert_with(|| DenyReason::Missing { policy: missing.clone() });
            }
        }
    }
    tally.decide(connection)
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
    dry_run: Vec<DryRunResult>,
    /// ALLOW policies in dry run that apply and do not match.
    dry_unmatched: Vec<&'a Arc<Policy>>,
}

impl<'a> Tally<'a> {
    fn count(&mut self, policy: &'a Arc<Policy>, connection: &ConnectionAttributes<'_>) {
        let name = || policy.namespaced_name().clone();
        if let Some(fault) = policy.parse_error() {
            if policy.is_enforced() {
                let reason = || DenyReason::Faulty { policy: name(), fault: fault.clone() };
                self.fault.get_or_insert_with(reason);
            }
            return;
        }
        let matching = policy.first_matching_rule_index(connection);
        match (policy.action(), policy.is_enforced(), matching) {
            (Action::Deny, true, Some(rule)) => {
                self.denied.get_or_insert_with(|| DenyReason::from_deny_policy(policy, rule, connection));
            }
            (Action::Allow, true, Some(_)) => {
                self.allowed.get_or_insert_with(name);
            }
            (Action::Allow, true, None) => self.unmatched.push(policy),
            (Action::Audit, _, Some(_)) => self.audited.push(name()),
            (Action::Deny, false, Some(_)) => {
                self.dry_run.push(DryRunResult { policy: name(), would: DryRunEffect::Deny });
            }
            (Action::Allow, false, Some(_)) => {
                self.dry_run.push(DryRunResult { policy: name(), would: DryRunEffect::Allow });
            }
            (Action::Allow, false, None) => self.dry_unmatched.push(policy),
            (Action::Deny | Action::Audit, _, None) => {}
        }
    }

    fn decide(mut self, connection: &ConnectionAttributes<'_>) -> Decision {
        let dry_allowed = self.dry_run.iter().any(|dry| dry.would == DryRunEffect::Allow);
        if self.allowed.is_none() && !dry_allowed {
            let would_deny = |policy: &&Arc<Policy>| DryRunResult {
                policy: policy.namespaced_name().clone(),
                would: DryRunEffect::Deny,
            };
            self.dry_run.extend(self.dry_unmatched.iter().map(would_deny));
        }
        let no_allow = || {
            let policies = self.unmatched.iter().map(|policy| policy.namespaced_name().clone()).collect();
            DenyReason::NoAllowMatches { policies }
        };
        let reason = match (self.denied.or(self.fault), &self.allowed) {
            (Some(reason), _) => Some(reason),
            (None, None) if !self.unmatched.is_empty() => Some(no_allow()),
            (None, _) => None,
        };
        let verdict = match reason {
            Some(reason) => Verdict::Deny(Denial::new(reason, connection)),
            None => Verdict::Allow(Permit::new(
                self.allowed.map_or(AllowReason::NoAllowPolicy, AllowReason::Policy),
            )),
        };
        Decision { verdict, audited: self.audited, dry_run: self.dry_run }
    }
}
