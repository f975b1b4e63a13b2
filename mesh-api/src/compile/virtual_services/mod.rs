//! `VirtualService`s, resolved for each service into tables of routes, of which an agent uses the first that
//! covers a client.
//!
//! Of those for a host a client sees what is exported to its namespace. One of that very namespace which not
//! all see counts before one that another exports to it by name, and that before one that all see; among
//! these the oldest counts, alone. The service's own host counts before wildcards, and a longer one of these
//! before a shorter one.
//!
//! Reading order: `entry` takes in one virtual service, whose routes `route`, `request_match` and
//! `header_edits` make; `conditions` says what of it is not in force beside all else.

mod conditions;
mod entry;
mod expressions;
mod header_edits;
mod request_match;
mod route;

pub(super) use self::entry::{LEAVE, MAX_EXPRESSIONS};
pub(super) use self::expressions::CheckedExpressions;
pub(super) use self::request_match::{EXPRESSION_FIX, string_match};
pub(super) use self::route::USUAL_RETRY_CONDITIONS;

use std::collections::{BTreeMap, HashMap, HashSet};

use self::entry::Entry;
use super::MeshConfig;
use super::asked_labels::AskedLabels;
use super::object_store::{NamespacedName, ObjectStore, namespaced_name};
use super::service_host::{ends_of_host, resolve_rule_host, service_hostname, service_of_host};
use crate::resource::VirtualService;
use crate::wire::ext;

/// What virtual services come to, for whatever service.
#[derive(Debug, Default)]
pub(super) struct ResolvedRoutes {
    /// The oldest first; those that are not in force are for no host.
    entries: Vec<Entry>,
    /// By host, the indices of those for it, in order.
    exact: HashMap<String, Vec<usize>>,
    /// The same, by what is behind the star of a wildcard.
    wildcards: HashMap<String, Vec<usize>>,
    expressions: CheckedExpressions,
}

impl ResolvedRoutes {
    /// Takes in all virtual services. `before`: what they came to last.
    pub fn new(objects: &ObjectStore, mesh: &MeshConfig, before: Self) -> Self {
        let mut expressions = before.expressions.begin();
        let services = objects.virtual_services().into_iter();
        let entries = services.map(|service| Entry::new(service, mesh, &mut expressions)).collect();
        expressions.forget_unused();
        let mut routes = Self { entries, expressions, ..Self::default() };
        routes.sort_by_host();
        routes.find_shadowed();
        routes
    }

    fn sort_by_host(&mut self) {
        for (index, entry) in self.entries.iter().enumerate().filter(|(_, entry)| entry.is_in_force()) {
            for host in &entry.hosts {
                let indices = match host.strip_prefix('*') {
                    None => self.exact.entry(host.clone()).or_default(),
                    Some(end) => self.wildcards.entry(end.to_owned()).or_default(),
                };
                indices.push(index);
            }
        }
    }

    /// Notes of each entry for which of its hosts others count for all who see it.
    fn find_shadowed(&mut self) {
        let exact = self.exact.iter().map(|(host, indices)| (host.clone(), indices));
        let wildcards = self.wildcards.iter().map(|(end, indices)| (format!("*{end}"), indices));
        let mut shadowed = Vec::new();
        for (host, indices) in exact.chain(wildcards).filter(|(_, indices)| indices.len() > 1) {
            let mut clients = Clients::default();
            clients.add(&self.entries, indices);
            let used: HashSet<usize> = clients.by_namespace.values().copied().chain(clients.others).collect();
            for index in indices.iter().filter(|index| !used.contains(*index)) {
                if let Some(by) = clients.counts_instead_of(&self.entries[*index]) {
                    shadowed.push((*index, host.clone(), self.entries[by].name.clone()));
                }
            }
        }
        for (index, host, by) in shadowed {
            self.entries[index].shadowed_by.insert(host, by);
        }
    }

