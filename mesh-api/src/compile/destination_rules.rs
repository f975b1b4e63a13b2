//! `DestinationRule`s, resolved for each service into a list that an agent reads from the top until a client
//! fits.
//!
//! Istio looks in the client's namespace, then in the service's, then in the root namespace, and takes the
//! first that has a rule for the host; within it the exact host counts before wildcards, and rules for chosen
//! clients before rules for all. The list has that order, so agents need none of these rules.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use prost::Message;

use super::asked_labels::AskedLabels;
use super::condition::ConditionList;
use super::object_store::ObjectStore;
use super::service_host::{self, ServiceHosts};
use super::traffic_policies::{encoded_extension, port_policies, port_policy, subset_policy};
use super::{Condition, MeshConfig};
use crate::{
    manifest::Kind,
    resource::{DestinationRule, LabelSelector, Labels, Subset, TrafficPolicy},
    wire::{ext, type_url, workload::Extension},
};

/// Most policies that the subsets of a service have: each has all that the service has for single ports.
const MAX_POLICIES_OF_SUBSETS: usize = 16_384;

/// What the rules come to, for whatever service.
#[derive(Debug, Default)]
pub(super) struct ResolvedRules {
    groups: Vec<Group>,
    /// By host: groups for one host, whose order is that of age.
    exact: HashMap<String, Vec<usize>>,
    /// Groups for several hosts.
    wildcards: Vec<usize>,
    /// By name of a subset, the groups that have it.
    with_subset: HashMap<String, Vec<usize>>,
    /// Rules that have no effect beside an older one.
    conditions: Vec<Condition>,
}

impl ResolvedRules {
    /// The extension of a service that rules apply to.
    pub fn traffic_policies_extension(
        &self,
        namespace: &str,
        hostname: &str,
        mesh: &MeshConfig,
    ) -> Option<Extension> {
        let policies = self.fitting(hostname).policies(namespace, &mesh.root_namespace);
        let has_any = !policies.is_empty();
        has_any.then(|| {
            let value = ext::TrafficPolicies { policies }.encode_to_vec();
            encoded_extension(ext::TRAFFIC_POLICIES, type_url::TRAFFIC_POLICIES, value)
        })
    }

    /// Adds the labels that rules ask about: clients, and the endpoints of subsets.
    pub fn add_asked_labels(&self, asked: &mut AskedLabels, mesh: &MeshConfig) {
        for group in &self.groups {
            asked.add(Some(&group.namespace), &group.client_labels);
            // The pods of a service are in its namespace.
            let service = service_host::service_of_host(&group.host, mesh);
            let namespace = service.as_ref().map(|(namespace, _)| namespace.as_str());
            for subset in group.subsets.values() {
                asked.add(namespace, &subset.labels);
            }
        }
    }

    /// Whether some rule for a host has a subset.
    pub fn has_subset(&self, host: &str, name: &str) -> bool {
        let mut groups = self.with_subset.get(name).into_iter().flatten().map(|index| &self.groups[*index]);
        groups.any(|group| service_host::match_specificity(&group.host, host).is_some())
    }
}

impl ResolvedRules {
    /// Joins rules, the oldest first. Of several traffic policies the first that says anything counts, alone;
    /// so does of several subsets of one name the first.
    pub fn new(objects: &ObjectStore, mesh: &MeshConfig) -> Self {
        let mut traffic = Self::default();
        let rules = objects.destination_rules();
        let mut conditions: Vec<_> =
            rules.iter().map(|rule| ConditionList::new(Kind::DestinationRule, &rule.metadata)).collect();
        let mut groups = Vec::with_capacity(rules.len());
        for (rule, said) in rules.iter().zip(&mut conditions) {
            groups.push(traffic.add(rule, mesh, said));
        }
        // How much subsets come to depends on the traffic policy beside them.
        for ((rule, group), said) in rules.iter().zip(groups).zip(&mut conditions) {
            traffic.add_subsets(rule, group, said);
        }
        traffic.conditions = conditions.into_iter().flat_map(ConditionList::into_conditions).collect();
        traffic
    }

