//! Routes as they come over the wire, checked.

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, StatusCode};

use super::cors::{CorsPolicy, OriginPattern};
use super::destination_endpoints::HttpDestination;
use super::request_match::{HeaderMatch, HttpMatch};
use super::rewrite::{PathRewrite, Redirect, RedirectPath, RedirectPort, Rewrite};
use super::text_match::TextMatch;
use super::{
    DirectResponse, Fault, GRPC_CANCELLED, GRPC_UNAVAILABLE, HeaderEdits, HttpAction, HttpForward, HttpRoute,
    HttpRouteTable, Retries, RetryConditions,
};
use crate::plan::field_parsing::{self, Invalid};
use crate::plan::traffic_policy::parse_duration_zero_as_none;
use crate::regular_expression::RegularExpression;
use crate::wire::ext::{self as wire, http_redirect, http_rewrite, http_route};
use crate::wire::{type_url, workload};

/// Share that is every request, in parts per million.
const ALL: u32 = 1_000_000;

impl HttpRouteTable {
    /// Parses all tables in a service's extensions, in the order in which they are looked at; empty if it has
    /// none. Errors: see [`Invalid`].
    pub(in crate::plan) fn decode_all_from_extensions(
        extensions: &[workload::Extension],
    ) -> Result<Box<[Arc<Self>]>, Invalid> {
        let mut tables = Vec::new();
        for name in [wire::GATEWAY_ROUTES, wire::HTTP_ROUTES] {
            let Some(extension) = extensions.iter().find(|it| it.name == name) else { continue };
            let config = extension.config.as_ref().ok_or(Invalid::NoContent)?;
            let routes: wire::HttpRoutes = field_parsing::unpack_any(config, type_url::HTTP_ROUTES)?;
            for table in routes.tables {
                tables.push(Arc::new(Self::try_from(table)?));
            }
        }
        Ok(tables.into())
    }
}

impl TryFrom<wire::HttpRouteTable> for HttpRouteTable {
    type Error = Invalid;

    fn try_from(from: wire::HttpRouteTable) -> Result<Self, Invalid> {
        Ok(Self {
            source: from.source.into(),
            routes: from.routes.into_iter().map(HttpRoute::try_from).collect::<Result<_, _>>()?,
            client_namespaces: from.client_namespaces.into_iter().map(Box::from).collect(),
            ports: from
                .ports
                .into_iter()
                .map(|port| field_parsing::parse_port("tables.ports", port))
                .collect::<Result<_, _>>()?,
        })
    }
}

impl TryFrom<wire::HttpRoute> for HttpRoute {
    type Error = Invalid;

    fn try_from(from: wire::HttpRoute) -> Result<Self, Invalid> {
        let action = match from.action.ok_or(Invalid::Missing { field: "action" })? {
            http_route::Action::Forward(forward) => HttpAction::Forward(Box::new(forward.try_into()?)),
            http_route::Action::Redirect(redirect) => HttpAction::Redirect(redirect.try_into()?),
            http_route::Action::DirectResponse(response) => HttpAction::DirectResponse(DirectResponse {
                status: status("direct_response.status", response.status)?,
                body: response.body.into(),
            }),
        };
        let matches = from.matches.into_iter().map(HttpMatch::try_from).collect::<Result<_, _>>()?;
        let cors = from.cors.map(CorsPolicy::try_from).transpose()?;
        let source = non_empty(from.source).map(Arc::from);
        Ok(Self { name: from.name.into(), source, matches, action, cors })
    }
}

impl TryFrom<wire::CorsPolicy> for CorsPolicy {
    type Error = Invalid;

    fn try_from(from: wire::CorsPolicy) -> Result<Self, Invalid> {
        // What is no value of a header is left out, as where routes change them.
        let value = |text: String| if is_header_value(&text) { text.into() } else { Box::default() };
        Ok(Self {
            allow_origins: from.allow_origins.iter().map(TextMatch::try_from).collect::<Result<_, _>>()?,
            allow_origin_patterns: from
                .allow_origin_patterns
                .into_iter()
                .map(|it| OriginPattern { prefix: it.prefix.into(), suffix: it.suffix.into() })
                .collect(),
            allow_methods: value(from.allow_methods),
            allow_headers: value(from.allow_headers),
            allow_requested_headers: from.allow_requested_headers,
            expose_headers: value(from.expose_headers),
            max_age: (from.max_age > 0).then_some(from.max_age),
            allow_credentials: from.allow_credentials,
            answers_unmatched_preflights: from.answers_unmatched_preflights,
        })
    }
}

impl TryFrom<wire::HttpMatch> for HttpMatch {
    type Error = Invalid;

