//! Forwards a request: attempts at endpoints until one answers, then the response to the client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use http::StatusCode;
use mesh_api::plan::http_routes::{HttpDestination, HttpForward, HttpMatch, Retries};
use mesh_api::plan::outbound::{Destination, Reject, destination_of};
use mesh_api::plan::{Endpoint, EndpointKey, Endpoints, PortPolicy, Service};
use rand::RngExt;

use super::attempt::{AttemptError, OutgoingRequest, Timers, send_and_read_head, within_time};
use super::client_connection::ClientConnection;
use super::cors::CorsPermission;
use super::exchange::{Asked, HttpConnection, Next, is_drawn, respond};
use super::h1::{RequestHead, ResponseHead};
use super::local_response::LocalResponse;
use super::mirror;
use super::outgoing_head::outgoing_head;
use super::request_body::KeptBody;
use super::response::{Answered, relay_to_client};
use super::upstream_connection::{ServicePortSlot, UpstreamConnection};
use super::upstream_connections::UpstreamKey;
use crate::balance::{ActiveConnection, AffinityKey, EndpointPick};
use crate::telemetry::{RequestFlag, RequestRecord};
use crate::tunnel::EarlyData;
use crate::upstream::{self, ClientContext, ConnectOptions};

/// The back-off between attempts is at most so many times its base (Envoy's default).
const MAX_BACKOFF: u32 = 10;

/// How a request goes to its destination.
pub(super) struct Forwarding<'a> {
    pub forward: &'a HttpForward,
    /// The condition that the request fits; none: the route is for all.
    pub matched: Option<&'a HttpMatch>,
    /// None: the service that the client addresses.
    pub destination: Option<&'a HttpDestination>,
    /// That the page which sent it may read the response.
    pub permission: Option<CorsPermission<'a>>,
}

/// Where the attempts of a request go.
struct Target {
    service: Arc<Service>,
    port: u16,
    policy: Arc<PortPolicy>,
    endpoints: Arc<Endpoints>,
}

/// A request on its way, and the response to it.
struct Exchange<'a> {
    connection: &'a HttpConnection,
    head: &'a RequestHead,
    retries: &'a Retries,
    target: &'a Target,
    outgoing: OutgoingRequest,
    response: ResponseHead,
    timers: Timers,
}

/// Forwards a request, and the response to the client.
pub(super) async fn forward_request(
    connection: &HttpConnection,
    mut client: ClientConnection,
    asked: Asked<'_>,
    forwarding: &Forwarding<'_>,
    mut record: RequestRecord,
) -> Next {
    let target = match find_target(connection, &asked, forwarding) {
        Ok(target) => target,
        Err((flag, reason)) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            record.end(status, Some(flag), &reason);
            return respond(LocalResponse::with_text(status, "no healthy upstream"), client, &asked).await;
        }
    };
    record.details.labels.service = Some(Arc::clone(&target.service));
    let Some(bytes) = outgoing_head(asked.head, forwarding) else {
        let status = StatusCode::BAD_REQUEST;
        let reason = "the rewritten path or the changed head can't be sent";
        record.end(status, Some(RequestFlag::ClientProtocolError), reason);
        return respond(LocalResponse::with_text(status, reason), client, &asked).await;
    };
    let retries = &forwarding.forward.retries;
    let budget = connection.worker.receive_budget(&connection.pod);
    let mirrors = chosen_mirrors(asked.head, forwarding.forward);
    let kept = KeptBody::new(budget, retries.attempts > 0 || !mirrors.is_empty());
    let mut exchange = Exchange {
        connection,
        head: asked.head,
        retries,
        target: &target,
        outgoing: OutgoingRequest::new(bytes, asked.head.body, kept),
        response: ResponseHead::default(),
        timers: Timers::new(forwarding.forward.timeout, retries.per_try_timeout),
    };
    let found = exchange.attempt_until_answered(&asked, &mut client, &mut record).await;
    if !mirrors.is_empty() {
        let message = exchange.outgoing.whole_message(asked.head.body);
        send_copies(connection, &asked, &mirrors, message.as_deref());
    }
    let stays = asked.stays();
    let Exchange { outgoing, response, timers, .. } = exchange;
    match found {
        Ok(Reached { key, upstream, active }) => {
            let answered = Answered { outgoing, response, timers, stays };
            let worker = &connection.worker;
            let next = relay_to_client((upstream, client), answered, (asked.head, forwarding), record).await;
            drop(active);
            let (next, reusable) = next;
            if let Some(upstream) = reusable {
                worker.http_connections.keep(key, upstream);
            }
            next
        }
        Err(failed) => {
            record.set_body_bytes(outgoing.body_bytes(), 0);
            let (status, flag) = status_and_flag(&failed);
            record.end(status, Some(flag), &failed.to_string());
            if matches!(failed, AttemptError::ClientGone(_)) {
                return Next::Reset(client.socket);
            }
            // What is left of the body can't be told from the next request.
            let stays = stays && outgoing.has_read_all();
            let response = LocalResponse::with_text(status, flag.text());
            if response.send(&mut client, asked.head, stays).await && stays {
                Next::Request(client)
            } else {
                Next::Close(client)
            }
        }
    }
}