    /// Returns the rule's group.
    fn add(&mut self, rule: &DestinationRule, mesh: &MeshConfig, said: &mut ConditionList<'_>) -> usize {
        let selector: Option<&LabelSelector> = rule.workload_selector.as_ref();
        let group = Group {
            namespace: rule.metadata.namespace.clone(),
            host: service_host::resolve_rule_host(&rule.host, &rule.metadata.namespace, mesh),
            export_to: exported_to(rule),
            client_labels: selector.map_or_else(Labels::new, |selector| selector.match_labels.clone()),
            policy: rule.policy.clone(),
            subsets: BTreeMap::new(),
        };
        let beside = self.exact.entry(group.host.clone()).or_default();
        let same = beside.iter().copied().find(|index| self.groups[*index].is_one_with(&group));
        let Some(index) = same else {
            let index = self.groups.len();
            beside.push(index);
            if group.host.starts_with('*') {
                self.wildcards.push(index);
            }
            self.groups.push(group);
            return index;
        };
        let older = &mut self.groups[index];
        if older.policy == TrafficPolicy::default() {
            older.policy = group.policy;
        } else if group.policy != TrafficPolicy::default() {
            let field = "spec.trafficPolicy";
            let reason = "an older rule for the host has a traffic policy, and only one counts";
            if rule.subsets.is_empty() {
                said.ignore_whole(field, reason, "write both into the older rule, and delete this one");
            } else {
                said.ignore(field, reason, "write both into the older rule");
            }
        }
        index
    }

    fn add_subsets(&mut self, rule: &DestinationRule, index: usize, said: &mut ConditionList<'_>) {
        let group = &mut self.groups[index];
        let most = MAX_POLICIES_OF_SUBSETS / (1 + group.policy.ports.len());
        for (number, subset) in rule.subsets.iter().enumerate() {
            let field = || format!("spec.subsets[{number}]");
            if group.subsets.contains_key(&subset.name) {
                let reason = "an older rule for the host has a subset of this name, and only that counts";
                said.ignore(field(), reason, "choose another name, or delete one of the two");
            } else if group.subsets.len() >= most {
                let reason = format!("the host has more than {most} subsets beside its `portLevelSettings`");
                said.ignore(field(), reason, "remove subsets that no route names, or ports");
            } else {
                group.subsets.insert(subset.name.clone(), subset.clone());
                self.with_subset.entry(subset.name.clone()).or_default().push(index);
            }
        }
    }

    /// What of the rules has no effect.
    pub fn conditions(
        &self,
        objects: &ObjectStore,
        hosts: &ServiceHosts<'_>,
        mesh: &MeshConfig,
    ) -> Vec<Condition> {
        let mut conditions = self.conditions.clone();
        for rule in objects.destination_rules() {
            let wanted = service_host::resolve_rule_host(&rule.host, &rule.metadata.namespace, mesh);
            if !hosts.has_any(&wanted) {
                let mut said = ConditionList::new(Kind::DestinationRule, &rule.metadata);
                let reason = service_host::no_service_reason(&wanted);
                said.ignore_whole("spec.host", reason, service_host::NO_SERVICE_FIX);
                conditions.extend(said.into_conditions());
            }
        }
        conditions
    }

    fn fitting(&self, hostname: &str) -> Fitting<'_> {
        let exact = self.exact.get(hostname).into_iter().flatten();
        let mut indices: Vec<usize> = exact.chain(&self.wildcards).copied().collect();
        // By age, as the sort that follows keeps it.
        indices.sort_unstable();
        indices.dedup();
        Fitting::new(indices.into_iter().map(|index| &self.groups[index]), hostname)
    }
}

/// Whether a rule says anything about a service of that host name.
pub(super) fn rule_covers_host(rule: &DestinationRule, hostname: &str, mesh: &MeshConfig) -> bool {
    let wanted = service_host::resolve_rule_host(&rule.host, &rule.metadata.namespace, mesh);
    service_host::match_specificity(&wanted, hostname).is_some()
}

