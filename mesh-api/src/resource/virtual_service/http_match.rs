//! `http[].match[]`: which requests a route is for.

use http::HeaderName;

use super::{Context, GatewayRef, StringMatch, ValueMatch, unreachable::Conditions, values};
use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::{Labels, metadata::is_label};

/// Conditions of a request, all of which must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct HttpMatch {
    /// Name, which logs have behind the route's.
    pub name: Option<String>,
    /// The path, without the query. `None`: any.
    pub uri: Option<StringMatch>,
    /// `http` or `https`. `None`: either.
    pub scheme: Option<StringMatch>,
    /// The method. `None`: any.
    pub method: Option<StringMatch>,
    /// The host that the request names, with its port. `None`: any.
    pub authority: Option<StringMatch>,
    /// Headers that are there and match.
    pub headers: Vec<(HeaderKey, ValueMatch)>,
    /// Headers that do not match; one that is absent counts as empty.
    pub without_headers: Vec<(HeaderKey, ValueMatch)>,
    /// Parameters of the query that are there and match.
    pub query_params: Vec<(String, ValueMatch)>,
    /// Whether an exact path or a prefix of it matches in upper and lower case alike.
    pub ignore_uri_case: bool,
    /// The port that the client connects to. `None`: any.
    pub port: Option<u16>,
    /// Labels of the client's pod; for clients in the mesh alone, and only if `gateways` is empty.
    pub source_labels: Labels,
    /// Namespace of the client's pod; the same goes for it. `None`: any.
    pub source_namespace: Option<String>,
    /// Where it is in force; empty: where the virtual service is.
    pub gateways: Vec<GatewayRef>,
    /// Prefix of the names of the route's own metrics. `None`: it has none of its own.
    pub stat_prefix: Option<String>,
}

/// What a condition on a header looks at.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum HeaderKey {
    /// A header.
    Header(HeaderName),
    /// A part of the request's first line.
    PseudoHeader(PseudoHeader),
    /// A claim of the request's validated JSON web token, at gateways: its name, and those of what is in it.
    Claim(Vec<String>),
}

/// A part of a request's first line, by the name that it has in HTTP/2.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PseudoHeader {
    /// `:method`.
    Method,
    /// `:scheme`.
    Scheme,
    /// `:authority`, which a condition may also name `host`.
    Authority,
    /// `:path`, with the query.
    Path,
}

const FIELDS: [&str; 14] = [
    "name",
    "uri",
    "scheme",
    "method",
    "authority",
    "headers",
    "withoutHeaders",
    "queryParams",
    "ignoreUriCase",
    "port",
    "sourceLabels",
    "sourceNamespace",
    "gateways",
    "statPrefix",
];

impl HttpMatch {
    pub(super) fn read(at: &Cursor<'_>, context: &Context<'_>) -> Self {
        let fields = at.fields(&FIELDS);
        let text_match = |key: &str| fields.get(key).and_then(|at| StringMatch::read(&at));
        let read = Self {
            name: values::name(&fields, "name"),
            uri: fields.get("uri").and_then(|at| StringMatch::read_path(&at)),
            scheme: text_match("scheme"),
            method: text_match("method"),
            authority: text_match("authority"),
            headers: headers(&fields, "headers", context, ValueMatch::read),
            without_headers: headers(&fields, "withoutHeaders", context, ValueMatch::read_absent),
            query_params: query_params(&fields),
            ignore_uri_case: fields.get("ignoreUriCase").and_then(|at| at.boolean()).unwrap_or_default(),
            port: values::optional_port(&fields),
            source_labels: values::source_labels(&fields),
            source_namespace: source_namespace(&fields),
            gateways: GatewayRef::read_list(&fields, context.namespace),
            stat_prefix: values::name(&fields, "statPrefix"),
        };
        warn_of_sources(&fields, &read.gateways);
        read
    }

    /// What it asks of requests, for a comparison with others.
    pub(super) fn conditions(&self) -> Conditions<OtherConditions<'_>> {
        let others = OtherConditions {
            scheme: self.scheme.as_ref(),
            method: self.method.as_ref(),
            authority: self.authority.as_ref(),
            headers: &self.headers,
            without_headers: &self.without_headers,
            query_params: &self.query_params,
            port: self.port,
            source_labels: Some(&self.source_labels).filter(|labels| !labels.is_empty()),
            source_namespace: self.source_namespace.as_deref(),
            gateways: &self.gateways,
        };
        Conditions::new(self.uri.as_ref(), self.ignore_uri_case, others)
    }
}

