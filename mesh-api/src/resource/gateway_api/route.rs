//! `HTTPRoute` and `GRPCRoute`.

use super::http_match::RouteMatch;
use super::parent_ref::ParentRef;
use super::rule::RouteRule;
use super::values;
use crate::document::cursor::{Cursor, Findings};
use crate::document::yaml_tree::YamlNode;
use crate::resource::{Metadata, Readable, lenient};

/// Routes of HTTP requests.
#[derive(Clone, Debug)]
pub struct HTTPRoute {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says.
    pub route: GatewayRoute,
}

/// Routes of calls of gRPC.
#[derive(Clone, Debug)]
pub struct GRPCRoute {
    /// Name and namespace.
    pub metadata: Metadata,
    /// What it says.
    pub route: GatewayRoute,
}

/// What a route says to clients in the mesh.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct GatewayRoute {
    /// Services whose clients it is for. Empty: it is for others, such as gateways, and the rest was not
    /// read.
    pub parents: Vec<ParentRef>,
    /// Whether it names hosts, which are for gateways.
    pub has_hostnames: bool,
    /// What becomes of which requests.
    pub rules: Vec<RouteRule>,
}

const MOST_RULES: usize = 16;
/// Most matches of all rules.
const MOST_MATCHES: usize = 128;

type ReadRule = fn(&Cursor<'_>) -> RouteRule;

impl GatewayRoute {
    fn read(metadata: &Metadata, root: &YamlNode, findings: &Findings, read: ReadRule) -> Option<Self> {
        let Some(spec) = Cursor::spec(root, findings) else {
            let fix = "add `spec: {parentRefs: …, rules: …}`";
            lenient::report(root, &["spec"], "`spec` is missing", fix, findings);
            return None;
        };
        let parents = ParentRef::read_services(&spec.fields_with_any_key(), &metadata.namespace);
        if parents.is_empty() {
            return Some(Self::default());
        }
        let fields = spec.fields(&["parentRefs", "hostnames", "rules", "useDefaultGateways"]);
        let items = values::items(&fields, "rules", MOST_RULES);
        let rules: Vec<_> = items.iter().map(read).collect();
        let matches: usize = rules.iter().map(|rule| rule.matches.len()).sum();
        if matches > MOST_MATCHES {
            let problem = format!("the rules have more than {MOST_MATCHES} matches");
            spec.error(problem, "split the route");
        }
        let has_hostnames = fields.get("hostnames").is_some_and(|at| !at.is_empty_list());
        Some(Self { parents, has_hostnames, rules })
    }
}

impl Readable for HTTPRoute {
    fn read(metadata: Metadata, root: &YamlNode, findings: &Findings) -> Option<Self> {
        let mut route = GatewayRoute::read(&metadata, root, findings, RouteRule::read_http)?;
        if route.rules.is_empty() {
            // What the API fills in.
            route.rules.push(RouteRule { matches: vec![RouteMatch::default()], ..RouteRule::default() });
        }
        Some(Self { metadata, route })
    }
}

impl Readable for GRPCRoute {
    fn read(metadata: Metadata, root: &YamlNode, findings: &Findings) -> Option<Self> {
        let route = GatewayRoute::read(&metadata, root, findings, RouteRule::read_grpc)?;
        Some(Self { metadata, route })
    }
}