/// Rules that are one: the same host, clients and visibility in the same namespace.
#[derive(Debug)]
struct Group {
    namespace: String,
    host: String,
    export_to: BTreeSet<String>,
    client_labels: Labels,
    policy: TrafficPolicy,
    /// By name.
    subsets: BTreeMap<String, Subset>,
}

/// Namespaces that see a rule; none stands for all.
fn exported_to(rule: &DestinationRule) -> BTreeSet<String> {
    if rule.export_to.iter().any(|name| name == "*") {
        return BTreeSet::new();
    }
    rule.export_to.iter().cloned().collect()
}

impl Group {
    fn is_one_with(&self, other: &Self) -> bool {
        self.namespace == other.namespace
            && self.host == other.host
            && self.export_to == other.export_to
            && self.client_labels == other.client_labels
    }

    /// Other namespaces whose clients see it; `None` means all.
    fn outside(&self) -> Option<Vec<String>> {
        if self.export_to.is_empty() {
            return None;
        }
        let others = self.export_to.iter().filter(|name| *name != "." && **name != self.namespace);
        Some(others.cloned().collect())
    }

    fn covering(&self, client_namespaces: Vec<String>) -> ext::TrafficPolicy {
        ext::TrafficPolicy {
            client_namespaces,
            client_labels: self.client_labels.clone(),
            default: Some(port_policy(&self.policy.settings)),
            ports: port_policies(&self.policy),
            subsets: self
                .subsets
                .iter()
                .map(|(name, subset)| (name.clone(), subset_policy(&self.policy, subset)))
                .collect(),
        }
    }
}

/// The groups whose host covers one service: the closest host first, then those for chosen clients, then by
/// age.
struct Fitting<'a> {
    groups: Vec<&'a Group>,
}

impl<'a> Fitting<'a> {
    fn new(groups: impl Iterator<Item = &'a Group>, hostname: &str) -> Self {
        let mut fitting: Vec<_> =
            groups.filter_map(|g| Some((service_host::match_specificity(&g.host, hostname)?, g))).collect();
        fitting.sort_by_key(|(closeness, group)| {
            (std::cmp::Reverse(*closeness), group.client_labels.is_empty())
        });
        Self { groups: fitting.into_iter().map(|(_, group)| group).collect() }
    }

    fn policies(&self, service_namespace: &str, root_namespace: &str) -> Vec<ext::TrafficPolicy> {
        let namespaces: BTreeSet<&str> = self.groups.iter().map(|group| group.namespace.as_str()).collect();
        let mut policies = Vec::new();
        for namespace in namespaces.into_iter().filter(|namespace| *namespace != root_namespace) {
            policies.extend(self.own(namespace));
        }
        if service_namespace != root_namespace {
            policies.extend(self.exported(service_namespace));
        }
        // Clients in the root namespace have only now come to rules of their own.
        policies.extend(self.own(root_namespace));
        policies.extend(self.exported(root_namespace));
        policies
    }

    fn of(&self, namespace: &str) -> impl Iterator<Item = &'a Group> {
        self.groups.iter().copied().filter(move |group| group.namespace == namespace)
    }

    /// What a namespace's rules come to for its own clients, who see all of them.
    fn own(&self, namespace: &str) -> Vec<ext::TrafficPolicy> {
        let mut policies = Vec::new();
        for group in self.of(namespace) {
            policies.push(group.covering(vec![namespace.to_owned()]));
            if group.client_labels.is_empty() {
                // It covers every client of the namespace, so the rest would never be reached.
                break;
            }
        }
        policies
    }

    /// What a namespace's rules come to for clients elsewhere. Rules for chosen clients stay at home.
    fn exported(&self, namespace: &str) -> Vec<ext::TrafficPolicy> {
        let mut policies = Vec::new();
        for group in self.of(namespace).filter(|group| group.client_labels.is_empty()) {
            match group.outside() {
                Some(namespaces) if namespaces.is_empty() => {}
                Some(namespaces) => policies.push(group.covering(namespaces)),
                None => {
                    policies.push(group.covering(Vec::new()));
                    break;
                }
            }
        }
        policies
    }
}
