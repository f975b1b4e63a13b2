//! `DestinationRule`s, resolved for each service into a list that an agent reads from the top until a client
//! fits.
//!
//! Istio looks in the client's namespace, then in the service's, then in the root namespace, and takes the
//! first that has a rule for the host; within it the exact host counts before wildcards, and rules for chosen
//! clients before rules for all. The list has that order, so agents need none of these rules.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use prost::Message;
use prost_types::{Any, Duration};

use super::object_store::ObjectStore;
use super::{Condition, ConditionEffect, MeshConfig, service_host};
use crate::{
    manifest::Kind,
    resource::{
        ConnectionPool, DestinationRule, LabelSelector, Labels, LoadBalancer, Metadata, OutlierDetection,
        TcpKeepalive, TrafficPolicy, TrafficSettings,
    },
    wire::{ext, type_url, workload::Extension},
};

/// What the rules come to, for whatever service.
#[derive(Debug, Default)]
pub(super) struct ResolvedRules {
    groups: Vec<Group>,
    /// By host: groups for one host, whose order is that of age.
    exact: HashMap<String, Vec<usize>>,
    /// Groups for several hosts.
    wildcards: Vec<usize>,
    /// By namespace: labels of clients that some rule asks about.
    asked: BTreeMap<String, BTreeSet<String>>,
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

