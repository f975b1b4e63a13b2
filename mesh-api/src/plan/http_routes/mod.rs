//! Routes of HTTP requests: which one a request takes, and what becomes of it. The control plane has resolved
//! `VirtualService`s and the Gateway API's routes into them, so that none of their rules of precedence is
//! needed here.
//!
//! [`HttpRoutes::find`] says whether a connection is read as HTTP at all, [`HttpRouteTable::find_route`]
//! which route a request takes, and [`HttpDestination::endpoints`] which endpoints it may go to.

mod cors;
mod decode;
mod destination_endpoints;
mod request_match;
mod rewrite;
mod text_match;

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::sync::Arc;
use std::time::Duration;

use http::StatusCode;

use super::blocking_waypoint::blocking_waypoint;
use super::locality_preference::LocalityPreference;
use super::service::{AppProtocol, Service};
use super::snapshot::Snapshot;
use super::traffic_policy::{ClientTrafficPolicy, LoadBalancer};
use super::workload::Workload;

pub use self::cors::CorsPolicy;
pub(crate) use self::decode::is_editable;
pub use self::destination_endpoints::HttpDestination;
pub use self::request_match::{HttpMatch, RequestView, UnmetCondition, query_parameter};
pub use self::rewrite::{PathRewrite, Redirect, RedirectPath, RedirectPort, Rewrite};
pub use self::text_match::TextMatch;

/// `CANCELLED`, as gRPC counts outcomes.
const GRPC_CANCELLED: u32 = 1;
/// `UNAVAILABLE`.
const GRPC_UNAVAILABLE: u32 = 14;

/// The routes for some of the clients of a service.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpRouteTable {
    /// The object that it is made of, as people call it: `VirtualService shop/web`.
    pub source: Arc<str>,
    /// Routes; the first that matches a request decides.
    pub routes: Box<[HttpRoute]>,
    /// Namespaces of the clients that it covers; empty: all.
    client_namespaces: Box<[Box<str>]>,
    /// Ports of the service that it covers; empty: all.
    ports: Box<[u16]>,
}

/// What becomes of some of the requests.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpRoute {
    /// Name, for logs; may be empty.
    pub name: Arc<str>,
    /// The object that it is made of; none: that of its table.
    pub source: Option<Arc<str>>,
    /// Requests that it is for: those that any of these matches; empty: all.
    pub matches: Box<[HttpMatch]>,
    /// What becomes of them.
    pub action: HttpAction,
    /// Which other origins may send such requests; none: browsers are told nothing.
    pub cors: Option<CorsPolicy>,
}

/// What becomes of the requests of a route.
#[derive(Debug, PartialEq, Eq)]
pub enum HttpAction {
    /// They go to a destination.
    Forward(Box<HttpForward>),
    /// The client is sent elsewhere.
    Redirect(Redirect),
    /// The proxy answers.
    DirectResponse(DirectResponse),
}

/// How requests go to destinations.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct HttpForward {
    /// Where they go. Empty: nowhere.
    pub destinations: Box<[HttpDestination]>,
    /// Changes of path and authority.
    pub rewrite: Rewrite,
    /// Changes of a request's headers: after those of the destination if there are several, before them else.
    pub request_edits: HeaderEdits,
    /// Changes of a response's headers, in the same order.
    pub response_edits: HeaderEdits,
    /// Timeout of a request with all its attempts; none: no limit.
    pub timeout: Option<Duration>,
    /// When a request is sent again.
    pub retries: Retries,
    /// What is done to some requests on purpose.
    pub fault: Fault,
    /// Destinations that get copies, each with its share of requests in parts per million.
    pub mirrors: Box<[(HttpDestination, u32)]>,
}

/// A response of the proxy's own.
#[derive(Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Status, from 200 to 599.
    pub status: StatusCode,
    /// Body; may be empty.
    pub body: Box<[u8]>,
}

/// Changes of headers: first `remove`, then `set`, then `append`. Names are in lower case.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderEdits {
    /// Headers that get this value instead of those that they have.
    pub set: Box<[(Box<str>, Box<str>)]>,
    /// Headers that get this value beside those that they have.
    pub append: Box<[(Box<str>, Box<str>)]>,
    /// Headers that are taken away.
    pub remove: Box<[Box<str>]>,
    /// New authority of a request.
    pub authority: Option<Box<str>>,
}

