//! The Gateway API's routes, resolved for each Service that is a parent into tables of routes, which go
//! before those of virtual services.
//!
//! A route in its Service's own namespace is for all clients, one of another namespace for the clients of
//! that alone, who follow no other then. All that are for the same clients and port are one list, in the
//! order in which the API has them count.
//!
//! Reading order: `attach` finds the Services of a route and `rule` makes its rules, by `matches`, `filters`
//! and `backend`; `budget` leaves out what would be too large, and `tables` joins the routes of a Service.

mod attach;
mod backend;
mod budget;
mod cors;
mod filters;
mod grants;
mod header_edits;
mod matches;
mod rule;
mod tables;

use std::collections::{BTreeMap, HashSet};

use prost::Message;

use self::attach::{Attachment, attach};
use self::budget::beyond_budget;
use self::grants::Grants;
use self::rule::{MadeRule, RuleMaker};
use self::tables::tables_of_service;
use super::condition::ConditionList;
use super::object_store::{NamespacedName, ObjectStore, namespaced_name};
use super::virtual_services::CheckedExpressions;
use super::{Condition, MeshConfig, RouteFault};
use crate::kind::Kind;
use crate::resource::Metadata;
use crate::resource::gateway_api::GatewayRoute;
use crate::wire::ext;

/// Most bytes that one route comes to with all of its parents, each of which has it at every agent.
const MAX_BYTES: usize = 8 << 20;
/// Bytes of the tags and lengths around a route and its name, at most.
const FRAME: usize = 16;

/// What the routes come to, for whatever service.
#[derive(Debug, Default)]
pub(super) struct ResolvedGatewayRoutes {
    tables: BTreeMap<NamespacedName, Vec<ext::HttpRouteTable>>,
    /// Services that routes name, whether there are such: they are resolved anew when one of these changes.
    named: HashSet<NamespacedName>,
    conditions: Vec<Condition>,
    expressions: CheckedExpressions,
}

/// One route, by itself.
struct MadeRoute<'a> {
    /// As people call it.
    source: String,
    attachments: Vec<Attachment>,
    rules: Vec<MadeRule>,
    said: ConditionList<'a>,
}

/// What a route is resolved by.
#[derive(Clone, Copy)]
struct Known<'a> {
    objects: &'a ObjectStore,
    mesh: &'a MeshConfig,
    grants: &'a Grants<'a>,
}

impl ResolvedGatewayRoutes {
    /// Takes in all routes. `before`: what they came to last.
    pub fn new(objects: &ObjectStore, mesh: &MeshConfig, before: &mut Self) -> Self {
        let mut resolved =
            Self { expressions: std::mem::take(&mut before.expressions).begin(), ..Self::default() };
        let grants = Grants::new(objects);
        let known = Known { objects, mesh, grants: &grants };
        let routes = objects.gateway_routes().into_iter();
        let mut routes: Vec<_> =
            routes.map(|(kind, metadata, route)| resolved.take_in(known, kind, metadata, route)).collect();
        resolved.expressions.forget_unused();
        for (route, parent) in resolved.join(objects, &routes) {
            routes[route].leave_out(parent);
        }
        resolved.conditions = routes.into_iter().flat_map(|route| route.said.into_conditions()).collect();
        resolved
    }

