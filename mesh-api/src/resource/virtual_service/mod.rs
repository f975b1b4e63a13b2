//! `VirtualService`: where requests and connections to a host go (Istio's `networking.istio.io`). All of it
//! is read; what of it is not in force is for `compile/virtual_services` to say.
//!
//! Each file has the types of one field and their reader. What Istio refuses is an error, also where it shows
//! only in the data path; what Istio warns of, has deprecated or ignores is a warning. Names of hosts are in
//! lower case, without a dot at the end. An empty text or a 0 that protobuf does not tell from an absent
//! field is one here, too.
//!
//! Whoever may write into one namespace writes these, so no object may cost much: what is in it is counted
//! before it is read, and what is said of it has limits.

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
pub(super) mod regex_syntax;
mod retries;
mod rewrite;
mod string_match;
mod unreachable;
pub(super) mod values;

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

use self::hosts::HostSet;
use super::{Metadata, Readable, export_to, lenient};
use crate::document::{
    cursor::{Cursor, Fields, Findings},
    yaml_tree,
};

/// Most values of an object: hosts, conditions, names of destinations and all else that holds no others.
/// Routes of the usual kind have three to ten.
const MAX_VALUES: usize = 10_000;

/// A virtual service.
#[derive(Clone, Debug)]
pub struct VirtualService {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Hosts that the routes are for, as written but for case and the last dot: full names, short ones of its
    /// namespace, addresses, or a wildcard and the end of a name (`*.x`, `*-x`, `*x`); `*` at gateways only.
    /// None overlaps with another. Empty: another virtual service delegates to this one, and its routes are
    /// for that one's hosts.
    pub hosts: Vec<String>,
    /// Where the routes are in force; at least one, none twice.
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
    /// Whether others delegate to it.
    is_delegate: bool,
    /// Whether clients in the mesh follow it, as far as its gateways can be read.
    is_for_mesh: bool,
    /// `None`: not known, since one can't be read. What depends on them is not complained of then.
    hosts: Option<HostSet<'a>>,
}

impl Readable for VirtualService {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let Some(spec) = Cursor::spec(root, findings) else {
            let fix = "add `spec: {hosts: …, http: …}`";
            lenient::report(root, &["spec"], "`spec` is missing", fix, findings);
            return None;
        };
        if let Some(at) = spec.field_beyond(MAX_VALUES) {
            let problem = format!("with this the resource has more than {MAX_VALUES} values");
            at.error(problem, "split it by hosts, or delegate some of the routes to others");
            return None;
        }
        let fields = spec.fields(&["hosts", "gateways", "http", "tls", "tcp", "exportTo"]);
        let given_hosts = filled(&fields, "hosts");
        let hosts = given_hosts.as_ref().map_or(Some(Vec::new()), hosts::read_list);
        let gateways = match filled(&fields, "gateways") {
            Some(_) => GatewayRef::read_list(&fields, &metadata.namespace),
            None => vec![GatewayRef::Mesh],
        };
        let context = Context {
            namespace: &metadata.namespace,
            is_delegate: given_hosts.is_none(),
            is_for_mesh: gateways.contains(&GatewayRef::Mesh),
            hosts: hosts.as_deref().map(HostSet::new),
        };
        check(&spec, &fields, &context);
        let http = http_route::read_list(&fields, &context);
        let tls = l4_routes::read_tls(&fields, &context);
        let tcp = l4_routes::read_tcp(&fields, &context);
        let export_to = fields.get("exportTo").map(|at| export_to::read(&at, false)).unwrap_or_default();
        Some(Self { hosts: hosts?, metadata, gateways, http, tls, tcp, export_to })
    }
}

/// A field that is there, and no empty list, which is the same as none.
fn filled<'a>(fields: &Fields<'a>, key: &str) -> Option<Cursor<'a>> {
    fields.get(key).filter(|at| !at.is_empty_list())
}

/// Looks at what the fields say together.
fn check(spec: &Cursor<'_>, fields: &Fields<'_>, context: &Context<'_>) {
    let filled = |key: &str| filled(fields, key);
    // What is no map was refused as such.
    if spec.is_map() && ["http", "tls", "tcp"].into_iter().all(|key| filled(key).is_none()) {
        spec.error("it has no route", "add `http`, `tls` or `tcp`");
    }
    if context.is_delegate {
        for at in ["gateways", "tls", "tcp"].into_iter().filter_map(filled) {
            let problem = "without `hosts` others delegate to it, and can delegate HTTP routes alone";
            at.error(problem, "add `hosts`, or remove this");
        }
    }
    let has_all_hosts = context.hosts.as_ref().is_some_and(|hosts| hosts.include("*"));
    if let Some(at) = fields.get("hosts").filter(|_| context.is_for_mesh && has_all_hosts) {
        let fix = "name hosts, or write in `gateways` which gateways it is for";
        at.error("`*` can't be the host of clients in the mesh", fix);
    }
}

#[cfg(test)]
mod tests;