/// When a request is sent again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Retries {
    /// Most attempts after the first.
    pub attempts: u32,
    /// Timeout of each attempt; none: that of the request.
    pub per_try_timeout: Option<Duration>,
    /// Which failures count.
    pub conditions: RetryConditions,
    /// Base of the back-off between attempts.
    pub backoff: Duration,
    /// The least that is waited between attempts.
    pub least_backoff: Duration,
}

/// Failures after which a request is sent again (Envoy's `retry_on`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "each is one of Envoy's conditions")]
pub struct RetryConditions {
    /// `5xx`: any such status, or no response.
    pub server_error: bool,
    /// `gateway-error`: 502, 503 and 504.
    pub gateway_error: bool,
    /// `reset`: no response came.
    pub reset: bool,
    /// `reset-before-request`: no response came and nothing of the request was sent.
    pub reset_before_request: bool,
    /// `connect-failure`: no connection could be made.
    pub connect_failure: bool,
    /// `refused-stream`: the server has not begun to work on the request (RFC 9113, 8.7).
    pub refused_stream: bool,
    /// Outcomes of gRPC (`cancelled`, `deadline-exceeded`, `internal`, `resource-exhausted`, `unavailable`).
    pub grpc_statuses: Box<[u32]>,
    /// `retriable-4xx`: 409.
    pub conflict: bool,
    /// `retriable-status-codes`: these.
    pub statuses: Box<[u16]>,
}

/// What is done to some requests on purpose. Shares are in parts per million of all requests.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Fault {
    /// How long requests wait, and which share of them.
    pub delay: Option<(Duration, u32)>,
    /// The status that requests end with, and which share of them.
    pub abort: Option<(StatusCode, u32)>,
}

impl Default for Retries {
    /// Returns Istio's default (`meshConfig.defaultHttpRetryPolicy`): two attempts where no connection could
    /// be made, or the server has not begun, or gRPC says that it may be tried again.
    fn default() -> Self {
        Self {
            attempts: 2,
            per_try_timeout: None,
            conditions: RetryConditions::default_of_istio(),
            backoff: Duration::from_millis(25),
            least_backoff: Duration::ZERO,
        }
    }
}

impl RetryConditions {
    fn default_of_istio() -> Self {
        let grpc_statuses = [GRPC_CANCELLED, GRPC_UNAVAILABLE].into();
        Self { connect_failure: true, refused_stream: true, grpc_statuses, ..Self::default() }
    }

    /// Whether a response of gRPC that is a head alone, with that outcome, is such a failure.
    pub fn covers_grpc_status(&self, status: u32) -> bool {
        self.grpc_statuses.contains(&status)
    }

    /// Whether it is such a failure that the server has not begun to work on the request.
    pub fn covers_refused_stream(&self) -> bool {
        self.refused_stream || self.reset_before_request || self.covers_reset()
    }

    /// Whether a response with this status is a failure after which the request is sent again.
    pub fn covers_status(&self, status: StatusCode) -> bool {
        self.server_error && status.is_server_error()
            || self.gateway_error && matches!(status.as_u16(), 502..=504)
            || self.conflict && status == StatusCode::CONFLICT
            || self.statuses.contains(&status.as_u16())
    }

    /// Whether no response, from a server that the request was sent to, is such a failure.
    pub fn covers_reset(&self) -> bool {
        self.server_error || self.gateway_error || self.reset
    }

    /// Whether it is such a failure that no connection could be made, so that nothing was sent.
    pub fn covers_connect_failure(&self) -> bool {
        self.connect_failure || self.reset_before_request || self.covers_reset()
    }
}

/// The route that a request takes.
#[derive(Clone, Copy, Debug)]
pub struct RouteMatch<'a> {
    /// The route.
    pub route: &'a HttpRoute,
    /// The first of its matches that fits; none if it is for all requests.
    pub matched: Option<&'a HttpMatch>,
}

