//! `rules`: which requests go where.

use std::time::Duration;

use super::backend_ref::BackendRef;
use super::filters::RouteFilter;
use super::http_match::{PathMatch, RouteMatch};
use super::path_filters::{PathChange, RedirectFilter, RewriteFilter};
use super::values;
use crate::document::cursor::{Cursor, Fields};

/// What becomes of some of the requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRule {
    /// Its name, for logs.
    pub name: Option<String>,
    /// Requests that it is for: those that any of these matches. At least one.
    pub matches: Vec<RouteMatch>,
    /// What is done to them.
    pub filters: Vec<RouteFilter>,
    /// Where they go.
    pub backends: Vec<BackendRef>,
    /// Time for a request with all its tries. `None`: no limit.
    pub timeout: Option<Duration>,
    /// Time for each try. `None`: that of the request.
    pub try_timeout: Option<Duration>,
    /// When it is tried again. `None`: what is usual in the mesh.
    pub retry: Option<RouteRetry>,
    /// Whether it asks for requests of a client to go to one endpoint.
    pub has_session_persistence: bool,
}

/// When a request is tried again.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RouteRetry {
    /// Statuses after which it is.
    pub codes: Vec<u32>,
    /// Most tries after the first. `None`: what is usual in the mesh.
    pub attempts: Option<u32>,
    /// The least pause before the next try, which grows with each. `None`: a random part of 25 ms.
    pub backoff: Option<Duration>,
}

const MOST_MATCHES: usize = 64;

impl RouteRule {
    /// Reads a rule of an `HTTPRoute`.
    pub(super) fn read_http(at: &Cursor<'_>) -> Self {
        let known = ["name", "matches", "filters", "backendRefs", "timeouts", "retry", "sessionPersistence"];
        let fields = at.fields(&known);
        let (timeout, try_timeout) = fields.get("timeouts").map(|at| timeouts(&at)).unwrap_or_default();
        let rule = Self {
            timeout,
            try_timeout,
            retry: fields.get("retry").map(|at| RouteRetry::read(&at)),
            ..Self::common(&fields, RouteMatch::read_http, RouteMatch::default())
        };
        rule.check(at);
        rule
    }

    /// Reads a rule of a `GRPCRoute`.
    pub(super) fn read_grpc(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["name", "matches", "filters", "backendRefs", "sessionPersistence"]);
        let rule = Self::common(&fields, RouteMatch::read_grpc, RouteMatch::any_call());
        let is_of_grpc = |filter: &&RouteFilter| {
            !matches!(filter, RouteFilter::Redirect(_) | RouteFilter::Rewrite(_) | RouteFilter::Cors(_))
        };
        if let Some(filter) = rule.filters.iter().find(|filter| !is_of_grpc(filter)) {
            at.error(format!("a GRPCRoute has no filter {}", filter.name()), "remove it");
        }
        rule
    }

    fn common(
        fields: &Fields<'_>,
        read: impl Fn(&Cursor<'_>) -> Option<RouteMatch>,
        usual: RouteMatch,
    ) -> Self {
        let items = values::items(fields, "matches", MOST_MATCHES);
        let matches = if items.is_empty() { vec![usual] } else { items.iter().filter_map(read).collect() };
        let name = fields.get("name").and_then(|at| at.non_empty_string());
        Self {
            name: name.map(str::to_owned),
            matches,
            filters: RouteFilter::read_list(fields),
            backends: BackendRef::read_list(fields),
            has_session_persistence: fields.get("sessionPersistence").is_some(),
            ..Self::default()
        }
    }

    /// Looks at what the fields say together.
    fn check(&self, at: &Cursor<'_>) {
        let redirects = self.filters.iter().any(|filter| matches!(filter, RouteFilter::Redirect(_)));
        if redirects && !self.backends.is_empty() {
            at.error("a rule that redirects sends nothing to `backendRefs`", "remove one of the two");
        }
        let is_one_prefix = matches!(&self.matches[..], [RouteMatch { path: PathMatch::Prefix(_), .. }]);
        let of_backends = self.backends.iter().flat_map(|backend| &backend.filters);
        if self.filters.iter().chain(of_backends).any(replaces_prefix) && !is_one_prefix {
            let problem = "`replacePrefixMatch` needs a rule with exactly one match, of a PathPrefix";
            at.error(problem, "give each prefix a rule of its own, or write `replaceFullPath`");
        }
    }
}

fn replaces_prefix(filter: &RouteFilter) -> bool {
    let (RouteFilter::Redirect(RedirectFilter { path, .. })
    | RouteFilter::Rewrite(RewriteFilter { path, .. })) = filter
    else {
        return false;
    };
    matches!(path, Some(PathChange::Prefix(_)))
}

/// Reads the time for a request, and that for each try.
fn timeouts(at: &Cursor<'_>) -> (Option<Duration>, Option<Duration>) {
    let fields = at.fields(&["request", "backendRequest"]);
    let given = |key: &str| {
        let span = fields.get(key)?.duration_or_zero()?;
        (!span.is_zero()).then_some(span)
    };
    let (request, each) = (given("request"), given("backendRequest"));
    if let Some((at, _)) = fields.get("backendRequest").zip(request).filter(|_| each > request) {
        at.error("a try has more time than the whole request", "write at most what `request` says");
    }
    (request, each)
}

impl RouteRetry {
    fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["codes", "attempts", "backoff"]);
        let codes = fields.get("codes").map(|at| at.items()).unwrap_or_default();
        Self {
            codes: codes.iter().filter_map(|at| at.integer(400..=599)).collect(),
            attempts: fields.get("attempts").and_then(|at| at.integer(1..=i32::MAX.unsigned_abs())),
            backoff: fields.get("backoff").and_then(|at| at.duration()),
        }
    }
}