    fn try_from(from: wire::HttpMatch) -> Result<Self, Invalid> {
        let text = |of: &Option<wire::StringMatch>| of.as_ref().map(TextMatch::try_from).transpose();
        let value = |of: Option<&wire::StringMatch>| of.map_or(Ok(TextMatch::Present), TextMatch::try_from);
        let header = |of: &wire::HeaderMatch| {
            let value = value(of.value.as_ref())?;
            Ok(HeaderMatch { name: of.name.to_ascii_lowercase().into(), value, inverts: of.invert })
        };
        let parameter = |of: &wire::QueryMatch| Ok((of.name.as_str().into(), value(of.value.as_ref())?));
        let port = (from.port > 0).then(|| field_parsing::parse_port("matches.port", from.port));
        Ok(Self {
            path: text(&from.path)?,
            ignores_path_case: from.ignore_path_case,
            scheme: text(&from.scheme)?,
            method: text(&from.method)?,
            authority: text(&from.authority)?,
            headers: from.headers.iter().map(header).collect::<Result<_, Invalid>>()?,
            query: from.query.iter().map(parameter).collect::<Result<_, Invalid>>()?,
            port: port.transpose()?,
            name: from.name.into(),
            client_labels: from.client_labels.into_iter().collect(),
            client_namespace: non_empty(from.client_namespace),
            is_grpc: from.is_grpc,
        })
    }
}

impl TryFrom<wire::HttpForward> for HttpForward {
    type Error = Invalid;

    fn try_from(from: wire::HttpForward) -> Result<Self, Invalid> {
        let destinations = from.destinations.into_iter().map(HttpDestination::try_from);
        Ok(Self {
            destinations: destinations.collect::<Result<_, _>>()?,
            rewrite: from.rewrite.map(Rewrite::try_from).transpose()?.unwrap_or_default(),
            request_edits: from.request.map(HeaderEdits::from).unwrap_or_default(),
            response_edits: from.response.map(HeaderEdits::from).unwrap_or_default(),
            timeout: parse_duration_zero_as_none("timeout", from.timeout)?,
            retries: from.retries.map(Retries::try_from).transpose()?.unwrap_or_default(),
            fault: from.fault.map(Fault::try_from).transpose()?.unwrap_or_default(),
            mirrors: from.mirrors.into_iter().map(mirror).collect::<Result<_, _>>()?,
        })
    }
}

fn mirror(from: wire::HttpMirror) -> Result<(HttpDestination, u32), Invalid> {
    let destination = from.destination.ok_or(Invalid::Missing { field: "mirrors.destination" })?;
    Ok((destination.try_into()?, from.share.min(ALL)))
}

impl TryFrom<wire::HttpDestination> for HttpDestination {
    type Error = Invalid;

    fn try_from(from: wire::HttpDestination) -> Result<Self, Invalid> {
        let port = (from.port > 0).then(|| field_parsing::parse_port("destinations.port", from.port));
        Ok(Self {
            service: from.service.split_once('/').map(|(namespace, name)| (namespace.into(), name.into())),
            host: from.host.into(),
            subset: non_empty(from.subset).map(Arc::from),
            port: port.transpose()?,
            weight: from.weight,
            request_edits: from.request.map(HeaderEdits::from).unwrap_or_default(),
            response_edits: from.response.map(HeaderEdits::from).unwrap_or_default(),
            status: (from.status > 0).then(|| status("destinations.status", from.status)).transpose()?,
        })
    }
}

impl From<wire::HeaderEdits> for HeaderEdits {
    fn from(from: wire::HeaderEdits) -> Self {
        let values = |of: Vec<wire::HeaderValue>| {
            let usable = of.into_iter().filter(|it| is_editable(&it.name) && is_header_value(&it.value));
            usable.map(|it| (it.name.to_ascii_lowercase().into(), it.value.into())).collect()
        };
        Self {
            set: values(from.set),
            append: values(from.append),
            remove: from
                .remove
                .iter()
                .filter(|name| is_editable(name))
                .map(|name| name.to_ascii_lowercase().into())
                .collect(),
            authority: non_empty(from.authority),
        }
    }
}

impl TryFrom<wire::HttpRewrite> for Rewrite {
    type Error = Invalid;

    fn try_from(from: wire::HttpRewrite) -> Result<Self, Invalid> {
        let path = match from.path {
            None => None,
            Some(http_rewrite::Path::Uri(uri)) => Some(PathRewrite::Uri(uri.into())),
            Some(http_rewrite::Path::Full(full)) => Some(PathRewrite::Full(full.into())),
            Some(http_rewrite::Path::Regex(regex)) => {
                let pattern = RegularExpression::new(&regex.pattern);
                let pattern = pattern.map_err(|reason| Invalid::Regex { reason })?;
                Some(PathRewrite::Regex(pattern, regex.substitution.into()))
            }
        };
        Ok(Self { path, authority: non_empty(from.authority) })
    }
}

