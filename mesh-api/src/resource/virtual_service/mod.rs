//! `VirtualService`: where requests and connections to a host go (Istio's `networking.istio.io`). Nothing is
//! done with it yet; what is wrong in one is said all the same.
//!
//! Each file has the types of one field and their reader. What Istio refuses is an error, also where it shows
//! only in the data path; what Istio warns of, has deprecated or ignores is a warning. Names of hosts are in
//! lower case, without a dot at the end.

mod cors_policy;
mod destination;
mod direct_response;
mod fault;
mod gateway_ref;
mod headers;
mod hosts;
mod http_match;
mod http_route;
mod l4_routes;
mod mirror;
mod percentage;
mod redirect;
mod regex_syntax;
mod retries;
mod rewrite;
mod string_match;
mod unreachable;
mod values;

use std::collections::HashSet;

pub use cors_policy::{CorsPolicy, UnmatchedPreflights};
pub use destination::{Destination, HttpRouteDestination, RouteDestination};
pub use direct_response::DirectResponse;
pub use fault::{Abort, AbortError, Delay, Fault};
pub use gateway_ref::GatewayRef;
pub use headers::{HeaderOperations, Headers};
pub use http_match::{HeaderKey, HttpMatch, PseudoHeader};
pub use http_route::{Delegate, HttpRoute, RouteAction};
pub use l4_routes::{L4Match, TcpRoute, TlsMatch, TlsRoute};
pub use mirror::Mirror;
pub use percentage::Percentage;
pub use redirect::{Redirect, RedirectPath, RedirectPort, Scheme};
pub use retries::{Retries, RetryCondition};
pub use rewrite::{PathRewrite, Rewrite};
pub use string_match::{StringMatch, ValueMatch};

use super::{Metadata, Readable, export_to, lenient};
use crate::document::{
    cursor::{Cursor, Fields, Findings},
    yaml_tree,
};

/// A virtual service.
#[derive(Clone, Debug)]
pub struct VirtualService {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Hosts that the routes are for: full names, short ones of its namespace, addresses, or `*.` and the end
    /// of a name; `*` at gateways only. None overlaps with another. Empty: another virtual service delegates
    /// to this one, and its routes are for that one's hosts.
    pub hosts: Vec<String>,
    /// Where the routes are in force; at least one.
    pub gateways: Vec<GatewayRef>,
    /// Routes of HTTP requests; the first that matches counts.
    pub http: Vec<HttpRoute>,
    /// Routes of TLS connections that are passed through; the first that matches counts.
    pub tls: Vec<TlsRoute>,
    /// Routes of other connections; the first that matches counts.
    pub tcp: Vec<TcpRoute>,
    /// Namespaces whose clients it is for; empty and `*` mean all, `.` its own.
    pub export_to: Vec<String>,
}

/// What the parts of a virtual service have to know of the whole.
struct Context<'a> {
    namespace: &'a str,
    hosts: HashSet<&'a str>,
    gateways: &'a [GatewayRef],
}

impl Context<'_> {
    /// Whether others delegate to it.
    fn is_delegate(&self) -> bool {
        self.hosts.is_empty()
    }

    /// Whether clients in the mesh follow it.
    fn is_for_mesh(&self) -> bool {
        self.gateways.contains(&GatewayRef::Mesh)
    }
}

impl Readable for VirtualService {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let Some(spec) = Cursor::spec(root, findings) else {
            let fix = "add `spec: {hosts: …, http: …}`";
            lenient::report(root, &["spec"], "`spec` is missing", fix, findings);
            return None;
        };
        let fields = spec.fields(&["hosts", "gateways", "http", "tls", "tcp", "exportTo"]);
        let hosts = fields.get("hosts").map(|at| hosts::read_list(&at)).unwrap_or_default();
        let gateways = values::list(&fields, "gateways", |at| GatewayRef::read(at, &metadata.namespace));
        let gateways = if gateways.is_empty() { vec![GatewayRef::Mesh] } else { gateways };
        let context = Context {
            namespace: &metadata.namespace,
            hosts: hosts.iter().map(String::as_str).collect(),
            gateways: &gateways,
        };
        check(&spec, &fields, &context);
        let http = http_route::read_list(&fields, &context);
        let tls = l4_routes::read_tls(&fields, &context);
        let tcp = l4_routes::read_tcp(&fields, &context);
        let export_to = fields.get("exportTo").map(|at| export_to::read(&at, false)).unwrap_or_default();
        Some(Self { metadata, hosts, gateways, http, tls, tcp, export_to })
    }
}

/// Looks at what the fields say together.
fn check(spec: &Cursor<'_>, fields: &Fields<'_>, context: &Context<'_>) {
    let filled = |key: &str| fields.get(key).filter(|at| !at.is_empty_list());
    if ["http", "tls", "tcp"].into_iter().all(|key| filled(key).is_none()) {
        spec.error("it has no route", "add `http`, `tls` or `tcp`");
    }
    if filled("hosts").is_none() {
        for at in ["gateways", "tls", "tcp"].into_iter().filter_map(filled) {
            let problem = "without `hosts` others delegate to it, and can delegate HTTP routes alone";
            at.error(problem, "add `hosts`, or remove this");
        }
    }
    if let Some(at) = fields.get("hosts").filter(|_| context.is_for_mesh() && context.hosts.contains("*")) {
        let fix = "name hosts, or write in `gateways` which gateways it is for";
        at.error("`*` can't be the host of clients in the mesh", fix);
    }
}

#[cfg(test)]
mod tests;