/// Draws the mirrors that get a copy of a request. What becomes a tunnel is not copied.
fn chosen_mirrors<'a>(head: &RequestHead, forward: &'a HttpForward) -> Vec<&'a HttpDestination> {
    if head.is_connect() || head.upgrade.is_some() {
        return Vec::new();
    }
    let chosen = forward.mirrors.iter().filter(|(_, share)| is_drawn(*share));
    chosen.map(|(destination, _)| destination).collect()
}

/// Sends copies of a request that was read to its end; of another one, or one that was too large to keep,
/// none.
fn send_copies(
    connection: &HttpConnection,
    asked: &Asked<'_>,
    mirrors: &[&HttpDestination],
    message: Option<&[u8]>,
) {
    let Some(message) = message else {
        return mirrors.iter().for_each(|_| connection.worker.metrics.count_copy(false));
    };
    let message = mirror::marked_as_copy(message);
    for mirror in mirrors {
        let (configuration, method) = ((asked.snapshot, asked.workload), &asked.head.method);
        mirror::send_copy(connection, configuration, mirror, method, &message);
    }
}

/// An endpoint that has begun to answer.
struct Reached {
    key: UpstreamKey,
    upstream: UpstreamConnection,
    active: ActiveConnection,
}

impl Exchange<'_> {
    /// Makes attempts until one has a response for the client. Errors: why the last one had none.
    async fn attempt_until_answered(
        &mut self,
        asked: &Asked<'_>,
        client: &mut ClientConnection,
        record: &mut RequestRecord,
    ) -> Result<Reached, AttemptError> {
        let worker = &self.connection.worker;
        let (endpoints, policy) = (&self.target.endpoints, &self.target.policy);
        let ejected = || worker.shared.outliers.ejected_endpoints(endpoints, policy, Instant::now());
        let Target { service, port, .. } = self.target;
        let own = AffinityKey::key_and_timeout_if_enabled(asked.workload, service, policy, *port);
        let affinity = &worker.shared.affinity;
        let first = own
            .as_ref()
            .and_then(|(own, _)| affinity.choose_endpoint_index(own, endpoints, &ejected(), Instant::now()));
        let mut picks = worker.picker.pick_endpoints(endpoints, policy.lb, ejected(), first);
        let mut retried = 0;
        loop {
            let pick = picks.next().or_else(|| {
                picks = worker.picker.pick_endpoints(endpoints, policy.lb, ejected(), None);
                picks.next()
            });
            let EndpointPick { endpoint, key, active } = pick.ok_or(AttemptError::AllEjected)?;
            record.begin_attempt(endpoint);
            let attempted = self.attempt(asked, endpoint, client, record).await;
            self.report(&key, &attempted);
            let may_retry = retried < self.retries.attempts && self.outgoing.is_repeatable();
            match attempted {
                Ok(upstream)
                    if !may_retry || !self.retries.conditions.covers_status(self.response.status) =>
                {
                    if let Some((own, timeout)) = own {
                        affinity.remember_endpoint(own, &key, timeout, Instant::now());
                    }
                    return Ok(Reached { key: self.upstream_key(endpoint), upstream, active });
                }
                Err(error) if !may_retry || !self.is_retriable(&error) => return Err(error),
                Ok(upstream) => upstream.close_in_order(),
                Err(_) => {}
            }
            retried += 1;
            drop(active);
            client.check_is_there().map_err(|error| AttemptError::ClientGone(error.to_string()))?;
            within_time(tokio::time::sleep(backoff(self.retries.backoff, retried)), &mut self.timers).await?;
        }
    }

    /// Makes one attempt. Errors: it has no response.
    async fn attempt(
        &mut self,
        asked: &Asked<'_>,
        endpoint: &Endpoint,
        client: &mut ClientConnection,
        record: &mut RequestRecord,
    ) -> Result<UpstreamConnection, AttemptError> {
        let key = self.upstream_key(endpoint);
        let pooled = self.connection.worker.http_connections.take(&key).await;
        if let Some(mut upstream) = pooled {
            upstream.hold_slot(self.take_slot()?);
            self.outgoing.begin_attempt(&mut self.timers);
            match self.send_on(&mut upstream, client, record).await {
                Ok(()) => return Ok(upstream),
                // The server closed it as the request was on its way (RFC 9112, 9.3.1), which costs no retry:
                // once, on a new connection.
                Err(AttemptError::Reset(_)) if self.can_repeat_at_once() => {}
                Err(error) => return Err(error),
            }
        }
        let slot = self.take_slot()?;
        self.outgoing.begin_attempt(&mut self.timers);
        let mut upstream = self.open(asked, endpoint, record).await?;
        upstream.hold_slot(slot);
        self.send_on(&mut upstream, client, record).await.map(|()| upstream)
    }

    /// Sends the request on a connection and reads the head of its response. Errors: it has none.
    async fn send_on(
        &mut self,
        upstream: &mut UpstreamConnection,
        client: &mut ClientConnection,
        record: &mut RequestRecord,
    ) -> Result<(), AttemptError> {
        record.note_way(upstream.transport, upstream.allowing_policy());
        let messages = (self.head, &mut self.outgoing);
        send_and_read_head(upstream, client, messages, &mut self.response, &mut self.timers).await
    }

    fn can_repeat_at_once(&self) -> bool {
        self.head.is_idempotent() && self.outgoing.is_repeatable() && !self.outgoing.has_answer()
    }

    fn upstream_key(&self, endpoint: &Endpoint) -> UpstreamKey {
        let Target { service, port, .. } = self.target;
        UpstreamKey::new(&self.connection.pod, (service, *port), endpoint)
    }

    /// Takes a slot below the limit of the service's port, if it has one. Errors: all are taken.
    fn take_slot(&self) -> Result<Option<ServicePortSlot>, AttemptError> {
        let Target { service, port, policy, .. } = self.target;
        let Some(limit) = policy.pool.max_connections else { return Ok(None) };
        let limits = &self.connection.worker.shared.service_limits;
        let slot = limits.try_take_slot((Arc::clone(&service.key), *port), limit.get());
        slot.map(Some).ok_or(AttemptError::Overflow(limit.get()))
    }

    /// Opens a connection to an endpoint; what is sent first goes along with it. Errors: it can't be reached,
    /// or not in time.
    async fn open(
        &mut self,
        asked: &Asked<'_>,
        endpoint: &Endpoint,
        record: &mut RequestRecord,
    ) -> Result<UpstreamConnection, AttemptError> {
        let HttpConnection { worker, pod, client, .. } = self.connection;
        let Target { service, policy, .. } = self.target;
        let options =
            ConnectOptions { timeout: policy.pool.connect_timeout, keepalive: policy.pool.keepalive };
        let first = BytesMut::from(self.outgoing.first_bytes());
        let origin = ClientContext {
            worker,
            pod,
            workload: asked.workload,
            client: *client,
            service: Some(&service.hostname),
            early: EarlyData::Bytes(&first),
            exposed: std::cell::Cell::new(false),
        };
        record.details.transport = upstream::expected_transport_name(&origin, endpoint);
        let opening = Box::pin(upstream::connect_to_endpoint(&origin, endpoint, options));
        match within_time(opening, &mut self.timers).await? {
            Ok(upstream) => {
                self.outgoing.skip(upstream.early_bytes_sent());
                Ok(UpstreamConnection::new(upstream))
            }
            Err(error) if origin.exposed.get() => Err(AttemptError::Reset(error.to_string())),
            Err(error) => Err(AttemptError::Connect(error)),
        }
    }

    fn is_retriable(&self, error: &AttemptError) -> bool {
        let conditions = &self.retries.conditions;
        match error {
            AttemptError::Connect(error) => !error.stops_retries() && conditions.covers_connect_failure(),
            AttemptError::Reset(_) | AttemptError::Malformed(_) | AttemptError::TryTimeout(_) => {
                conditions.covers_reset()
            }
            AttemptError::AllEjected
            | AttemptError::Overflow(_)
            | AttemptError::RouteTimeout(_)
            | AttemptError::Revoked(_)
            | AttemptError::ClientGone(_)
            | AttemptError::ClientMalformed(_) => false,
        }
    }

    /// Reports an attempt to outlier detection: no response and 5xx are failures of the endpoint.
    fn report(&self, key: &EndpointKey, attempted: &Result<UpstreamConnection, AttemptError>) {
        let failure = match attempted {
            Ok(_) if self.response.status.is_server_error() => {
                Some(format!("status {}", self.response.status))
            }
            Ok(_) => None,
            Err(AttemptError::Connect(error)) if error.stops_retries() => return,
            Err(
                error @ (AttemptError::Connect(_)
                | AttemptError::Reset(_)
                | AttemptError::Malformed(_)
                | AttemptError::TryTimeout(_)
                | AttemptError::RouteTimeout(_)),
            ) => Some(error.to_string()),
            Err(_) => return,
        };
        let Target { policy, endpoints, .. } = self.target;
        let failure = failure.as_ref().map(|reason| reason as &dyn std::fmt::Display);
        let outliers = &self.connection.worker.shared.outliers;
        outliers.report_connect_result(key, endpoints, policy, failure, Instant::now());
    }
}

