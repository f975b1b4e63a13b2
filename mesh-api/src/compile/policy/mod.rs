//! `AuthorizationPolicy` and `PeerAuthentication` as agents see them.

mod matches;
mod mutual_tls;
mod rules;

use std::collections::BTreeMap;

use super::{Condition, Effect, MeshConfig, World};
use crate::{
    manifest::Kind,
    resource::{Action, AuthorizationPolicy, Pod},
    wire::{
        ext,
        security::{self as wire, Authorization, Scope},
        workload::Extension,
    },
};

/// All policies, ready to be sent, and what is needed to say which of them a pod has.
pub(super) struct Policies<'a> {
    pub authorizations: BTreeMap<String, Authorization>,
    pub conditions: Vec<Condition>,
    root_namespace: &'a str,
    selecting: Vec<&'a AuthorizationPolicy>,
    mutual_tls: mutual_tls::Modes<'a>,
}

/// Compiles all policies.
pub(super) fn compile<'a>(world: &World<'a>, mesh: &'a MeshConfig) -> Policies<'a> {
    let (mutual_tls, conditions) = mutual_tls::Modes::new(world, mesh);
    let mut policies = Policies {
        authorizations: mutual_tls.authorizations(),
        conditions,
        root_namespace: &mesh.root_namespace,
        selecting: Vec::new(),
        mutual_tls,
    };
    for policy in &world.authorization_policies {
        policies.add(policy);
    }
    policies
}

impl<'a> Policies<'a> {
    /// `namespace/name` of the policies that select a pod.
    pub fn of_pod(&self, pod: &Pod) -> Vec<String> {
        let Pod { metadata, .. } = pod;
        let selecting = self.selecting.iter().filter(|policy| {
            let namespace = policy.metadata.namespace.as_str();
            let in_scope = namespace == self.root_namespace || namespace == metadata.namespace;
            in_scope && policy.selector.as_ref().is_some_and(|selector| selector.matches(&metadata.labels))
        });
        selecting.map(|policy| policy.metadata.full_name()).chain(self.mutual_tls.policy_of(pod)).collect()
    }

    fn add(&mut self, policy: &'a AuthorizationPolicy) {
        if let Some((field, reason)) = not_ours(policy) {
            let condition =
                Condition::new(Kind::AuthorizationPolicy, &policy.metadata, field, Effect::Ignored, reason);
            self.conditions.push(condition);
            return;
        }
        let (rules, conditions) = rules::convert(policy);
        self.conditions.extend(conditions);
        let audit = policy.action == Action::Audit;
        let authorization = Authorization {
            name: policy.metadata.name.clone(),
            namespace: policy.metadata.namespace.clone(),
            scope: self.scope(policy).into(),
            action: action(policy.action).into(),
            rules,
            // To an agent that does not know our extension, an AUDIT policy is a dry run: never enforced.
            dry_run: audit || policy.is_dry_run(),
            extensions: audit.then(audit_extension).into_iter().collect(),
        };
        self.authorizations.insert(policy.metadata.full_name(), authorization);
        if policy.selector.is_some() {
            self.selecting.push(policy);
        }
    }

    fn scope(&self, policy: &AuthorizationPolicy) -> Scope {
        match policy.selector {
            Some(_) => Scope::WorkloadSelector,
            None if policy.metadata.namespace == self.root_namespace => Scope::Global,
            None => Scope::Namespace,
        }
    }
}

/// Why the policy is not for node agents, and the field that says so.
fn not_ours(policy: &AuthorizationPolicy) -> Option<(&'static str, &'static str)> {
    if !policy.target_refs.is_empty() {
        return Some(("spec.targetRefs", "policies are enforced at workloads; choose them with `selector`"));
    }
    if policy.action == Action::Custom {
        return Some((
            "spec.action",
            "the action CUSTOM is not supported; connections are decided without it",
        ));
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
