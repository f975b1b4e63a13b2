//! `PeerAuthentication`: which mode holds for a pod, and the DENY policies that stand for STRICT.
//!
//! A policy with a selector counts before its namespace's, that before the mesh's, and without any a workload
//! takes both mutual TLS and plaintext. Of several at one level the oldest counts. The policies are named as
//! Istio names them, so that its tools and agents know them.

use std::collections::BTreeMap;

use crate::{
    compile::{Condition, ConditionEffect, MeshConfig, object_store::ObjectStore},
    manifest::Kind,
    resource::{MtlsMode, PeerAuthentication, Pod},
    wire::security::{Action, Authorization, Clause, Match, PORT_LEVEL_STRICT, Rule, STRICT, Scope},
};

use super::matches;

/// The policies that count.
pub(in crate::compile) struct MutualTlsModes<'a> {
    root_namespace: &'a str,
    any: bool,
    /// What of the policies is not in force as written.
    pub conditions: Vec<Condition>,
    /// Those without a selector; that of the root namespace is the mesh's.
    namespaces: BTreeMap<&'a str, &'a PeerAuthentication>,
    /// By namespace, the oldest first in each.
    workloads: BTreeMap<&'a str, Vec<&'a PeerAuthentication>>,
}

impl<'a> MutualTlsModes<'a> {
    /// Finds out which policies count, and says which do not.
    pub fn new(objects: &'a ObjectStore, mesh: &'a MeshConfig) -> Self {
        let policies = objects.peer_authentications();
        let mut modes = Self {
            root_namespace: &mesh.root_namespace,
            any: !policies.is_empty(),
            conditions: Vec::new(),
            namespaces: BTreeMap::new(),
            workloads: BTreeMap::new(),
        };
        for policy in policies {
            let conditions = modes.add(policy).into_iter().chain(disabled(policy));
            modes.conditions.extend(conditions);
        }
        modes
    }

    /// Takes the next younger policy.
    fn add(&mut self, policy: &'a PeerAuthentication) -> Option<Condition> {
        let namespace = policy.metadata.namespace.as_str();
        let in_root = namespace == self.root_namespace;
        let older = match &policy.selector {
            Some(_) if in_root => {
                let words = (
                    "a policy with a selector has no effect in the root namespace",
                    "put the policy into the namespace of its workloads",
                );
                return Some(
                    condition(policy, "spec.selector", ConditionEffect::Ignored, words).nothing_in_force(),
                );
            }
            Some(_) => {
                let beside = self.workloads.entry(namespace).or_default();
                let older = beside.iter().find(|older| older.selector == policy.selector).copied();
                // Selectors may overlap without being the same: which policy counts is a matter of each
                // workload.
                beside.push(policy);
                older
            }
            None => {
                let older = self.namespaces.get(namespace).copied();
                self.namespaces.entry(namespace).or_insert(policy);
                older
            }
        };
        let older = older?.metadata.full_name();
        let reason = format!("{older} is older, and only the oldest counts");
        let fix = format!("change {older} instead, and delete this one");
        Some(condition(policy, "spec", ConditionEffect::Ignored, (&reason, &fix)).nothing_in_force())
    }

    /// The policies to be sent.
    pub fn strict_policies(&self) -> BTreeMap<String, Authorization> {
        let mut authorizations = BTreeMap::new();
        if self.any {
            let rule = all_of([matches::unauthenticated_match()]);
            let policy = deny(self.root_namespace, STRICT.to_owned(), vec![rule]);
            authorizations.insert(self.strict_name(), policy);
        }
        for policy in self.workloads.values().flatten() {
            let rules = self.port_rules(policy);
            if !rules.is_empty() {
                let name = format!("{PORT_LEVEL_STRICT}{}", policy.metadata.name);
                authorizations
                    .insert(port_policy_name(policy), deny(&policy.metadata.namespace, name, rules));
            }
        }
        authorizations
    }

