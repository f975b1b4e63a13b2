//! Routes of requests.

use super::entry::LEAVE;
use super::expressions::CheckedExpressions;
use super::header_edits::{self, MessageEdits};
use super::request_match;
use crate::compile::MeshConfig;
use crate::compile::condition::ConditionList;
use crate::compile::service_host::{resolve_rule_host, service_of_host};
use crate::compile::service_membership::service_key;
use crate::compile::traffic_policies::duration;
use crate::resource::VirtualService;
use crate::resource::virtual_service::{
    AbortError, CorsPolicy, Destination, DirectResponse, Fault, Headers, HttpRoute, HttpRouteDestination,
    PathRewrite, Percentage, Redirect, RedirectPath, RedirectPort, Retries, RetryCondition, Rewrite,
    RouteAction, Scheme, StringMatch, UnmatchedPreflights,
};
use crate::wire::ext::{self, http_redirect, http_rewrite, http_route::Action};

/// What a request is tried again for where nothing is said, as in Istio. Without a list of statuses
/// `retriable-status-codes` is none of them.
pub(in crate::compile) const USUAL_RETRY_CONDITIONS: [&str; 5] =
    ["connect-failure", "refused-stream", "unavailable", "cancelled", "retriable-status-codes"];

/// Makes the routes of one virtual service, and says what of them is not in force.
pub(super) struct RouteMaker<'a, 's> {
    pub service: &'a VirtualService,
    pub mesh: &'a MeshConfig,
    pub expressions: &'a mut CheckedExpressions,
    pub said: &'a mut ConditionList<'s>,
}

impl RouteMaker<'_, '_> {
    /// The routes for clients in the mesh, each with its index.
    pub fn routes(&mut self) -> Vec<(usize, ext::HttpRoute)> {
        let routes = self.service.http.iter().enumerate();
        routes.filter_map(|(index, route)| Some((index, self.route(index, route)?))).collect()
    }

    fn route(&mut self, index: usize, route: &HttpRoute) -> Option<ext::HttpRoute> {
        let path = format!("spec.http[{index}]");
        let matches = self.matches(&path, route)?;
        let is_forwarded = matches!(route.action, RouteAction::Route(_) | RouteAction::Delegate(_));
        if !is_forwarded && route.headers != Headers::default() {
            let reason = "headers of answers that no server gives are not changed yet";
            self.said.ignore(format!("{path}.headers"), reason, LEAVE);
        }
        let action = match &route.action {
            RouteAction::Route(destinations) => Action::Forward(self.forward(&path, route, destinations)),
            RouteAction::Redirect(it) => Action::Redirect(redirect(it)),
            RouteAction::DirectResponse(it) => Action::DirectResponse(direct_response(it)),
            RouteAction::Delegate(_) => {
                let reason = "delegating is not followed yet: requests go on to the routes behind this one";
                self.said.ignore(format!("{path}.delegate"), reason, "write the other's routes in its place");
                return None;
            }
        };
        let name = route.name.clone().unwrap_or_default();
        let cors = route.cors_policy.as_ref().map(|it| self.cors(&format!("{path}.corsPolicy"), it));
        Some(ext::HttpRoute { name, matches, action: Some(action), cors, source: String::new() })
    }

    /// An origin that agents can't compare with is allowed to nobody.
    fn cors(&mut self, path: &str, policy: &CorsPolicy) -> ext::CorsPolicy {
        let origins = policy.allow_origins.iter().enumerate();
        let usable = origins.filter(|(index, origin)| match origin {
            StringMatch::Regex(pattern) => {
                let field = format!("{path}.allowOrigins[{index}].regex");
                self.can_use(field, pattern, "no origin is allowed by it")
            }
            StringMatch::Exact(_) | StringMatch::Prefix(_) => true,
        });
        ext::CorsPolicy {
            allow_origins: usable.map(|(_, origin)| request_match::string_match(origin)).collect(),
            allow_methods: policy.allow_methods.join(","),
            allow_headers: policy.allow_headers.join(","),
            expose_headers: policy.expose_headers.join(","),
            max_age: policy.max_age.map_or(0, |age| age.as_secs()),
            allow_credentials: policy.allow_credentials,
            answers_unmatched_preflights: policy.unmatched_preflights == UnmatchedPreflights::Ignore,
            ..ext::CorsPolicy::default()
        }
    }

    /// An agent makes the changes of headers of a destination first, and then those of the route. Where there
    /// is only one destination it is the other way round, so both are made one list here.
    fn forward(
        &mut self,
        path: &str,
        route: &HttpRoute,
        destinations: &[HttpRouteDestination],
    ) -> ext::HttpForward {
        let mut edits = self.edits(&format!("{path}.headers"), &route.headers);
        let rewrite = route.rewrite.as_ref().map(|it| self.rewrite(&format!("{path}.rewrite"), it));
        let has_authority = !edits.request.authority.is_empty()
            || rewrite.as_ref().is_some_and(|rewrite| !rewrite.authority.is_empty());
        let mut made = Vec::with_capacity(destinations.len());
        for (index, of) in destinations.iter().enumerate() {
            let mut beside = self.edits(&format!("{path}.route[{index}].headers"), &of.headers);
            if has_authority {
                beside.request.authority.clear();
            }
            if destinations.len() == 1 {
                edits.append(std::mem::take(&mut beside));
            }
            made.push(self.destination(&of.destination, of.weight, beside));
        }
        ext::HttpForward {
            destinations: made,
            rewrite: rewrite.filter(|rewrite| *rewrite != ext::HttpRewrite::default()),
            request: header_edits::given(edits.request),
            response: header_edits::given(edits.response),
            timeout: route.timeout.and_then(duration),
            retries: route.retries.as_ref().map(|it| self.retries(&format!("{path}.retries"), it)),
            fault: route.fault.as_ref().and_then(|it| self.fault(&format!("{path}.fault"), it)),
            mirrors: self.mirrors(route),
        }
    }

