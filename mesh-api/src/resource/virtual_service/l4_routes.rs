//! `tls[]` and `tcp[]`: where connections go that are not read as HTTP.

use std::hash::Hash;

use ipnet::IpNet;

use super::{
    Context, GatewayRef, RouteDestination, hosts, http_match, unreachable::Conditions,
    unreachable::EarlierRoutes, values,
};
use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::{Labels, network};

/// A route of TLS connections by the host that clients name in the handshake.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlsRoute {
    /// Connections that it is for: those of any of these; at least one.
    pub matches: Vec<TlsMatch>,
    /// Where they go; at least one.
    pub route: Vec<RouteDestination>,
}

/// A route of other connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TcpRoute {
    /// Connections that it is for: those of any of these. Empty: all.
    pub matches: Vec<L4Match>,
    /// Where they go; at least one.
    pub route: Vec<RouteDestination>,
}

/// Conditions of a TLS connection, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct TlsMatch {
    /// The name in the handshake is one of these, or ends as one that begins with `*` does; at least one.
    /// Each is a host of the virtual service, or one that such a host includes.
    pub sni_hosts: Vec<String>,
    /// What else must hold.
    pub connection: L4Match,
}

/// Conditions of a connection, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct L4Match {
    /// The address that the client connects to is in one of these. Empty: any.
    pub destination_subnets: Vec<IpNet>,
    /// The port that the client connects to. `None`: any.
    pub port: Option<u16>,
    /// Labels of the client's pod; for clients in the mesh alone.
    pub source_labels: Labels,
    /// Namespace of the client's pod; the same goes for it. `None`: any.
    pub source_namespace: Option<String>,
    /// Where it is in force; empty: where the virtual service is.
    pub gateways: Vec<GatewayRef>,
}

/// What both kinds of match can have, but for the names.
const CONDITIONS: [&str; 5] = ["destinationSubnets", "port", "sourceLabels", "sourceNamespace", "gateways"];

/// Reads `tls`.
pub(super) fn read_tls(fields: &Fields<'_>, context: &Context<'_>) -> Vec<TlsRoute> {
    let routes = values::list(fields, "tls", |at| {
        let fields = at.fields(&["match", "route"]);
        if fields.require("match").is_some_and(|at| at.is_empty_list()) {
            at.error("it does not say for which hosts it is", "add `match: [{sniHosts: […]}]`");
        }
        let matches = values::list(&fields, "match", |at| Some(TlsMatch::read(at, context)));
        Some((at.clone(), TlsRoute { matches, route: RouteDestination::read_list(&fields) }))
    });
    warn_of_unreachable("tls", routes.iter().map(|(at, route)| (at, &route.matches[..])));
    routes.into_iter().map(|(_, route)| route).collect()
}

/// Reads `tcp`.
pub(super) fn read_tcp(fields: &Fields<'_>, context: &Context<'_>) -> Vec<TcpRoute> {
    let routes = values::list(fields, "tcp", |at| {
        let fields = at.fields(&["match", "route"]);
        let matches = values::list(&fields, "match", |at| {
            let fields = at.fields(&[&CONDITIONS[..], &["sourceSubnet"][..]].concat());
            if let Some(at) = fields.get("sourceSubnet") {
                at.warn("it was never made, in Istio neither, and is ignored", "remove it");
            }
            Some(L4Match::read(&fields, context))
        });
        Some((at.clone(), TcpRoute { matches, route: RouteDestination::read_list(&fields) }))
    });
    warn_of_unreachable("tcp", routes.iter().map(|(at, route)| (at, &route.matches[..])));
    routes.into_iter().map(|(_, route)| route).collect()
}

fn warn_of_unreachable<'a, M: Default + Eq + Hash + 'a>(
    list: &'static str,
    routes: impl Iterator<Item = (&'a Cursor<'a>, &'a [M])>,
) {
    let (mut earlier, any) = (EarlierRoutes::new(list), M::default());
    for (at, matches) in routes {
        let conditions = |it| Conditions::new(None, false, Some(it).filter(|it: &&M| **it != any));
        earlier.add(at, matches.iter().map(conditions), true);
    }
}

impl TlsMatch {
    fn read(at: &Cursor<'_>, context: &Context<'_>) -> Self {
        let fields = at.fields(&[&["sniHosts"][..], &CONDITIONS[..]].concat());
        let names = fields.require("sniHosts");
        if let Some(at) = names.as_ref().filter(|at| at.is_empty_list()) {
            at.error("`sniHosts` is empty", "name at least one host");
        }
        let names = names.map(|at| at.non_empty_strings()).unwrap_or_default();
        let sni_hosts = names.iter().filter_map(|(at, text)| sni_host(at, text, context)).collect();
        Self { sni_hosts, connection: L4Match::read(&fields, context) }
    }
}

fn sni_host(at: &Cursor<'_>, text: &str, context: &Context<'_>) -> Option<String> {
    let host = hosts::read(at, text)?;
    if text.parse::<std::net::IpAddr>().is_ok() {
        at.warn("most clients name no address in the handshake", "write the name that clients use");
    } else if !context.is_delegate && context.hosts.as_ref().is_some_and(|hosts| !hosts.include(&host)) {
        let fix = "write one of `hosts`, or one below a host that begins with `*.`";
        at.error(format!("no host of the virtual service includes {}", quoted(text)), fix);
    }
    Some(host)
}

impl L4Match {
    fn read(fields: &Fields<'_>, context: &Context<'_>) -> Self {
        Self {
            destination_subnets: values::list(fields, "destinationSubnets", subnet),
            port: values::optional_port(fields),
            source_labels: values::source_labels(fields),
            source_namespace: http_match::source_namespace(fields),
            gateways: GatewayRef::read_list(fields, context.namespace),
        }
    }
}

fn subnet(at: &Cursor<'_>) -> Option<IpNet> {
    let text = at.non_empty_string()?;
    let net = network::parse(text);
    if net.is_none() {
        let fix = "write one like `10.0.0.0/8`, `192.0.2.7` or `fd00::/64`";
        at.error(format!("{} is neither an IP address nor a CIDR", quoted(text)), fix);
    }
    net
}
