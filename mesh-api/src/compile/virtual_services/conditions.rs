//! What of virtual services is not in force beside all else: services, rules, and each other.

use super::ResolvedRoutes;
use super::entry::Entry;
use crate::compile::Condition;
use crate::compile::condition::ConditionList;
use crate::compile::destination_rules::ResolvedRules;
use crate::compile::gateway_routes::{ResolvedGatewayRoutes, is_for_all};
use crate::compile::object_store::ObjectStore;
use crate::compile::service::app_protocol;
use crate::compile::service_host::{NO_SERVICE_FIX, ServiceHosts, no_service_reason};
use crate::manifest::Kind;
use crate::resource::{Service, pod::Protocol};
use crate::wire::ext::{self, http_route::Action};
use crate::wire::workload::AppProtocol;

/// Why a host or a destination means nothing, and what to write instead.
type Words = (String, &'static str);

impl ResolvedRoutes {
    /// What of the virtual services is not in force.
    pub fn conditions(
        &self,
        objects: &ObjectStore,
        hosts: &ServiceHosts<'_>,
        (traffic, gateway_routes): (&ResolvedRules, &ResolvedGatewayRoutes),
    ) -> Vec<Condition> {
        let mut all = Vec::new();
        for entry in &self.entries {
            all.extend_from_slice(&entry.conditions);
            let Some(service) = objects.virtual_service(&entry.name).filter(|_| entry.is_in_force()) else {
                continue;
            };
            let mut said = ConditionList::new(Kind::VirtualService, &service.metadata);
            judge_hosts(entry, hosts, gateway_routes, &mut said);
            judge_destinations(entry, hosts, traffic, &mut said);
            all.extend(said.into_conditions());
        }
        all
    }
}

fn judge_hosts(
    entry: &Entry,
    hosts: &ServiceHosts<'_>,
    gateway_routes: &ResolvedGatewayRoutes,
    said: &mut ConditionList<'_>,
) {
    let mut problems = Vec::new();
    for (index, host) in entry.hosts.iter().enumerate() {
        let field = format!("spec.hosts[{index}]");
        if let Some(words) = problem_of_host(entry, host, hosts) {
            problems.push((field, words));
        } else if let Some((is_for_all, words)) = problem_of_other_api(host, hosts, gateway_routes) {
            if is_for_all {
                problems.push((field, words));
            } else {
                said.ignore(field, words.0, words.1);
            }
        }
    }
    let is_all = problems.len() == entry.hosts.len();
    for (number, (field, (reason, fix))) in problems.into_iter().enumerate() {
        if is_all && number == 0 {
            said.ignore_whole(field, reason, fix);
        } else {
            said.ignore(field, reason, fix);
        }
    }
}

fn problem_of_host(entry: &Entry, host: &str, hosts: &ServiceHosts<'_>) -> Option<Words> {
    if !hosts.has_any(host) {
        return Some((no_service_reason(host), NO_SERVICE_FIX));
    }
    if let Some((namespace, name)) = entry.shadowed_by.get(host) {
        let other = format!("{} {namespace}/{name}", Kind::VirtualService);
        let reason = format!("{other} is for {host}, too, and counts for all clients that see this one");
        return Some((reason, "write the routes of both into one, in the order in which they are to count"));
    }
    let service = hosts.service(host)?;
    if service.is_headless() {
        let reason = format!("{host} has no address of its own, and connections to its pods' take no route");
        return Some((reason, "give the Service an address, with a second Service if need be"));
    }
    let has_port = ports(service).any(|(_, protocol)| protocol.may_be_http());
    (!has_port).then(|| {
        let reason = format!("no port of {host} is read as HTTP, so that its requests take no route");
        (reason, "call the port `http`, or set its `appProtocol` to `http`, if that is what it speaks")
    })
}

/// Routes of the Gateway API that count instead: whether for all clients and ports, and in words.
fn problem_of_other_api(
    host: &str,
    hosts: &ServiceHosts<'_>,
    gateway_routes: &ResolvedGatewayRoutes,
) -> Option<(bool, Words)> {
    let tables = gateway_routes.tables(&hosts.service(host)?.metadata);
    let whole = tables.iter().find(|table| is_for_all(table));
    let (source, is_for_all) = (&whole.or(tables.first())?.source, whole.is_some());
    let whom = if is_for_all { "" } else { " for the clients or ports that it is for" };
    let reason =
        format!("{source} is attached to {host}, and counts before any {}{whom}", Kind::VirtualService);
    Some((is_for_all, (reason, "write the routes of both into one of the two kinds")))
}

/// The ports of a service that connections can be made to, with what they speak.
fn ports(service: &Service) -> impl Iterator<Item = (u32, AppProtocol)> {
    let tcp = service.spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    tcp.map(|port| (port.port.into(), app_protocol(port)))
}

fn judge_destinations(
    entry: &Entry,
    hosts: &ServiceHosts<'_>,
    traffic: &ResolvedRules,
    said: &mut ConditionList<'_>,
) {
    for (route, made) in &entry.routes {
        let Some(Action::Forward(forward)) = &made.action else { continue };
        for (index, destination) in forward.destinations.iter().enumerate().filter(|(_, it)| it.weight > 0) {
            if let Some((field, (reason, fix))) = problem_of_destination(destination, hosts, traffic) {
                let field = format!("spec.http[{route}].route[{index}].destination.{field}");
                said.ignore(field, format!("{reason}: requests that go there get status 503"), fix);
            }
        }
    }
}

fn problem_of_destination(
    destination: &ext::HttpDestination,
    hosts: &ServiceHosts<'_>,
    traffic: &ResolvedRules,
) -> Option<(&'static str, Words)> {
    let ext::HttpDestination { host, subset, port, .. } = destination;
    let Some(service) = hosts.service(host) else {
        return Some(("host", (no_service_reason(host), NO_SERVICE_FIX)));
    };
    if *port != 0 && ports(service).all(|(number, _)| number != *port) {
        return Some((
            "port",
            (format!("{host} has no TCP port {port}"), "write one of the Service's ports"),
        ));
    }
    let is_known = subset.is_empty() || traffic.has_subset(host, subset);
    (!is_known).then(|| {
        let reason = format!("no DestinationRule for {host} has a subset {subset}");
        ("subset", (reason, "add it to `subsets` of the DestinationRule, or remove `subset`"))
    })
}