    fn mirrors(&self, route: &HttpRoute) -> Vec<ext::HttpMirror> {
        let mirrors = route.mirrors.iter().filter(|mirror| mirror.percentage != Percentage::NONE);
        let made = mirrors.map(|mirror| ext::HttpMirror {
            destination: Some(self.destination(&mirror.destination, 1, MessageEdits::default())),
            share: mirror.percentage.parts_per_million,
        });
        made.collect()
    }

    fn destination(&self, of: &Destination, weight: u32, edits: MessageEdits) -> ext::HttpDestination {
        let host = resolve_rule_host(&of.host, &self.service.metadata.namespace, self.mesh);
        let service = service_of_host(&host, self.mesh);
        ext::HttpDestination {
            service: service.map(|name| service_key(&name, self.mesh)).unwrap_or_default(),
            host,
            subset: of.subset.clone().unwrap_or_default(),
            port: of.port.unwrap_or_default().into(),
            weight,
            request: header_edits::given(edits.request),
            response: header_edits::given(edits.response),
            status: 0,
        }
    }

    fn rewrite(&mut self, path: &str, rewrite: &Rewrite) -> ext::HttpRewrite {
        let made = match &rewrite.path {
            None => None,
            Some(PathRewrite::Uri(uri)) => Some(http_rewrite::Path::Uri(uri.clone())),
            Some(PathRewrite::Regex { pattern, substitution }) => {
                let field = format!("{path}.uriRegexRewrite.match");
                let (pattern, substitution) = (pattern.clone(), substitution.clone());
                self.can_use(field, &pattern, "the path stays")
                    .then_some(http_rewrite::Path::Regex(ext::RegexRewrite { pattern, substitution }))
            }
        };
        ext::HttpRewrite { path: made, authority: rewrite.authority.clone().unwrap_or_default() }
    }

    fn retries(&mut self, path: &str, retries: &Retries) -> ext::HttpRetries {
        if retries.remote_localities {
            let reason = "another try goes to the endpoints that a first one may go to";
            self.said.ignore(format!("{path}.retryRemoteLocalities"), reason, LEAVE);
        }
        if !retries.ignore_previous_hosts {
            let reason = "endpoints that were tried come after the others in any case";
            self.said.ignore(format!("{path}.retryIgnorePreviousHosts"), reason, LEAVE);
        }
        let named = |condition: &RetryCondition| condition.name().map(str::to_owned);
        let status = |condition: &RetryCondition| match condition {
            RetryCondition::Status(status) => Some(u32::from(status.as_u16())),
            _ => None,
        };
        let mut conditions: Vec<String> = retries.retry_on.iter().filter_map(named).collect();
        let statuses: Vec<u32> = retries.retry_on.iter().filter_map(status).collect();
        let by_status = "retriable-status-codes".to_owned();
        if retries.retry_on.is_empty() {
            conditions = USUAL_RETRY_CONDITIONS.map(str::to_owned).to_vec();
        } else if !statuses.is_empty() && !conditions.contains(&by_status) {
            conditions.push(by_status);
        }
        ext::HttpRetries {
            attempts: retries.attempts,
            per_try_timeout: retries.per_try_timeout.and_then(duration),
            conditions,
            statuses,
            backoff: retries.backoff.and_then(duration),
            least_backoff: None,
        }
    }

    fn fault(&mut self, path: &str, fault: &Fault) -> Option<ext::HttpFault> {
        let mut made = ext::HttpFault::default();
        if let Some(delay) = fault.delay.as_ref().filter(|delay| delay.percentage != Percentage::NONE) {
            made.delay = duration(delay.fixed_delay);
            made.delay_share = delay.percentage.parts_per_million;
        }
        let abort = fault.abort.as_ref().filter(|abort| abort.percentage != Percentage::NONE);
        match abort.map(|abort| (abort.error, abort.percentage.parts_per_million)) {
            Some((AbortError::Http(status), share)) => {
                made.abort_status = status.as_u16().into();
                made.abort_share = share;
            }
            Some((AbortError::Grpc(_), _)) => {
                let reason = "requests do not end with a status of gRPC yet";
                self.said.ignore(
                    format!("{path}.abort.grpcStatus"),
                    reason,
                    "write `httpStatus`, or remove it",
                );
            }
            None => {}
        }
        (made != ext::HttpFault::default()).then_some(made)
    }
}

fn redirect(redirect: &Redirect) -> ext::HttpRedirect {
    let scheme = match redirect.scheme {
        None => "",
        Some(Scheme::Http) => "http",
        Some(Scheme::Https) => "https",
    };
    ext::HttpRedirect {
        path: redirect.path.clone().map(|path| match path {
            RedirectPath::Full(path) => http_redirect::Path::Full(path),
            RedirectPath::Prefix(path) => http_redirect::Path::Prefix(path),
        }),
        authority: redirect.authority.clone().unwrap_or_default(),
        port: match redirect.port {
            RedirectPort::FromProtocolDefault => None,
            RedirectPort::FromRequestPort => Some(http_redirect::Port::FromRequest(true)),
            RedirectPort::Number(number) => Some(http_redirect::Port::Number(number.into())),
        },
        scheme: scheme.to_owned(),
        status: redirect.status.as_u16().into(),
    }
}

fn direct_response(response: &DirectResponse) -> ext::HttpDirectResponse {
    ext::HttpDirectResponse {
        status: response.status.as_u16().into(),
        body: response.body.clone().unwrap_or_default(),
    }
}