/// What a match asks for beside the path.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub(super) struct OtherConditions<'a> {
    scheme: Option<&'a StringMatch>,
    method: Option<&'a StringMatch>,
    authority: Option<&'a StringMatch>,
    headers: &'a [(HeaderKey, ValueMatch)],
    without_headers: &'a [(HeaderKey, ValueMatch)],
    query_params: &'a [(String, ValueMatch)],
    port: Option<u16>,
    source_labels: Option<&'a Labels>,
    source_namespace: Option<&'a str>,
    gateways: &'a [GatewayRef],
}

/// Says that conditions on the client do not count beside `gateways`.
fn warn_of_sources(fields: &Fields<'_>, gateways: &[GatewayRef]) {
    if gateways.is_empty() {
        return;
    }
    for at in ["sourceLabels", "sourceNamespace"].into_iter().filter_map(|key| fields.get(key)) {
        at.warn("it is ignored where the match has `gateways`", "remove one of the two");
    }
}

/// Reads `sourceNamespace`.
pub(super) fn source_namespace(fields: &Fields<'_>) -> Option<String> {
    let at = values::given(fields, "sourceNamespace")?;
    let name = at.text()?;
    if !is_label(name) {
        at.error(format!("{} is not a namespace", quoted(name)), "write the name of a namespace");
    }
    Some(name.to_owned())
}

const EMPTY_CONDITION: &str = "write `{}` for any value, or how it is compared";

fn query_params(fields: &Fields<'_>) -> Vec<(String, ValueMatch)> {
    let Some(at) = fields.get("queryParams") else { return Vec::new() };
    let parameters = values::entries(&at, EMPTY_CONDITION).into_iter();
    parameters.filter_map(|(name, at)| Some((name.to_owned(), ValueMatch::read(&at)?))).collect()
}

fn headers(
    fields: &Fields<'_>,
    key: &str,
    context: &Context<'_>,
    read: impl Fn(&Cursor<'_>) -> Option<ValueMatch>,
) -> Vec<(HeaderKey, ValueMatch)> {
    let Some(at) = fields.get(key) else { return Vec::new() };
    let headers = values::entries(&at, EMPTY_CONDITION).into_iter();
    headers.filter_map(|(name, at)| Some((HeaderKey::read(&at, name, context)?, read(&at)?))).collect()
}

impl HeaderKey {
    fn read(at: &Cursor<'_>, name: &str, context: &Context<'_>) -> Option<Self> {
        const PSEUDO_HEADERS: [(&str, PseudoHeader); 4] = [
            (":method", PseudoHeader::Method),
            (":scheme", PseudoHeader::Scheme),
            (":authority", PseudoHeader::Authority),
            (":path", PseudoHeader::Path),
        ];
        if let Some(claim) = name.strip_prefix("@request.auth.claims") {
            return read_claim(at, claim, context);
        }
        if let Some((_, part)) = PSEUDO_HEADERS.into_iter().find(|(known, _)| *known == name) {
            return Some(Self::PseudoHeader(part));
        }
        // HTTP/2 has no such header.
        if name.eq_ignore_ascii_case("host") {
            return Some(Self::PseudoHeader(PseudoHeader::Authority));
        }
        let read = HeaderName::from_bytes(name.as_bytes()).ok().map(Self::Header);
        if read.is_none() {
            let fix = "use letters, digits and `-`; or `:method`, `:scheme`, `:authority`, `:path`";
            at.error(format!("{} is not a header's name", quoted(name)), fix);
        }
        read
    }
}

/// Reads what is behind `@request.auth.claims`: `.a.b` or `[a][b]`.
fn read_claim(at: &Cursor<'_>, claim: &str, context: &Context<'_>) -> Option<HeaderKey> {
    if context.is_for_mesh {
        let fix = "write in `gateways` which gateways it is for, without `mesh`";
        at.error("claims of tokens choose routes at gateways only", fix);
    }
    let in_brackets = claim.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let names: Vec<&str> = match (in_brackets, claim.strip_prefix('.')) {
        (Some(names), _) => names.split("][").collect(),
        (None, Some(names)) => names.split('.').collect(),
        (None, None) => Vec::new(),
    };
    if names.is_empty() || names.iter().any(|name| name.is_empty()) {
        let fix = "write `@request.auth.claims.NAME` or `@request.auth.claims[NAME]`";
        at.error("it does not say which claim", fix);
        return None;
    }
    Some(HeaderKey::Claim(names.into_iter().map(str::to_owned).collect()))
}