    /// The extension of a workload that has labels which rules ask about.
    pub fn client_labels_extension(&self, pod: &Metadata) -> Option<Extension> {
        let asked = self.asked.get(&pod.namespace)?;
        let labels: Labels = pod
            .labels
            .iter()
            .filter(|(key, _)| asked.contains(*key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect();
        let has_any = !labels.is_empty();
        has_any
            .then(|| encoded_extension(ext::LABELS, type_url::LABELS, ext::Labels { labels }.encode_to_vec()))
    }
}

impl ResolvedRules {
    /// Joins rules, the oldest first. Of several traffic policies the first that says anything counts, alone.
    pub fn new(objects: &ObjectStore, mesh: &MeshConfig) -> Self {
        let mut traffic = Self::default();
        for rule in objects.destination_rules() {
            traffic.add(rule, mesh);
        }
        for group in traffic.groups.iter().filter(|group| !group.client_labels.is_empty()) {
            let asked = traffic.asked.entry(group.namespace.clone()).or_default();
            asked.extend(group.client_labels.keys().cloned());
        }
        traffic
    }

    fn add(&mut self, rule: &DestinationRule, mesh: &MeshConfig) {
        let selector: Option<&LabelSelector> = rule.workload_selector.as_ref();
        let group = Group {
            namespace: rule.metadata.namespace.clone(),
            host: service_host::resolve_rule_host(&rule.host, &rule.metadata.namespace, mesh),
            export_to: exported_to(rule),
            client_labels: selector.map_or_else(Labels::new, |selector| selector.match_labels.clone()),
            policy: rule.policy.clone(),
        };
        let beside = self.exact.entry(group.host.clone()).or_default();
        let same = beside.iter().copied().find(|index| self.groups[*index].is_one_with(&group));
        let Some(older) = same.map(|index| &mut self.groups[index]) else {
            beside.push(self.groups.len());
            if group.host.starts_with('*') {
                self.wildcards.push(self.groups.len());
            }
            self.groups.push(group);
            return;
        };
        if older.policy == TrafficPolicy::default() {
            older.policy = group.policy;
        } else if group.policy != TrafficPolicy::default() {
            let reason = "an older rule for the host has a traffic policy, and only one counts";
            let fix = "write both into the older rule, and delete this one";
            self.conditions.push(condition(rule, "spec.trafficPolicy", (reason, fix)).nothing_in_force());
        }
    }

    /// What of the rules has no effect.
    pub fn conditions(&self, objects: &ObjectStore, mesh: &MeshConfig) -> Vec<Condition> {
        let mut conditions = self.conditions.clone();
        let rules = objects.destination_rules();
        if rules.is_empty() {
            return conditions;
        }
        let services = objects.services().filter(|service| !service.is_external_name());
        let hosts = services
            .map(|it| service_host::service_hostname(&it.metadata.name, &it.metadata.namespace, mesh));
        let hosts: HashSet<String> = hosts.collect();
        for rule in rules {
            let wanted = service_host::resolve_rule_host(&rule.host, &rule.metadata.namespace, mesh);
            let fits = |host: &String| service_host::match_specificity(&wanted, host).is_some();
            let known = hosts.contains(&wanted) || wanted.starts_with('*') && hosts.iter().any(fits);
            if !known {
                let reason = format!("{wanted} is no Service of the mesh");
                let fix =
                    "write the name of a Service of this namespace, or NAME.NAMESPACE.svc and the domain";
                conditions.push(condition(rule, "spec.host", (&reason, fix)).nothing_in_force());
            }
            if !rule.subsets.is_empty() {
                let reason = "only routes choose a subset, and routes are not read";
                let fix =
                    "write what is for all endpoints into `trafficPolicy`, or make a Service for the subset";
                conditions.push(condition(rule, "spec.subsets", (reason, fix)));
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
            ports: self.policy.ports.iter().map(|(port, of)| (u32::from(*port), port_policy(of))).collect(),
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

fn port_policy(settings: &TrafficSettings) -> ext::PortPolicy {
    let lb = match settings.load_balancer.unwrap_or_default() {
        LoadBalancer::Unspecified => ext::LoadBalancer::Unspecified,
        LoadBalancer::LeastRequest => ext::LoadBalancer::LeastRequest,
        LoadBalancer::RoundRobin => ext::LoadBalancer::RoundRobin,
        LoadBalancer::Random => ext::LoadBalancer::Random,
        LoadBalancer::Passthrough => ext::LoadBalancer::Passthrough,
    };
    ext::PortPolicy {
        lb: lb.into(),
        pool: settings.pool.as_ref().map(pool),
        outlier: settings.outlier.as_ref().map(outlier),
    }
}

fn pool(pool: &ConnectionPool) -> ext::ConnectionPool {
    ext::ConnectionPool {
        max_connections: pool.max_connections.unwrap_or_default(),
        connect_timeout: pool.connect_timeout.and_then(duration),
        keepalive: pool.keepalive.as_ref().map(keepalive),
        max_connection_duration: pool.max_connection_duration.and_then(duration),
        idle_timeout: pool.idle_timeout.and_then(duration),
    }
}

fn keepalive(keepalive: &TcpKeepalive) -> ext::TcpKeepalive {
    ext::TcpKeepalive {
        probes: keepalive.probes.unwrap_or_default(),
        time: keepalive.time.and_then(duration),
        interval: keepalive.interval.and_then(duration),
    }
}

fn outlier(outlier: &OutlierDetection) -> ext::OutlierDetection {
    ext::OutlierDetection {
        consecutive_errors: outlier.consecutive_errors,
        interval: duration(outlier.interval),
        base_ejection_time: duration(outlier.base_ejection_time),
        max_ejection_percent: outlier.max_ejection_percent,
        min_health_percent: outlier.min_health_percent,
    }
}

/// A duration beyond what the wire can say (292 billion years) is as good as none.
fn duration(duration: std::time::Duration) -> Option<Duration> {
    duration.try_into().ok()
}

pub(super) fn encoded_extension(name: &str, type_url: &str, value: Vec<u8>) -> Extension {
    Extension { name: name.to_owned(), config: Some(Any { type_url: type_url.to_owned(), value }) }
}

fn condition(rule: &DestinationRule, field: &str, words: (&str, &str)) -> Condition {
    Condition::new(Kind::DestinationRule, &rule.metadata, field, ConditionEffect::Ignored, words)
}
