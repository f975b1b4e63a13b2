//! The policies, and which of them apply to a workload.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use super::ConnectionAttributes;
use super::rule::Rule;
use crate::plan::Workload;
use crate::plan::field_parsing::{self, Invalid};
use crate::wire::{ext, security as wire};

/// A policy, compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Policy {
    name: Arc<str>,
    namespace: Arc<str>,
    scope: Scope,
    action: Action,
    dry_run: bool,
    rules: Result<Box<[Rule]>, Invalid>,
}

/// The workloads that a policy applies to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// All workloads.
    Mesh,
    /// Workloads of its namespace.
    Namespace,
    /// Workloads that name it.
    Workload,
}

/// The action of a policy on a connection that it matches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Allows it, unless something denies it.
    Allow,
    /// Denies it.
    Deny,
    /// Records it.
    Audit,
}

impl Policy {
    /// Returns `namespace/name`.
    pub fn namespaced_name(&self) -> &Arc<str> {
        &self.name
    }

    /// Returns the namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Returns the workloads that it applies to.
    pub fn scope(&self) -> Scope {
        self.scope
    }

    /// Returns its action.
    pub fn action(&self) -> Action {
        self.action
    }

    /// Whether it is only evaluated and recorded (dry run). False for AUDIT policies, which never do more.
    pub fn is_dry_run(&self) -> bool {
        self.dry_run
    }

    /// Returns the number of its rules.
    pub fn rule_count(&self) -> usize {
        self.rules.as_ref().map_or(0, |rules| rules.len())
    }

    /// Returns what is wrong with it, if it could not be parsed. Such a policy denies wherever it applies.
    pub fn parse_error(&self) -> Option<&Invalid> {
        self.rules.as_ref().err()
    }

    pub(super) fn is_enforced(&self) -> bool {
        !self.dry_run && self.action != Action::Audit
    }

    /// Returns the index of the first rule that matches.
    pub(super) fn first_matching_rule_index(&self, connection: &ConnectionAttributes<'_>) -> Option<usize> {
        self.rules.as_ref().ok()?.iter().position(|rule| rule.matches(connection))
    }
}

impl TryFrom<wire::Authorization> for Policy {
    type Error = Invalid;

    /// Parses a policy; a condition that can't be parsed is kept as a fault. Errors: its action or scope is
    /// not known.
    fn try_from(from: wire::Authorization) -> Result<Self, Invalid> {
        let audit = from.extensions.iter().any(|extension| extension.name == ext::AUDIT);
        let name = field_parsing::require_non_empty("name", &from.name)?;
        let namespace = field_parsing::require_non_empty("namespace", &from.namespace)?;
        Ok(Self {
            name: format!("{namespace}/{name}").into(),
            namespace: namespace.into(),
            scope: match field_parsing::parse_enum("scope", from.scope)? {
                wire::Scope::Global => Scope::Mesh,
                wire::Scope::Namespace => Scope::Namespace,
                wire::Scope::WorkloadSelector => Scope::Workload,
            },
            action: match field_parsing::parse_enum("action", from.action)? {
                _ if audit => Action::Audit,
                wire::Action::Allow => Action::Allow,
                wire::Action::Deny => Action::Deny,
            },
            dry_run: from.dry_run && !audit,
            rules: from.rules.iter().map(Rule::try_from).collect(),
        })
    }
}

/// All policies. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(in crate::plan) struct PolicySet {
    by_name: Arc<HashMap<Arc<str>, Arc<Policy>>>,
    mesh: Arc<[Arc<Policy>]>,
    by_namespace: Arc<HashMap<Arc<str>, Vec<Arc<Policy>>>>,
}

impl PolicySet {
    pub(in crate::plan) fn all(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.by_name.values()
    }

    /// Whether both are the same state, not just equal ones.
    pub(in crate::plan) fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.by_name, &other.by_name)
    }

    /// Iterates over the policies that apply to a workload: of the mesh, of its namespace, then those that it
    /// names. A missing one is its name alone.
    pub(in crate::plan) fn applying_or_missing<'a>(
        &'a self,
        workload: &'a Workload,
    ) -> impl Iterator<Item = Result<&'a Arc<Policy>, &'a Arc<str>>> {
        let namespace = self.by_namespace.get(&workload.namespace).into_iter().flatten();
        let named = workload.policies.iter().map(|name| self.by_name.get(name).ok_or(name));
        let twice = |policy: &Policy| match policy.scope {
            Scope::Mesh => true,
            Scope::Namespace => policy.namespace == workload.namespace,
            Scope::Workload => false,
        };
        self.mesh
            .iter()
            .chain(namespace)
            .map(Ok)
            .chain(named.filter(move |named| !named.is_ok_and(|policy| twice(policy))))
    }
}

/// Changes a set of policies.
#[derive(Debug, Default)]
pub(in crate::plan) struct PolicyEditor {
    set: PolicySet,
    stale: bool,
}

impl PolicyEditor {
    /// Whether a policy of that name is held that could be parsed.
    pub(in crate::plan) fn contains_valid(&self, name: &str) -> bool {
        self.set.by_name.get(name).is_some_and(|policy| policy.parse_error().is_none())
    }

    /// Adds or replaces a policy. Returns whether that changed anything.
    pub(in crate::plan) fn insert(&mut self, policy: Policy) -> bool {
        if self.set.by_name.get(&policy.name).is_some_and(|old| **old == policy) {
            return false;
        }
        Arc::make_mut(&mut self.set.by_name).insert(policy.name.clone(), Arc::new(policy));
        self.stale = true;
        true
    }

    /// Whether there was one.
    pub(in crate::plan) fn remove(&mut self, name: &str) -> bool {
        let known = self.set.by_name.contains_key(name);
        if known {
            Arc::make_mut(&mut self.set.by_name).remove(name);
            self.stale = true;
        }
        known
    }

    /// Returns the set as it is now.
    pub(in crate::plan) fn snapshot(&mut self) -> PolicySet {
        if std::mem::take(&mut self.stale) {
            // Sorted by name, so that of several policies that match always the same one is named.
            let mut policies: Vec<_> = self.set.by_name.values().cloned().collect();
            policies.sort_unstable_by(|a, b| a.name.cmp(&b.name));
            let of_scope =
                |scope| policies.iter().filter(move |policy| policy.scope == scope).map(Arc::clone);
            self.set.mesh = of_scope(Scope::Mesh).collect();
            let mut by_namespace: HashMap<Arc<str>, Vec<Arc<Policy>>> = HashMap::new();
            for policy in of_scope(Scope::Namespace) {
                by_namespace.entry(policy.namespace.clone()).or_default().push(policy);
            }
            self.set.by_namespace = Arc::new(by_namespace);
        }
        self.set.clone()
    }
}

impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mesh => "mesh",
            Self::Namespace => "namespace",
            Self::Workload => "workload",
        })
    }
}

impl fmt::Display for Action {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Allow => "ALLOW",
            Self::Deny => "DENY",
            Self::Audit => "AUDIT",
        })
    }
}
