//! `route[]`: the destinations that requests or connections go to, and which share of them each gets.

use super::{Headers, values};
use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::{host, metadata::is_label};

/// A service, or a part of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Destination {
    /// Host of the service: a full name, a short one of the virtual service's namespace, or one that begins
    /// with a wildcard (`*.x`, `*-x`, `*x`).
    pub host: String,
    /// Name of a subset in the host's `DestinationRule`. `None`: the whole service.
    pub subset: Option<String>,
    /// Port of the service. `None`: its only one, or else the one that the client connects to.
    pub port: Option<u16>,
}

/// One of a route's destinations for HTTP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HttpRouteDestination {
    /// Where requests go.
    pub destination: Destination,
    /// Its share of them, in parts of the sum of all. At least one of a route's is not 0, and they add up to
    /// a `u32`.
    pub weight: u32,
    /// Changes of headers of the requests that go there. Where it is the route's only destination they come
    /// after those of the route, where it is one of several before them. The authority is the route's
    /// ([`super::Rewrite::authority`], or else that of the route's headers) if that has one, and this one's
    /// else.
    pub headers: Headers,
}

/// One of a route's destinations for connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteDestination {
    /// Where connections go.
    pub destination: Destination,
    /// Its share of them; see [`HttpRouteDestination::weight`].
    pub weight: u32,
}

impl Destination {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["host", "subset", "port"]);
        let port = fields.get("port").and_then(|at| values::port(&at.fields(&["number"]).require("number")?));
        let subset = values::given(&fields, "subset").and_then(|at| subset(&at));
        let at_host = fields.require("host")?;
        let text = at_host.non_empty_string()?;
        let host = host::parse(text);
        if host.is_none() {
            let fix = "write a service's name or a full host name";
            at_host.error(format!("{} is not a host", quoted(text)), fix);
        }
        Some(Self { host: host?, subset, port })
    }
}

fn subset(at: &Cursor<'_>) -> Option<String> {
    let name = at.text()?;
    if !is_label(name) {
        at.error(
            format!("{} is not a subset's name", quoted(name)),
            "use lower-case letters, digits and `-`",
        );
    }
    Some(name.to_owned())
}

impl HttpRouteDestination {
    /// Reads `route` of an HTTP route.
    pub(super) fn read_list(at: &Cursor<'_>) -> Vec<Self> {
        weighted(at, &["destination", "weight", "headers"])
            .into_iter()
            .map(|(fields, destination, weight)| Self {
                destination,
                weight,
                headers: Headers::read(&fields),
            })
            .collect()
    }
}

impl RouteDestination {
    /// Reads `route`, which must not be empty, of a TLS or TCP route, whose fields these are.
    pub(super) fn read_list(fields: &Fields<'_>) -> Vec<Self> {
        let Some(at) = fields.require("route") else { return Vec::new() };
        if at.is_empty_list() {
            at.error("it has no destination", "add one");
        }
        weighted(&at, &["destination", "weight"])
            .into_iter()
            .map(|(_, destination, weight)| Self { destination, weight })
            .collect()
    }
}

/// The items' fields, which must be among `known`, their destinations and weights.
fn weighted<'a>(at: &Cursor<'a>, known: &[&str]) -> Vec<(Fields<'a>, Destination, u32)> {
    let items = at.items();
    let is_alone = items.len() == 1;
    let mut total = 0_u64;
    let read = |item: &Cursor<'a>| {
        let fields = item.fields(known);
        let weight = match fields.get("weight") {
            Some(at) => at.integer(values::INT32)?,
            None if is_alone => 1,
            None => {
                item.warn("without `weight` it gets nothing beside others", "add `weight`");
                0
            }
        };
        total += u64::from(weight);
        let destination = fields.require("destination").and_then(|at| Destination::read(&at));
        // The only one gets everything, whatever its weight.
        Some((fields, destination?, if is_alone { weight.max(1) } else { weight }))
    };
    let destinations = items.iter().filter_map(read).collect();
    if total == 0 && items.len() > 1 {
        at.error("all weights are 0, so no destination gets anything", "give one of them a `weight`");
    } else if total > u64::from(u32::MAX) {
        at.error("the weights add up to more than 4,294,967,295", "write smaller ones");
    }
    destinations
}
