//! One virtual service, by itself.

use std::collections::{BTreeSet, HashMap};

use prost::Message;

use super::expressions::CheckedExpressions;
use super::request_match::expressions_of_match;
use super::route::RouteMaker;
use crate::compile::condition::ConditionList;
use crate::compile::object_store::{NamespacedName, namespaced_name};
use crate::compile::service_host::resolve_rule_host;
use crate::compile::{Condition, MeshConfig};
use crate::manifest::Kind;
use crate::resource::VirtualService;
use crate::resource::virtual_service::{GatewayRef, HttpRoute, PathRewrite, StringMatch};
use crate::wire::ext;

/// Most regular expressions in the routes of one virtual service, since agents hold each compiled.
pub(in crate::compile) const MAX_EXPRESSIONS: usize = 100;
/// Most bytes that one virtual service comes to: every agent holds its routes for each service that they are
/// for.
const MAX_BYTES: usize = 8 << 20;
/// Services that a wildcard counts as.
const SERVICES_OF_WILDCARD: usize = 64;
/// Bytes that a namespace in `exportTo` counts as, which the control plane looks up for each service.
const BYTES_OF_NAMESPACE: usize = 64;

/// What a virtual service comes to.
#[derive(Debug)]
pub(super) struct Entry {
    pub name: NamespacedName,
    /// Its hosts in their order, as full names.
    pub hosts: Vec<String>,
    /// Namespaces whose clients see it. `None`: all do.
    pub export_to: Option<BTreeSet<String>>,
    /// What is in force of its routes, each with its index in `http`. Empty: nothing is.
    pub routes: Vec<(usize, ext::HttpRoute)>,
    /// What of it is not in force, whatever else there is.
    pub conditions: Vec<Condition>,
    /// By host, another that counts there for all who see this one.
    pub shadowed_by: HashMap<String, NamespacedName>,
}

impl Entry {
    pub fn new(service: &VirtualService, mesh: &MeshConfig, expressions: &mut CheckedExpressions) -> Self {
        let metadata = &service.metadata;
        let mut said = ConditionList::new(Kind::VirtualService, metadata);
        let mut entry = Self {
            name: namespaced_name(metadata),
            hosts: service.hosts.iter().map(|it| resolve_rule_host(it, &metadata.namespace, mesh)).collect(),
            export_to: exported_to(service),
            routes: Vec::new(),
            conditions: Vec::new(),
            shadowed_by: HashMap::new(),
        };
        if is_for_requests_in_the_mesh(service, &mut said) {
            let mut maker = RouteMaker { service, mesh, expressions, said: &mut said };
            entry.routes = maker.routes();
            if entry.routes.is_empty() {
                let fix = "add a route for clients in the mesh; the other conditions say what each lacks";
                said.ignore_whole("spec.http", "none of its routes is in force", fix);
            } else if entry.cost() > MAX_BYTES {
                let reason =
                    "every agent holds the routes for each of its hosts, and they are too large for that";
                let fix = "split it, name fewer hosts, or hosts instead of a wildcard, or shorten the routes";
                said.ignore_whole("spec.http", reason, fix);
                entry.routes.clear();
            }
        }
        entry.conditions = said.into_conditions();
        entry
    }

    /// Whether it is, as far as itself is concerned.
    pub fn is_in_force(&self) -> bool {
        !self.routes.is_empty()
    }

    /// The only namespace whose clients see it, if there is no other.
    pub fn only_namespace(&self) -> Option<&str> {
        let namespaces = self.export_to.as_ref().filter(|namespaces| namespaces.len() == 1)?;
        namespaces.first().map(String::as_str)
    }

    /// Its routes, for clients in these namespaces; none: for all.
    pub fn table_for(&self, client_namespaces: Vec<String>) -> ext::HttpRouteTable {
        let (namespace, name) = &self.name;
        let source = format!("{} {namespace}/{name}", Kind::VirtualService);
        let routes = self.routes.iter().map(|(_, route)| route.clone()).collect();
        ext::HttpRouteTable { client_namespaces, source, routes, ports: Vec::new() }
    }

    /// Bytes that it comes to with all services.
    fn cost(&self) -> usize {
        let routes: usize = self.routes.iter().map(|(_, route)| route.encoded_len()).sum();
        let namespaces = self.export_to.as_ref().map_or(0, BTreeSet::len) * BYTES_OF_NAMESPACE;
        let services = |host: &String| if host.starts_with('*') { SERVICES_OF_WILDCARD } else { 1 };
        (routes + namespaces).saturating_mul(self.hosts.iter().map(services).sum())
    }
}

/// Namespaces whose clients see it. `None`: all do.
fn exported_to(service: &VirtualService) -> Option<BTreeSet<String>> {
    if service.export_to.is_empty() || service.export_to.iter().any(|name| name == "*") {
        return None;
    }
    let own = &service.metadata.namespace;
    Some(service.export_to.iter().map(|name| if name == "." { own } else { name }).cloned().collect())
}

/// What to do with something that the mesh does not do yet.
pub(in crate::compile) const LEAVE: &str =
    "remove it, or leave it for a mesh that has it; the rest of the resource counts";

/// Whether it has routes that can be in force here. Says what of it can't.
fn is_for_requests_in_the_mesh(service: &VirtualService, said: &mut ConditionList<'_>) -> bool {
    if service.hosts.is_empty() {
        let reason = "without `hosts` it is for others to delegate to, and `delegate` is not followed yet";
        said.ignore_whole("spec.hosts", reason, "write its routes into those that delegate to it");
        return false;
    }
    if !service.gateways.contains(&GatewayRef::Mesh) {
        let reason = "it is for gateways alone, and the mesh has none";
        said.ignore_whole("spec.gateways", reason, "add `mesh` if it is for clients in the mesh, too");
        return false;
    }
    if service.gateways.len() > 1 {
        said.ignore("spec.gateways", "the mesh has no gateways: it is for clients in the mesh alone", LEAVE);
    }
    let has_http = !service.http.is_empty();
    for (field, is_there) in [("spec.tls", !service.tls.is_empty()), ("spec.tcp", !service.tcp.is_empty())] {
        let reason = "routes of connections that are not read as HTTP are not followed yet";
        if is_there && has_http {
            said.ignore(field, reason, LEAVE);
        } else if is_there {
            said.ignore_whole(field, reason, "remove it, or leave it for a mesh that follows them");
        }
    }
    let expressions: usize = service.http.iter().map(count_of_expressions).sum();
    if expressions > MAX_EXPRESSIONS {
        let reason = format!("agents hold every regular expression compiled, and these are {expressions}");
        let fix =
            format!("write at most {MAX_EXPRESSIONS}; compare with `exact` and `prefix` where that does");
        said.ignore_whole("spec.http", reason, fix);
    }
    has_http && expressions <= MAX_EXPRESSIONS
}

fn count_of_expressions(route: &HttpRoute) -> usize {
    let of_matches: usize = route.matches.iter().map(|it| expressions_of_match(it).count()).sum();
    let path = route.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
    let origins = route.cors_policy.iter().flat_map(|policy| &policy.allow_origins);
    let of_origins = origins.filter(|origin| matches!(origin, StringMatch::Regex(_))).count();
    of_matches + of_origins + usize::from(matches!(path, Some(PathRewrite::Regex { .. })))
}