/// Returns the pause before the `retried`th retry: up to the base, doubled each time, at random (full
/// jitter).
fn backoff(base: Duration, retried: u32) -> Duration {
    let most = base.saturating_mul(2_u32.saturating_pow(retried.saturating_sub(1)).min(MAX_BACKOFF));
    most.mul_f64(rand::rng().random_range(0.0..1.0))
}

/// Finds out where a request goes. Errors: nowhere, and why.
fn find_target(
    connection: &HttpConnection,
    asked: &Asked<'_>,
    forwarding: &Forwarding<'_>,
) -> Result<Target, (RequestFlag, String)> {
    let original = connection.original.address();
    let destination = match forwarding.destination {
        Some(destination) => destination.endpoints(asked.snapshot, asked.workload, original),
        None => destination_of(asked.snapshot, asked.workload, original),
    };
    match destination {
        Destination::Service { service, port, policy, endpoints } => {
            Ok(Target { service, port, policy, endpoints })
        }
        Destination::Reject(reject) => Err((flag_of(&reject), reject.to_string())),
        other @ (Destination::Passthrough | Destination::Workload(_)) => {
            Err((RequestFlag::NoCluster, format!("requests can't go {other}")))
        }
    }
}

fn flag_of(reject: &Reject) -> RequestFlag {
    match reject {
        Reject::NoEndpoint { .. } => RequestFlag::NoHealthyUpstream,
        Reject::NoSuchPort { .. }
        | Reject::NoSuchService { .. }
        | Reject::NoSuchSubset { .. }
        | Reject::Waypoint { .. }
        | Reject::MeshPort { .. } => RequestFlag::NoCluster,
    }
}

