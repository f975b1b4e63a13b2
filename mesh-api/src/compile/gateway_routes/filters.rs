//! What is done to the requests of a rule on the way.

use http::{HeaderName, header};

use super::cors::{cors_policy, exposes_by_name};
use super::rule::RuleMaker;
use crate::compile::RouteFault;
use crate::compile::virtual_services::LEAVE;
use crate::plan::http_routes::is_editable;
use crate::resource::gateway_api::{
    HeaderFilter, PathChange, RedirectFilter, RewriteFilter, RouteFilter, RouteRule,
};
use crate::resource::virtual_service::Scheme;
use crate::wire::ext::{self, http_redirect, http_rewrite};

/// What the filters of a rule come to.
#[derive(Default)]
pub(super) struct MadeFilters {
    pub request: Option<ext::HeaderEdits>,
    pub response: Option<ext::HeaderEdits>,
    pub redirect: Option<ext::HttpRedirect>,
    pub rewrite: Option<ext::HttpRewrite>,
    pub mirrors: Vec<ext::HttpMirror>,
    pub cors: Option<ext::CorsPolicy>,
    /// Whether one is not known, so that no request may go on.
    pub has_unknown: bool,
}

impl RuleMaker<'_, '_> {
    pub(super) fn filters(&mut self, path: &str, rule: &RouteRule) -> MadeFilters {
        let mut made = MadeFilters::default();
        for (index, filter) in rule.filters.iter().enumerate() {
            let field = format!("{path}.filters[{index}]");
            match filter {
                RouteFilter::RequestHeaders(it) => made.request = Some(self.request_edits(&field, it)),
                RouteFilter::ResponseHeaders(it) => made.response = Some(self.response_edits(&field, it)),
                RouteFilter::Redirect(it) => made.redirect = Some(redirect(it)),
                RouteFilter::Rewrite(it) => made.rewrite = Some(rewrite(it)),
                RouteFilter::Cors(it) => {
                    made.cors = Some(cors_policy(it));
                    if exposes_by_name(it) {
                        let reason = "browsers take `*` for a name where requests have credentials";
                        self.said.ignore(format!("{field}.cors.exposeHeaders"), reason, "list the headers");
                    }
                }
                RouteFilter::Mirror(it) => {
                    let field = format!("{field}.requestMirror.backendRef");
                    let destination = self.mirror(&field, &it.backend);
                    let share = it.parts_per_million;
                    let made_mirror = destination.map(|it| ext::HttpMirror { destination: Some(it), share });
                    made.mirrors.extend(made_mirror.filter(|mirror| mirror.share > 0));
                }
                RouteFilter::Unknown(name) => {
                    made.has_unknown = true;
                    self.tell_unknown(field, name, "requests of the rule");
                }
            }
        }
        made
    }

    /// Says that a filter is not known, so that these requests fail.
    pub(super) fn tell_unknown(&mut self, field: String, name: &str, requests: &str) {
        let status = self.failure();
        let reason = format!("the filter {name} is not known here, so {requests} get status {status}");
        let fix = "remove it, or write what it does by other filters";
        let is_reference = name == "ExtensionRef";
        let fault = if is_reference { RouteFault::InvalidKind } else { RouteFault::UnsupportedValue };
        self.said.ignore_for(fault, field, reason, fix);
    }

    pub(super) fn request_edits(&mut self, field: &str, filter: &HeaderFilter) -> ext::HeaderEdits {
        let mut edits = self.edits(&format!("{field}.requestHeaderModifier"), filter, true);
        let host = filter.set.iter().find(|(name, _)| *name == header::HOST);
        edits.authority = host.map(|(_, value)| value.clone()).unwrap_or_default();
        edits
    }

    pub(super) fn response_edits(&mut self, field: &str, filter: &HeaderFilter) -> ext::HeaderEdits {
        self.edits(&format!("{field}.responseHeaderModifier"), filter, false)
    }

    fn edits(&mut self, field: &str, filter: &HeaderFilter, has_host: bool) -> ext::HeaderEdits {
        let HeaderFilter { set, add, remove } = filter;
        let mut values = |part: &str, all: &[(HeaderName, String)]| {
            let mut made = Vec::with_capacity(all.len());
            for (index, (name, value)) in all.iter().enumerate() {
                let is_authority = has_host && part == "set" && *name == header::HOST;
                if !is_authority && self.may_change(format!("{field}.{part}[{index}]"), name) {
                    made.push(ext::HeaderValue { name: name.as_str().to_owned(), value: value.clone() });
                }
            }
            made
        };
        let (set, append) = (values("set", set), values("add", add));
        let mut kept = Vec::with_capacity(remove.len());
        for (index, name) in remove.iter().enumerate() {
            if self.may_change(format!("{field}.remove[{index}]"), name) {
                kept.push(name.as_str().to_owned());
            }
        }
        ext::HeaderEdits { set, append, remove: kept, authority: String::new() }
    }

    fn may_change(&mut self, field: String, name: &HeaderName) -> bool {
        let may = is_editable(name.as_str());
        if !may {
            let reason = format!("{name} belongs to a message's framing or to its connection, and stays");
            self.said.ignore(field, reason, "change another header");
        }
        may
    }

    /// Says which filters have no effect on requests that no server gets.
    pub(super) fn tell_unused(&mut self, path: &str, filters: &MadeFilters) {
        if filters.response.is_some() {
            let reason = "headers of answers that no server gives are not changed yet";
            self.said.ignore(format!("{path}.filters"), reason, LEAVE);
        }
        if !filters.mirrors.is_empty() {
            let reason = "only requests that a server gets are copied";
            self.said.ignore(format!("{path}.filters"), reason, "remove RequestMirror");
        }
    }
}

fn redirect(filter: &RedirectFilter) -> ext::HttpRedirect {
    let scheme = match filter.scheme {
        None => "",
        Some(Scheme::Http) => "http",
        Some(Scheme::Https) => "https",
    };
    let usual = filter.scheme.map(|scheme| if scheme == Scheme::Http { 80 } else { 443 });
    let port = filter.port.map(u32::from).or(usual);
    ext::HttpRedirect {
        path: filter.path.as_ref().map(|path| match path {
            PathChange::Full(path) => http_redirect::Path::FullPath(full(path)),
            PathChange::Prefix(path) => http_redirect::Path::Prefix(path.clone()),
        }),
        authority: filter.hostname.clone().unwrap_or_default(),
        port: Some(port.map_or(http_redirect::Port::FromRequest(true), http_redirect::Port::Number)),
        scheme: scheme.to_owned(),
        status: filter.status.as_u16().into(),
    }
}

fn rewrite(filter: &RewriteFilter) -> ext::HttpRewrite {
    ext::HttpRewrite {
        path: filter.path.as_ref().map(|path| match path {
            PathChange::Full(path) => http_rewrite::Path::Full(full(path)),
            PathChange::Prefix(path) => http_rewrite::Path::Uri(path.clone()),
        }),
        authority: filter.hostname.clone().unwrap_or_default(),
    }
}

/// A whole path is at least a slash.
fn full(path: &str) -> String {
    if path.is_empty() { "/".to_owned() } else { path.to_owned() }
}