    /// Makes the tables of all services. Returns the attachments that were left out of them: the index of the
    /// route, and that of its parent.
    fn join(&mut self, objects: &ObjectStore, routes: &[MadeRoute<'_>]) -> Vec<(usize, usize)> {
        let mut by_service: BTreeMap<&NamespacedName, Vec<(usize, &Attachment)>> = BTreeMap::new();
        for (index, route) in routes.iter().enumerate() {
            for attachment in &route.attachments {
                by_service.entry(&attachment.service).or_default().push((index, attachment));
            }
        }
        let mut left_out = Vec::new();
        for (name, mut attached) in by_service {
            let Some(service) = objects.service(name) else { continue };
            let beyond = beyond_budget(service, &attached, routes);
            attached.retain(|(route, attachment)| !beyond.contains(&(*route, attachment.parent)));
            left_out.extend(beyond);
            self.tables.insert(name.clone(), tables_of_service(service, &attached, routes));
        }
        left_out
    }

    fn take_in<'a>(
        &mut self,
        Known { objects, mesh, grants }: Known<'_>,
        kind: Kind,
        metadata: &'a Metadata,
        route: &GatewayRoute,
    ) -> MadeRoute<'a> {
        let mut said = ConditionList::new(kind, metadata);
        let mut attachments = Vec::new();
        for parent in &route.parents {
            self.named.insert((parent.namespace.clone(), parent.name.clone()));
            match attach(parent, &metadata.namespace, objects) {
                Ok(attachment) => attachments.push(attachment),
                Err(refused) => refused.tell(parent.index, &mut said),
            }
        }
        if attachments.is_empty() {
            said.nothing_in_force();
        }
        if route.has_hostnames {
            let reason = "hosts are for gateways: for a Service's clients the Service decides that they call";
            said.ignore("spec.hostnames", reason, "remove it");
        }
        let mut maker = RuleMaker {
            kind,
            metadata,
            route,
            objects,
            mesh,
            grants,
            expressions: &mut self.expressions,
            named: &mut self.named,
            said: &mut said,
        };
        let mut rules = maker.rules();
        let bytes: usize = rules.iter().flatten().map(MadeRule::cost).sum();
        if bytes.saturating_mul(attachments.len()) > MAX_BYTES {
            let reason = "every agent holds the route for each of its parents, and it is too large for that";
            said.ignore_for(RouteFault::UnsupportedValue, "spec.rules", reason, "split or shorten it");
            said.nothing_in_force();
            rules = None;
        }
        if rules.is_none() || route.rules.is_empty() {
            // A route that is not accepted, or has no rules, says nothing of requests that others take.
            attachments.clear();
        }
        let source = format!("{kind} {}", metadata.full_name());
        MadeRoute { source, attachments, rules: rules.unwrap_or_default(), said }
    }

    /// The services whose tables are not those of before.
    pub fn changed_since(&self, before: &Self) -> Vec<NamespacedName> {
        let names: HashSet<_> = self.tables.keys().chain(before.tables.keys()).collect();
        let differ = names.into_iter().filter(|name| self.tables.get(*name) != before.tables.get(*name));
        differ.cloned().collect()
    }

    /// Whether a service is a parent or a backend of some route.
    pub fn names(&self, service: &NamespacedName) -> bool {
        self.named.contains(service)
    }

    /// The tables of a service.
    pub fn tables(&self, metadata: &Metadata) -> &[ext::HttpRouteTable] {
        self.tables.get(&namespaced_name(metadata)).map_or(&[], Vec::as_slice)
    }

    /// What of the routes is not in force.
    pub fn conditions(&self) -> &[Condition] {
        &self.conditions
    }
}

/// Whether a table is for all clients and ports of its service, so that none is left for those behind it.
pub(super) fn is_for_all(table: &ext::HttpRouteTable) -> bool {
    table.client_namespaces.is_empty() && table.ports.is_empty()
}

impl MadeRoute<'_> {
    /// Says that it does not count for one of its parents.
    fn leave_out(&mut self, parent: usize) {
        let reason =
            "every agent holds the routes of this Service, and older ones are as large as they may be";
        let field = format!("spec.parentRefs[{parent}]");
        self.said.ignore_for(RouteFault::UnsupportedValue, field, reason, "remove or shorten other routes");
        self.attachments.retain(|attachment| attachment.parent != parent);
        if self.attachments.is_empty() {
            self.said.nothing_in_force();
        }
    }

    /// Bytes that it comes to in one table, with its name beside each part where it is joined with others.
    fn cost(&self) -> usize {
        let name = self.source.len() + FRAME;
        self.rules.iter().map(|rule| rule.cost() + name * rule.matches.len()).sum()
    }
}

impl MadeRule {
    /// Bytes that it comes to.
    fn cost(&self) -> usize {
        let matches: usize = self.matches.iter().map(|(_, matched)| matched.encoded_len()).sum();
        // Where rules alternate, each match may have the whole route beside it.
        matches + self.route.encoded_len() * self.matches.len()
    }
}
