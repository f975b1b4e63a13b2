//! `AuthorizationPolicy` and `PeerAuthentication` as agents see them.

mod matches;
mod mutual_tls;
mod rules;

use std::collections::HashMap;

use super::object_store::{ObjectStore, SharedObject, as_authorization_policy};
use super::{Condition, ConditionEffect, MeshConfig};
use crate::{
    manifest::Kind,
    resource::{Action, AuthorizationPolicy, Metadata, Pod},
    wire::{
        ext,
        security::{self as wire, Authorization, Scope},
        workload::Extension,
    },
};

pub(super) use mutual_tls::MutualTlsModes;

/// What is needed to say which policies a pod has.
pub(super) struct PodPolicies<'a> {
    root_namespace: &'a str,
    selecting: &'a PoliciesWithSelector,
    mutual_tls: &'a MutualTlsModes<'a>,
}

/// The policies that select workloads, by namespace, the oldest first in each.
#[derive(Debug, Default)]
pub(super) struct PoliciesWithSelector(HashMap<String, Vec<SharedObject>>);

impl PoliciesWithSelector {
    /// Finds those of a namespace anew.
    pub fn refresh_namespace(&mut self, objects: &ObjectStore, namespace: &str) {
        let mut policies = objects.authorization_policies_in(namespace);
        policies.retain(|shared| as_authorization_policy(shared).is_some_and(selects_pods));
        if policies.is_empty() {
            self.0.remove(namespace);
        } else {
            self.0.insert(namespace.to_owned(), policies);
        }
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = &AuthorizationPolicy> {
        self.0.get(namespace).into_iter().flatten().filter_map(as_authorization_policy)
    }
}

impl<'a> PodPolicies<'a> {
    pub fn new(
        selecting: &'a PoliciesWithSelector,
        mutual_tls: &'a MutualTlsModes<'a>,
        mesh: &'a MeshConfig,
    ) -> Self {
        Self { root_namespace: &mesh.root_namespace, selecting, mutual_tls }
    }

    /// `namespace/name` of the policies that select a pod, the oldest first; that which requires mutual TLS
    /// last.
    pub fn names_for_pod(&self, pod: &Pod) -> Vec<String> {
        let Metadata { namespace, labels, .. } = &pod.metadata;
        let elsewhere = Some(self.root_namespace).filter(|root| root != namespace);
        let in_scope =
            self.selecting.of(namespace).chain(elsewhere.into_iter().flat_map(|it| self.selecting.of(it)));
        let mut selecting: Vec<_> =
            in_scope.filter(|policy| policy.selector.as_ref().is_some_and(|it| it.matches(labels))).collect();
        selecting.sort_by(|a, b| a.metadata.age_key().cmp(&b.metadata.age_key()));
        let names = selecting.into_iter().map(|policy| policy.metadata.full_name());
        names.chain(self.mutual_tls.strict_policy_of_pod(pod)).collect()
    }
}

/// Whether a policy is one of those that workloads name.
pub(super) fn selects_pods(policy: &AuthorizationPolicy) -> bool {
    not_ours(policy).is_none() && policy.selector.is_some()
}

/// A policy, ready to be sent, and what of it is not in force as written.
pub(super) fn compile_authorization_policy(
    policy: &AuthorizationPolicy,
    mesh: &MeshConfig,
) -> (Option<Authorization>, Vec<Condition>) {
    if let Some((field, words)) = not_ours(policy) {
        let condition = Condition::new(
            Kind::AuthorizationPolicy,
            &policy.metadata,
            field,
            ConditionEffect::Ignored,
            words,
        );
        return (None, vec![condition.nothing_in_force()]);
    }
    let (rules, mut conditions) = rules::convert_rules(policy);
    conditions.extend(for_nobody(policy));
    let audit = policy.action == Action::Audit;
    let authorization = Authorization {
        name: policy.metadata.name.clone(),
        namespace: policy.metadata.namespace.clone(),
        scope: scope(policy, mesh).into(),
        action: action(policy.action).into(),
        rules,
        // To an agent that does not know our extension, an AUDIT policy is a dry run: never enforced.
        dry_run: audit || policy.is_dry_run(),
        extensions: audit.then(audit_extension).into_iter().collect(),
    };
    (Some(authorization), conditions)
}

/// What of the policy can match nobody.
fn for_nobody(policy: &AuthorizationPolicy) -> impl Iterator<Item = Condition> {
    policy.values_for_nobody().into_iter().map(|(field, found)| {
        let reason = format!("{}; {}", found.problem, policy.without_effect());
        Condition::new(
            Kind::AuthorizationPolicy,
            &policy.metadata,
            field,
            ConditionEffect::Ignored,
            (reason, found.fix),
        )
    })
}

fn scope(policy: &AuthorizationPolicy, mesh: &MeshConfig) -> Scope {
    match policy.selector {
        Some(_) => Scope::WorkloadSelector,
        None if policy.metadata.namespace == mesh.root_namespace => Scope::Global,
        None => Scope::Namespace,
    }
}

/// Why the policy is not for node agents and what to write instead, after the field that says so.
fn not_ours(policy: &AuthorizationPolicy) -> Option<(&'static str, (&'static str, &'static str))> {
    if !policy.target_refs.is_empty() {
        let reason = "policies are enforced at workloads, so this one is asked about no connection";
        return Some(("spec.targetRefs", (reason, "choose the workloads with `selector`")));
    }
    if policy.action == Action::Custom {
        let reason = "the action CUSTOM is not supported; connections are decided without it";
        return Some(("spec.action", (reason, "write ALLOW or DENY, with rules about connections")));
    }
    None
}

fn action(action: Action) -> wire::Action {
    match action {
        Action::Deny => wire::Action::Deny,
        Action::Allow | Action::Audit | Action::Custom => wire::Action::Allow,
    }
}

fn audit_extension() -> Extension {
    Extension { name: ext::AUDIT.to_owned(), config: None }
}
