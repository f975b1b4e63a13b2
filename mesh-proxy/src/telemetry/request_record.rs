//! The record of one HTTP request, from its head to its one outcome.

use std::borrow::Cow;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use http::StatusCode;
use mesh_api::plan::Endpoint;

use super::access_log::RequestLogEntry;
use super::connection_details::ConnectionDetails;
use super::connection_record::ConnectionOutcome;
use super::request_limit::RequestLimit;
use super::traffic_labels::Reporter;
use super::worker_metrics::WorkerMetrics;
use crate::stream::PLAIN_TRANSPORT;

/// The record of a request that is being answered. Dropping it records the request as abandoned, so there is
/// always one outcome.
pub struct RequestRecord {
    metrics: Arc<WorkerMetrics>,
    /// Who talks to whom; filled in as it becomes known.
    pub details: ConnectionDetails,
    message: RequestMessage,
    since: Instant,
    ended: bool,
}

/// What a request is, and how far it came.
#[derive(Debug, Default)]
pub(super) struct RequestMessage {
    pub method: Box<str>,
    pub authority: Box<str>,
    pub path: Box<str>,
    /// Name of its route; empty if that has none.
    pub route: Arc<str>,
    /// Endpoints that it was sent to.
    pub attempts: u32,
    pub is_delayed: bool,
    /// The limit that has not let a retry through, and its number.
    pub refused_retry: Option<(RequestLimit, u32)>,
    pub is_grpc: bool,
    /// The outcome that gRPC tells.
    pub grpc_status: Option<u32>,
    /// Bytes of its body, and of the response's.
    pub body_bytes: (u64, u64),
}

/// How a request ended, as metrics tell requests apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestOutcome {
    /// The status that the client got, if it got any.
    pub status: Option<StatusCode>,
    pub flag: Option<RequestFlag>,
    pub grpc: Option<GrpcOutcome>,
}

/// The outcome that gRPC tells, if it told one that there is.
pub(super) type GrpcOutcome = Option<u8>;

impl RequestMessage {
    /// Returns what gRPC says of the outcome; none: it is not of gRPC.
    fn grpc_outcome(&self) -> Option<GrpcOutcome> {
        // Anything else is a number that the server made up, of which there are many.
        let known = self.grpc_status.and_then(|status| u8::try_from(status).ok());
        self.is_grpc.then_some(known.filter(|status| *status <= LAST_GRPC_STATUS))
    }
}

impl RequestMessage {
    /// Returns the flag and reason of a request that may have been sent again but for a limit: that is why it
    /// failed, unless the client had its part in it.
    fn why_not_retried<'a>(
        &self,
        flag: Option<RequestFlag>,
        reason: &'a str,
    ) -> (Option<RequestFlag>, Cow<'a, str>) {
        let is_clients = matches!(flag, Some(RequestFlag::ClientGone | RequestFlag::ClientProtocolError));
        let Some((limit, most)) = self.refused_retry.filter(|_| !is_clients) else {
            return (flag, reason.into());
        };
        let retries = format!("not sent again: {most} retries are under way ({limit})");
        let reason = if reason.is_empty() { retries } else { format!("{reason}; {retries}") };
        (Some(RequestFlag::Overflow), reason.into())
    }
}

/// `UNAUTHENTICATED`, the last outcome of gRPC.
const LAST_GRPC_STATUS: u8 = 16;

/// Why a request failed, or what was done to it, in Envoy's codes (`%RESPONSE_FLAGS%`).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RequestFlag {
    /// No route matches it.
    NoRoute,
    /// Its route leads to no service, subset or port.
    NoCluster,
    /// Its service has no endpoint that is ready.
    NoHealthyUpstream,
    /// No connection to an endpoint could be made.
    ConnectFailure,
    /// The endpoint's policy denies the connection.
    Denied,
    /// The endpoint ended the connection without a whole response.
    UpstreamReset,
    /// What the endpoint sent is no response.
    UpstreamProtocolError,
    /// No response came in time.
    Timeout,
    /// The service has as many requests under way, waiting or sent again as its policy lets it.
    Overflow,
    /// The client went away.
    ClientGone,
    /// What the client sent is no request.
    ClientProtocolError,
    /// The route has it fail.
    FaultInjected,
    /// The route delayed it.
    DelayInjected,
}

impl RequestFlag {
    /// Returns the code.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoRoute => "NR",
            Self::NoCluster => "NC",
            Self::NoHealthyUpstream => "UH",
            Self::ConnectFailure => "UF",
            Self::Denied => "DENY",
            Self::UpstreamReset => "UC",
            Self::UpstreamProtocolError => "UPE",
            Self::Timeout => "UT",
            Self::Overflow => "UO",
            Self::ClientGone => "DC",
            Self::ClientProtocolError => "DPE",
            Self::FaultInjected => "FI",
            Self::DelayInjected => "DI",
        }
    }

    /// Returns what the client is told, in the body of the response.
    pub const fn body_text(self) -> &'static str {
        match self {
            Self::NoRoute => "no route matches the request",
            Self::NoCluster | Self::NoHealthyUpstream => "no healthy upstream",
            Self::ConnectFailure => "upstream connect error: no connection to an endpoint could be made",
            Self::Denied => "upstream connect error: the endpoint's policy denies the connection",
            Self::UpstreamReset => "upstream connect error: the connection ended before a response came",
            Self::UpstreamProtocolError => "upstream connect error: the response is malformed",
            Self::Timeout => "upstream request timeout",
            Self::Overflow => "upstream connect error: overflow",
            Self::ClientGone | Self::ClientProtocolError => "the request is malformed",
            Self::FaultInjected => "fault filter abort",
            Self::DelayInjected => "",
        }
    }
}