    /// Name of the policy that a pod has, if it requires mutual TLS anywhere.
    pub fn strict_policy_of_pod(&self, pod: &Pod) -> Option<String> {
        let beside = self.workloads.get(pod.metadata.namespace.as_str()).into_iter().flatten();
        let mut selecting =
            beside.filter(|it| it.selector.as_ref().is_some_and(|s| s.matches(&pod.metadata.labels)));
        let policy = selecting.next();
        let strict = match policy {
            Some(policy) if !self.port_rules(policy).is_empty() => return Some(port_policy_name(policy)),
            Some(policy) => self.base(policy) == Base::Strict,
            None => self.namespace_base(&pod.metadata.namespace) == Base::Strict,
        };
        strict.then(|| self.strict_name())
    }

    /// Rules of a policy whose ports differ from the rest of the workload.
    fn port_rules(&self, policy: &PeerAuthentication) -> Vec<Rule> {
        let base = self.base(policy);
        let differing = policy.port_modes.iter().filter_map(|(port, mode)| {
            let mode = Base::of(*mode).unwrap_or(base);
            (mode != base).then_some(u32::from(*port))
        });
        let ports: Vec<u32> = differing.collect();
        match base {
            _ if ports.is_empty() => Vec::new(),
            Base::Strict => {
                let elsewhere = Match { not_destination_ports: ports, ..Match::default() };
                vec![all_of([matches::unauthenticated_match(), elsewhere])]
            }
            Base::Permissive => {
                let at = |port| Match { destination_ports: vec![port], ..Match::default() };
                ports.into_iter().map(|port| all_of([matches::unauthenticated_match(), at(port)])).collect()
            }
        }
    }

    /// Mode of a workload that `policy` selects, at the ports that it does not list.
    fn base(&self, policy: &PeerAuthentication) -> Base {
        Base::of(policy.mode).unwrap_or_else(|| self.namespace_base(&policy.metadata.namespace))
    }

    fn namespace_base(&self, namespace: &str) -> Base {
        let levels = [namespace, self.root_namespace];
        let mut policies = levels.into_iter().filter_map(|level| self.namespaces.get(level));
        policies.find_map(|policy| Base::of(policy.mode)).unwrap_or(Base::Permissive)
    }

    fn strict_name(&self) -> String {
        format!("{}/{STRICT}", self.root_namespace)
    }
}

/// What a mode comes to at the server's side.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Base {
    Permissive,
    Strict,
}

impl Base {
    fn of(mode: MtlsMode) -> Option<Self> {
        match mode {
            MtlsMode::Unset => None,
            MtlsMode::Disable | MtlsMode::Permissive => Some(Self::Permissive),
            MtlsMode::Strict => Some(Self::Strict),
        }
    }
}

fn disabled(policy: &PeerAuthentication) -> Option<Condition> {
    let port = policy.port_modes.iter().find(|(_, mode)| **mode == MtlsMode::Disable);
    let field = match (policy.mode, port) {
        (MtlsMode::Disable, _) => "spec.mtls.mode".to_owned(),
        (_, Some((port, _))) => format!("spec.portLevelMtls.{port}.mode"),
        _ => return None,
    };
    let words = (
        "DISABLE is taken for PERMISSIVE: the transport between nodes stays encrypted",
        "write PERMISSIVE, which means the same here",
    );
    Some(condition(policy, &field, ConditionEffect::Weaker, words))
}

fn condition(
    policy: &PeerAuthentication,
    field: &str,
    effect: ConditionEffect,
    words: (&str, &str),
) -> Condition {
    Condition::new(Kind::PeerAuthentication, &policy.metadata, field, effect, words)
}

fn port_policy_name(policy: &PeerAuthentication) -> String {
    format!("{}/{PORT_LEVEL_STRICT}{}", policy.metadata.namespace, policy.metadata.name)
}

fn deny(namespace: &str, name: String, rules: Vec<Rule>) -> Authorization {
    Authorization {
        name,
        namespace: namespace.to_owned(),
        scope: Scope::WorkloadSelector.into(),
        action: Action::Deny.into(),
        rules,
        ..Authorization::default()
    }
}

/// A rule that asks for all of `matches`.
fn all_of(matches: impl IntoIterator<Item = Match>) -> Rule {
    Rule { clauses: matches.into_iter().map(|one| Clause { matches: vec![one] }).collect() }
}