/// Returns the status that the client gets for a failure, and the flag in log and metrics.
fn status_and_flag(error: &AttemptError) -> (StatusCode, RequestFlag) {
    match error {
        AttemptError::AllEjected => (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::NoHealthyUpstream),
        AttemptError::Overflow(_) => (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::Overflow),
        AttemptError::Connect(error) if error.stops_retries() => {
            (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::Denied)
        }
        AttemptError::Connect(_) => (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::ConnectFailure),
        AttemptError::Reset(_) | AttemptError::Revoked(_) => {
            (StatusCode::SERVICE_UNAVAILABLE, RequestFlag::UpstreamReset)
        }
        AttemptError::Malformed(_) => (StatusCode::BAD_GATEWAY, RequestFlag::UpstreamProtocolError),
        AttemptError::TryTimeout(_) | AttemptError::RouteTimeout(_) => {
            (StatusCode::GATEWAY_TIMEOUT, RequestFlag::Timeout)
        }
        AttemptError::ClientGone(_) => (StatusCode::BAD_REQUEST, RequestFlag::ClientGone),
        AttemptError::ClientMalformed(_) => (StatusCode::BAD_REQUEST, RequestFlag::ClientProtocolError),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_grows_and_has_an_end() {
        let base = Duration::from_millis(25);
        for (retried, most) in [(1, base), (2, base * 2), (3, base * 4), (9, base * 10), (100, base * 10)] {
            assert!((0..100).all(|_| backoff(base, retried) <= most), "{retried}");
        }
    }
}