    /// The tables of a service.
    pub fn tables(&self, hostname: &str) -> Vec<ext::HttpRouteTable> {
        let mut clients = Clients::default();
        for indices in self.closest_first(hostname) {
            clients.add(&self.entries, indices);
            if clients.others.is_some() {
                // Nobody is left for wider hosts.
                break;
            }
        }
        clients.tables(&self.entries)
    }

    /// The entries for each host that covers a service.
    fn closest_first<'a>(&'a self, hostname: &'a str) -> impl Iterator<Item = &'a Vec<usize>> {
        let ends = ends_of_host(hostname).take_while(|_| !self.wildcards.is_empty());
        let wildcards = ends.filter_map(|end| self.wildcards.get(end));
        self.exact.get(hostname).into_iter().chain(wildcards)
    }

    /// Adds the labels of clients that routes ask about.
    pub fn add_asked_labels(&self, asked: &mut AskedLabels) {
        for entry in self.entries.iter().filter(|entry| entry.is_in_force()) {
            for matched in entry.routes.iter().flat_map(|(_, route)| &route.matches) {
                let named = Some(matched.client_namespace.as_str()).filter(|name| !name.is_empty());
                asked.add(named.or(entry.only_namespace()), &matched.client_labels);
            }
        }
    }
}

/// For whom which of several entries counts.
#[derive(Default)]
struct Clients<'a> {
    by_namespace: BTreeMap<&'a str, usize>,
    /// For all others.
    others: Option<usize>,
}

impl<'a> Clients<'a> {
    /// Has entries for one host, the oldest first, count for whom none does yet.
    fn add(&mut self, entries: &'a [Entry], indices: &[usize]) {
        let chosen =
            || indices.iter().filter_map(|index| Some((*index, entries[*index].export_to.as_ref()?)));
        for (index, namespaces) in chosen() {
            if let Some(own) = namespaces.get(&entries[index].name.0) {
                self.by_namespace.entry(own).or_insert(index);
            }
        }
        for (index, namespaces) in chosen() {
            for namespace in namespaces {
                self.by_namespace.entry(namespace).or_insert(index);
            }
        }
        self.others = indices.iter().copied().find(|index| entries[*index].export_to.is_none());
    }

    /// Which one counts where an entry would if there were no other.
    fn counts_instead_of(&self, entry: &Entry) -> Option<usize> {
        match &entry.export_to {
            None => self.others,
            Some(namespaces) => self.by_namespace.get(namespaces.first()?.as_str()).copied(),
        }
    }

    fn tables(&self, entries: &[Entry]) -> Vec<ext::HttpRouteTable> {
        let mut chosen: BTreeMap<usize, Vec<String>> = BTreeMap::new();
        for (namespace, index) in &self.by_namespace {
            chosen.entry(*index).or_default().push((*namespace).to_owned());
        }
        let others = self.others.map(|index| (index, Vec::new()));
        chosen.into_iter().chain(others).map(|(index, clients)| entries[index].table_for(clients)).collect()
    }
}

/// The services that a virtual service has a host for.
pub(super) fn services_named_by(
    service: &VirtualService,
    objects: &ObjectStore,
    mesh: &MeshConfig,
) -> Vec<NamespacedName> {
    let namespace = &service.metadata.namespace;
    let hosts: HashSet<String> =
        service.hosts.iter().map(|host| resolve_rule_host(host, namespace, mesh)).collect();
    let ends: HashSet<&str> = hosts.iter().filter_map(|host| host.strip_prefix('*')).collect();
    let exact = hosts.iter().filter_map(|host| service_of_host(host, mesh));
    let mut names: Vec<_> = exact.filter(|name| objects.service(name).is_some()).collect();
    if !ends.is_empty() {
        let all = objects.services().map(|service| namespaced_name(&service.metadata));
        names.extend(all.filter(|(namespace, name)| {
            let hostname = service_hostname(name, namespace, mesh);
            ends_of_host(&hostname).any(|end| ends.contains(end))
        }));
    }
    names
}