impl HttpRouteTable {
    /// Returns the route of a request that `client` sends to a port; none if no route matches.
    pub fn find_route(
        &self,
        request: &impl RequestView,
        client: &Workload,
        port: u16,
    ) -> Option<RouteMatch<'_>> {
        self.routes.iter().find_map(|route| {
            if route.matches.is_empty() {
                return Some(RouteMatch { route, matched: None });
            }
            let fits = |it: &&HttpMatch| it.unmet_condition(request, client, port).is_none();
            let matched = route.matches.iter().find(fits)?;
            Some(RouteMatch { route, matched: Some(matched) })
        })
    }

    /// Returns the table that covers what a client sends to a port of the service.
    pub(super) fn covering<'a>(
        tables: &'a [Arc<Self>],
        client: &Workload,
        port: u16,
    ) -> Option<&'a Arc<Self>> {
        tables.iter().find(|table| {
            let (namespaces, ports) = (&table.client_namespaces, &table.ports);
            let is_for_client =
                namespaces.is_empty() || namespaces.iter().any(|namespace| **namespace == *client.namespace);
            is_for_client && (ports.is_empty() || ports.contains(&port))
        })
    }
}

impl HttpForward {
    /// Returns the sum of the destinations' weights.
    pub fn total_weight(&self) -> u64 {
        self.destinations.iter().map(|destination| u64::from(destination.weight)).sum()
    }

    /// Returns the destination that a ticket falls on: each has as many tickets as its weight, counted from
    /// 0. None from [`HttpForward::total_weight`] on.
    pub fn destination_for_ticket(&self, ticket: u64) -> Option<&HttpDestination> {
        let mut below = 0;
        self.destinations.iter().find(|destination| {
            below += u64::from(destination.weight);
            ticket < below
        })
    }
}

/// That a client's connections to a service's port are read as HTTP, and by which routes: because there are
/// some, or because the traffic policy is about requests.
#[derive(Clone, Debug)]
pub struct HttpRoutes {
    /// The service that the client addresses.
    pub service: Arc<Service>,
    /// Port of the service.
    pub port: NonZeroU16,
    /// Whether the port is declared to speak HTTP; else the first bytes tell.
    pub is_declared: bool,
    /// The routes for the client; none: its requests go to the service itself.
    pub table: Option<Arc<HttpRouteTable>>,
}

impl HttpRoutes {
    /// Whether what some client sends to a port of a service may be read as HTTP.
    pub(super) fn may_be_routed(service: &Service, port: u16) -> bool {
        let may_be_http = service.port(port).is_some_and(|port| port.protocol.may_be_http());
        let is_for = |table: &Arc<HttpRouteTable>| table.ports.is_empty() || table.ports.contains(&port);
        may_be_http && service.http_routes.iter().any(is_for)
    }

    /// Returns the routes of the requests that `source` sends to `original`; none if its connections are not
    /// read: it is no service's address, or the service has no routes for the client and no policy for
    /// requests, or the port is declared to speak something else than HTTP.
    pub fn find(snapshot: &Snapshot, source: &Workload, original: SocketAddr) -> Option<Self> {
        let service = snapshot.service_by_vip(original.ip().to_canonical(), &source.namespace)?;
        let port = service.port(original.port())?;
        if !port.protocol.may_be_http() {
            return None;
        }
        let table = HttpRouteTable::covering(&service.http_routes, source, port.port).cloned();
        if table.is_none() && !has_policy_for_requests(&service, source, port.port) {
            return None;
        }
        if blocking_waypoint(snapshot, source, &service.waypoints).is_some() {
            return None;
        }
        let is_declared = port.protocol != AppProtocol::Unknown;
        Some(Self { port: NonZeroU16::new(port.port)?, is_declared, service, table })
    }
}

/// Whether the policy for a client's connections to a port is about requests.
fn has_policy_for_requests(service: &Service, source: &Workload, port: u16) -> bool {
    let policy = ClientTrafficPolicy::policy_or_default_for(&service.traffic, source, port);
    let passes =
        policy.lb == LoadBalancer::Passthrough || service.preference == LocalityPreference::Passthrough;
    policy.is_of_requests() && !passes
}

#[cfg(test)]
mod tests;