impl fmt::Display for RequestFlag {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(self.as_str())
    }
}

impl RequestRecord {
    /// Starts the record of a request that `client` sends to `destination`.
    pub fn new(metrics: &Arc<WorkerMetrics>, client: SocketAddr, destination: SocketAddr) -> Self {
        let mut details = ConnectionDetails::new(Reporter::Source, client, destination);
        details.transport = "none";
        let message = RequestMessage::default();
        Self { metrics: Arc::clone(metrics), details, message, since: Instant::now(), ended: false }
    }

    /// Notes what the request is, if a line will say it.
    pub fn set_request(&mut self, method: &str, authority: &str, path: &str) {
        if !self.metrics.log.is_written() {
            return;
        }
        let message = &mut self.message;
        (message.method, message.authority, message.path) = (method.into(), authority.into(), path.into());
    }

    /// Notes its route.
    pub fn set_route(&mut self, name: &Arc<str>) {
        self.message.route = Arc::clone(name);
    }

    /// Notes whether it is of gRPC.
    pub fn set_is_grpc(&mut self, is_grpc: bool) {
        self.message.is_grpc = is_grpc;
    }

    /// Notes the outcome that gRPC tells.
    pub fn set_grpc_status(&mut self, status: Option<u32>) {
        self.message.grpc_status = status;
    }

    /// Notes that its route delayed it.
    pub fn set_delayed(&mut self) {
        self.message.is_delayed = true;
    }

    /// Notes that it is not sent again: the service has so many retries already.
    pub fn refuse_retry(&mut self, limit: RequestLimit, most: u32) {
        self.metrics.count_over_request_limit(limit);
        self.message.refused_retry = Some((limit, most));
    }

    /// Notes that it goes to an endpoint.
    pub fn begin_attempt(&mut self, endpoint: &Endpoint) {
        self.message.attempts += 1;
        self.details.set_destination_workload(&endpoint.workload);
        self.details.labels.destination_identity = None;
        (self.details.transport, self.details.policy) = ("none", None);
        self.details.upstream = Some(endpoint.address);
    }

    /// Notes the way to the endpoint, and the policy that allowed it, if one had to.
    pub fn note_way(&mut self, transport: &'static str, policy: Option<&Arc<str>>) {
        let details = &mut self.details;
        details.transport = transport;
        details.policy = policy.cloned();
        let proves_identity = transport != PLAIN_TRANSPORT;
        let destination = details.labels.destination.as_ref().filter(|_| proves_identity);
        details.labels.destination_identity = destination.map(|workload| workload.identity.clone());
    }

    /// Notes the bytes of its body, and of the response's.
    pub fn set_body_bytes(&mut self, request: u64, response: u64) {
        self.message.body_bytes = (request, response);
    }

    /// Records the outcome: the status that the client gets, and why it failed, if it did.
    pub fn end(mut self, status: StatusCode, flag: Option<RequestFlag>, reason: &str) {
        self.finish(Some(status), flag, reason);
    }

    /// Records the outcome of a request that became a tunnel.
    pub fn end_tunnel(mut self, status: StatusCode, outcome: &ConnectionOutcome) {
        match outcome {
            ConnectionOutcome::Closed => self.finish(Some(status), None, ""),
            ConnectionOutcome::Broken(reason) | ConnectionOutcome::Failed(_, reason) => {
                self.finish(Some(status), Some(RequestFlag::UpstreamReset), reason);
            }
            ConnectionOutcome::Expired(expiry) => {
                self.finish(Some(status), Some(RequestFlag::Timeout), &expiry.to_string());
            }
        }
    }

    fn finish(&mut self, status: Option<StatusCode>, flag: Option<RequestFlag>, reason: &str) {
        self.ended = true;
        let (flag, reason) = self.message.why_not_retried(flag, reason);
        let flag = flag.or_else(|| self.message.is_delayed.then_some(RequestFlag::DelayInjected));
        let duration: Duration = self.since.elapsed();
        let outcome = RequestOutcome { status, flag, grpc: self.message.grpc_outcome() };
        self.metrics.count_request(&self.details.labels, outcome, duration);
        self.metrics.log.write_request(|| RequestLogEntry {
            details: &self.details,
            message: &self.message,
            status,
            flag,
            reason: &reason,
            duration,
        });
    }
}

impl Drop for RequestRecord {
    fn drop(&mut self) {
        if !self.ended {
            self.finish(None, Some(RequestFlag::ClientGone), "abandoned: the connection or the proxy ended");
        }
    }
}