impl TryFrom<wire::HttpRedirect> for Redirect {
    type Error = Invalid;

    fn try_from(from: wire::HttpRedirect) -> Result<Self, Invalid> {
        let path = from.path.map(|path| match path {
            http_redirect::Path::Full(full) => RedirectPath::Full(full.into()),
            http_redirect::Path::FullPath(full) => RedirectPath::FullPath(full.into()),
            http_redirect::Path::Prefix(prefix) => RedirectPath::Prefix(prefix.into()),
        });
        let port = match from.port {
            Some(http_redirect::Port::Number(number)) => {
                RedirectPort::Number(field_parsing::parse_port("redirect.port", number)?)
            }
            Some(http_redirect::Port::FromRequest(true)) => RedirectPort::FromRequest,
            None | Some(http_redirect::Port::FromRequest(false)) => RedirectPort::FromProtocolDefault,
        };
        Ok(Self {
            path,
            authority: non_empty(from.authority),
            port,
            scheme: non_empty(from.scheme),
            status: status("redirect.status", from.status)?,
        })
    }
}

impl TryFrom<wire::HttpRetries> for Retries {
    type Error = Invalid;

    fn try_from(from: wire::HttpRetries) -> Result<Self, Invalid> {
        let (mut conditions, mut grpc) = (RetryConditions::default(), Vec::new());
        for condition in &from.conditions {
            match condition.as_str() {
                "5xx" => conditions.server_error = true,
                "gateway-error" => conditions.gateway_error = true,
                "reset" => conditions.reset = true,
                "reset-before-request" => conditions.reset_before_request = true,
                "connect-failure" => conditions.connect_failure = true,
                "retriable-4xx" => conditions.conflict = true,
                "refused-stream" => conditions.refused_stream = true,
                "cancelled" => grpc.push(GRPC_CANCELLED),
                "deadline-exceeded" => grpc.push(4),
                "resource-exhausted" => grpc.push(8),
                "internal" => grpc.push(13),
                "unavailable" => grpc.push(GRPC_UNAVAILABLE),
                // The others are of HTTP/3 and Envoy's rate limits, or mean the statuses.
                _ => {}
            }
        }
        let statuses: Result<_, _> = from.statuses.into_iter().map(u16::try_from).collect();
        conditions.grpc_statuses = grpc.into();
        conditions.statuses = statuses.map_err(|_| Invalid::UnknownValue { field: "statuses", value: -1 })?;
        let default = Self::default();
        Ok(Self {
            attempts: from.attempts,
            per_try_timeout: parse_duration_zero_as_none("per_try_timeout", from.per_try_timeout)?,
            conditions: if conditions == RetryConditions::default() && from.conditions.is_empty() {
                default.conditions
            } else {
                conditions
            },
            backoff: parse_duration_zero_as_none("backoff", from.backoff)?.unwrap_or(default.backoff),
            least_backoff: parse_duration_zero_as_none("least_backoff", from.least_backoff)?
                .unwrap_or_default(),
        })
    }
}

impl TryFrom<wire::HttpFault> for Fault {
    type Error = Invalid;

    fn try_from(from: wire::HttpFault) -> Result<Self, Invalid> {
        let delay: Option<Duration> = parse_duration_zero_as_none("fault.delay", from.delay)?;
        let abort = (from.abort_status > 0).then(|| status("fault.abort_status", from.abort_status));
        Ok(Self {
            delay: delay.map(|delay| (delay, from.delay_share.min(ALL))),
            abort: abort.transpose()?.map(|status| (status, from.abort_share.min(ALL))),
        })
    }
}

/// Parses the status of a response that ends a request.
fn status(field: &'static str, value: u32) -> Result<StatusCode, Invalid> {
    let known = u16::try_from(value).ok().filter(|code| (200..600).contains(code));
    known
        .and_then(|code| StatusCode::from_u16(code).ok())
        .ok_or(Invalid::UnknownValue { field, value: i32::try_from(value).unwrap_or(i32::MAX) })
}

/// Whether routes may change a field of that name: no part of a message's framing, nor of its connection.
pub(crate) fn is_editable(name: &str) -> bool {
    const FIXED: [&str; 9] = [
        "connection",
        "content-length",
        "host",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    ];
    HeaderName::from_bytes(name.as_bytes()).is_ok() && !FIXED.iter().any(|it| name.eq_ignore_ascii_case(it))
}

fn is_header_value(value: &str) -> bool {
    !value.bytes().any(|byte| byte.is_ascii_control() && byte != b'\t')
}

fn non_empty(text: String) -> Option<Box<str>> {
    (!text.is_empty()).then(|| text.into())
}
