//! The routes of a Service, joined.

use std::collections::{BTreeMap, BTreeSet};

use super::MadeRoute;
use super::attach::{Attachment, http_ports};
use crate::resource::Service;
use crate::wire::ext;

/// The indices of the routes for the same clients and ports, the oldest first.
type Joined = BTreeSet<usize>;

/// The tables of a service, to which these routes are attached, each with its index: first those for the
/// clients of single namespaces.
pub(super) fn tables_of_service(
    service: &Service,
    attached: &[(usize, &Attachment)],
    routes: &[MadeRoute<'_>],
) -> Vec<ext::HttpRouteTable> {
    let mut by_client: BTreeMap<Option<&str>, Vec<(usize, &Attachment)>> = BTreeMap::new();
    for (index, attachment) in attached {
        by_client.entry(attachment.client_namespace.as_deref()).or_default().push((*index, attachment));
    }
    let for_all = by_client.remove(&None);
    let groups = by_client.into_iter().chain(for_all.map(|attached| (None, attached)));
    let tables = groups.flat_map(|(client, attached)| {
        let joined = by_ports(service, &attached).into_iter();
        joined.map(move |(indices, ports)| table(&indices, routes, client, ports))
    });
    tables.collect()
}

/// Which routes are joined, and for which ports. None of these: for all.
fn by_ports(service: &Service, attached: &[(usize, &Attachment)]) -> BTreeMap<Joined, Vec<u32>> {
    if attached.iter().all(|(_, attachment)| attachment.ports.is_none()) {
        let indices = attached.iter().map(|(index, _)| *index).collect();
        return BTreeMap::from([(indices, Vec::new())]);
    }
    let mut joined: BTreeMap<Joined, Vec<u32>> = BTreeMap::new();
    for port in http_ports(service) {
        let is_for =
            |attachment: &Attachment| attachment.ports.as_ref().is_none_or(|ports| ports.contains(&port));
        let indices: Joined =
            attached.iter().filter(|(_, attachment)| is_for(attachment)).map(|(index, _)| *index).collect();
        if !indices.is_empty() {
            joined.entry(indices).or_default().push(port.into());
        }
    }
    joined
}

fn table(
    indices: &Joined,
    routes: &[MadeRoute<'_>],
    client: Option<&str>,
    ports: Vec<u32>,
) -> ext::HttpRouteTable {
    let mut ranked = Vec::new();
    for index in indices {
        for (rule, made) in routes[*index].rules.iter().enumerate() {
            let matches = made.matches.iter().enumerate();
            ranked.extend(matches.map(|(number, (rank, _))| (*rank, *index, rule, number)));
        }
    }
    ranked.sort_unstable();
    let mut made: Vec<ext::HttpRoute> = Vec::new();
    let mut last = None;
    for (_, index, rule, number) in ranked {
        let of = &routes[index].rules[rule];
        if last.replace((index, rule)) != Some((index, rule)) {
            let source = if indices.len() > 1 { routes[index].source.clone() } else { String::new() };
            made.push(ext::HttpRoute { source, ..of.route.clone() });
        }
        // What was just pushed, or the rule's that comes before.
        if let Some(route) = made.last_mut() {
            route.matches.push(of.matches[number].1.clone());
        }
    }
    ext::HttpRouteTable {
        client_namespaces: client.map(str::to_owned).into_iter().collect(),
        source: source_of(indices, routes),
        routes: made,
        ports,
    }
}

/// What the routes of a table are called together.
fn source_of(indices: &Joined, routes: &[MadeRoute<'_>]) -> String {
    let first = indices.first().map(|index| routes[*index].source.as_str()).unwrap_or_default();
    match indices.len() {
        0 | 1 => first.to_owned(),
        2 => format!("{first} and another"),
        more => format!("{first} and {} others", more - 1),
    }
}
