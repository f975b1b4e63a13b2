//! The attempts of a request, one after the other, until one has a response for the client.

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::BytesMut;
use mesh_api::plan::http_routes::Retries;
use mesh_api::plan::{Endpoint, EndpointId, Workload};
use rand::RngExt;

use super::downstream_client::Client;
use super::grpc;
use super::h1::{RequestHead, ResponseHead};
use super::h2::{Http2Connection, was_refused};
use super::http_connection_context::HttpConnection;
use super::outgoing_request::OutgoingRequest;
use super::send_request::{AttemptError, Timers, send_and_read_head, within_time};
use super::upstream_connections::UpstreamKey;
use super::upstream_exchange::UpstreamExchange;
use super::upstream_target::{Opened, TargetService, UpstreamProtocol};
use crate::balance::{ActiveConnection, AffinityKey, EndpointPick, KeyHash, PickBy};
use crate::telemetry::RequestRecord;

/// The back-off between attempts is at most so many times its base (Envoy's default).
const MAX_BACKOFF: u32 = 10;

/// A request on its way, and the response to it.
pub(super) struct RetryLoop<'a> {
    pub connection: &'a HttpConnection,
    /// The client's workload.
    pub workload: &'a Arc<Workload>,
    pub head: &'a RequestHead,
    pub retries: &'a Retries,
    pub target: &'a TargetService,
    /// What decides where it goes; none: the load balancer.
    pub key: Option<KeyHash>,
    pub outgoing: OutgoingRequest,
    pub response: ResponseHead,
    pub timers: Timers,
}

/// An endpoint that has begun to answer.
pub(super) struct Reached {
    pub key: UpstreamKey,
    pub upstream: UpstreamExchange,
    /// Counts the request at its endpoint.
    pub active: ActiveConnection,
}

impl RetryLoop<'_> {
    /// Makes attempts until one has a response for the client. Errors: why the last one had none.
    pub async fn run(
        &mut self,
        client: &mut Client,
        record: &mut RequestRecord,
    ) -> Result<Reached, AttemptError> {
        let worker = &self.connection.worker;
        let (endpoints, policy) = (&self.target.endpoints, &self.target.policy);
        let ejected = || worker.shared.outliers.ejected_endpoints(endpoints, policy, Instant::now());
        let TargetService { service, port, .. } = self.target;
        let own = AffinityKey::key_and_timeout_if_enabled(self.workload, service, policy, *port);
        let affinity = &worker.shared.affinity;
        let first = own
            .as_ref()
            .and_then(|(own, _)| affinity.choose_endpoint_index(own, endpoints, &ejected(), Instant::now()));
        let by = PickBy::key_or_balancer(self.key, policy);
        let mut picks = worker.picker.pick_endpoints(endpoints, by, ejected(), first);
        let mut retried = 0;
        loop {
            let pick = picks.next().or_else(|| {
                picks = worker.picker.pick_endpoints(endpoints, by, ejected(), None);
                picks.next()
            });
            let EndpointPick { endpoint, key, active } = pick.ok_or(AttemptError::AllEjected)?;
            record.begin_attempt(endpoint);
            record.details.transport =
                self.target.expected_transport(self.connection, self.workload, endpoint);
            let upstream_key = self.target.upstream_key(self.connection, endpoint);
            let attempted = self.attempt(&upstream_key, endpoint, client).await;
            if let Ok(upstream) = &attempted {
                let (transport, policy) = upstream.way();
                record.note_way(transport, policy);
            }
            self.report(&key, &attempted);
            let may_retry = retried < self.retries.attempts && self.outgoing.is_repeatable();
            match attempted {
                Ok(upstream) if !may_retry || !self.is_failure() => {
                    if let Some((own, timeout)) = own {
                        affinity.remember_endpoint(own, &key, timeout, Instant::now());
                    }
                    return Ok(Reached { key: upstream_key, upstream, active });
                }
                Err(error) if !may_retry || !self.is_retriable(&error) => return Err(error),
                Ok(upstream) => upstream.abandon(),
                Err(_) => {}
            }
            retried += 1;
            drop(active);
            let is_there = client.check_is_there().await;
            is_there.map_err(|error| AttemptError::ClientGone(error.to_string()))?;
            within_time(tokio::time::sleep(backoff(self.retries, retried)), &mut self.timers).await?;
        }
    }

    /// Makes one attempt. Errors: it has no response.
    pub async fn attempt(
        &mut self,
        key: &UpstreamKey,
        endpoint: &Endpoint,
        client: &mut Client,
    ) -> Result<UpstreamExchange, AttemptError> {
        match self.target.protocol {
            UpstreamProtocol::Http1 => self.attempt_http1(key, endpoint, client).await,
            UpstreamProtocol::Http2 => match self.attempt_http2(key, endpoint, client).await {
                // The endpoint has not begun with it: once more, on a new connection.
                Err(AttemptError::Refused(_)) if self.outgoing.is_repeatable() => {
                    self.attempt_http2(key, endpoint, client).await
                }
                attempted => attempted,
            },
        }
    }

    async fn attempt_http1(
        &mut self,
        key: &UpstreamKey,
        endpoint: &Endpoint,
        client: &mut Client,
    ) -> Result<UpstreamExchange, AttemptError> {
        let worker = &self.connection.worker;
        if let Some(mut pooled) = worker.http_connections.take(key).await {
            pooled.hold_slot(self.target.take_slot(worker)?);
            self.outgoing.begin_attempt(&mut self.timers);
            match self.send_on(UpstreamExchange::Http1(pooled), client).await {
                // The server closed it as the request was on its way (RFC 9112, 9.3.1), which costs no retry:
                // once, on a new connection.
                Err(AttemptError::Reset(_)) if self.can_repeat_at_once() => {}
                attempted => return attempted,
            }
        }
        let slot = self.target.take_slot(worker)?;
        self.outgoing.begin_attempt(&mut self.timers);
        let first = BytesMut::from(self.outgoing.first_bytes());
        let opening = self.target.open(self.connection, self.workload, endpoint, &first);
        let Opened { mut connection, sent } = within_time(opening, &mut self.timers).await??;
        self.outgoing.skip(sent);
        connection.hold_slot(slot);
        self.send_on(UpstreamExchange::Http1(Box::new(connection)), client).await
    }

    async fn attempt_http2(
        &mut self,
        key: &UpstreamKey,
        endpoint: &Endpoint,
        client: &mut Client,
    ) -> Result<UpstreamExchange, AttemptError> {
        self.outgoing.begin_attempt(&mut self.timers);
        let connections = &self.connection.worker.http_connections;
        // Boxed, since few requests open one.
        let open = || {
            Box::pin(async {
                let slot = self.target.take_slot(&self.connection.worker)?;
                let nothing = BytesMut::new();
                let opening = self.target.open(self.connection, self.workload, endpoint, &nothing);
                let opened = opening.await?.connection;
                let budget = self.connection.worker.receive_budget(&self.connection.pod);
                let started = Http2Connection::start(opened, slot, budget).await;
                started.map_err(|error| AttemptError::Reset(error.to_string()))
            })
        };
        let slot = || self.target.take_slot(&self.connection.worker);
        let shared = connections.get_or_open_shared(key, slot, open);
        let (counted, requests) = within_time(shared, &mut self.timers).await??;
        let Some((head, is_end)) = self.outgoing.take_stream_head() else {
            return Err(AttemptError::Reset("the request was written for HTTP/1".to_owned()));
        };
        match within_time(counted.send_request(requests, head, is_end), &mut self.timers).await? {
            Ok(stream) => self.send_on(UpstreamExchange::Http2(Box::new(stream)), client).await,
            // The connection is over, or about to be: nothing was sent on it.
            Err(error) if was_refused(&error) || !error.is_reset() => {
                Err(AttemptError::Refused(error.to_string()))
            }
            Err(error) => Err(AttemptError::Reset(error.to_string())),
        }
    }

    /// Sends the request and reads the head of its response. Errors: it has none.
    async fn send_on(
        &mut self,
        mut upstream: UpstreamExchange,
        client: &mut Client,
    ) -> Result<UpstreamExchange, AttemptError> {
        let messages = (self.head, &mut self.outgoing);
        send_and_read_head(&mut upstream, client, messages, &mut self.response, &mut self.timers).await?;
        Ok(upstream)
    }

    fn can_repeat_at_once(&self) -> bool {
        self.head.is_idempotent() && self.outgoing.is_repeatable() && !self.outgoing.has_answer()
    }

    /// Whether the response is a failure after which the request is sent again.
    fn is_failure(&self) -> bool {
        let conditions = &self.retries.conditions;
        conditions.covers_status(self.response.status)
            || grpc::status_in_head(&self.response)
                .is_some_and(|status| conditions.covers_grpc_status(status))
    }

    fn is_retriable(&self, error: &AttemptError) -> bool {
        let conditions = &self.retries.conditions;
        match error {
            AttemptError::Connect(error) => !error.stops_retries() && conditions.covers_connect_failure(),
            AttemptError::Refused(_) => conditions.covers_refused_stream(),
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
    fn report(&self, key: &EndpointId, attempted: &Result<UpstreamExchange, AttemptError>) {
        let failure = match attempted {
            Ok(_) if self.response.status.is_server_error() => {
                Some(format!("status {}", self.response.status))
            }
            Ok(_) => None,
            Err(AttemptError::Connect(error)) if error.stops_retries() => return,
            Err(
                error @ (AttemptError::Connect(_)
                | AttemptError::Reset(_)
                | AttemptError::Refused(_)
                | AttemptError::Malformed(_)
                | AttemptError::TryTimeout(_)
                | AttemptError::RouteTimeout(_)),
            ) => Some(error.to_string()),
            Err(_) => return,
        };
        let TargetService { policy, endpoints, .. } = self.target;
        let failure = failure.as_ref().map(|reason| reason as &dyn std::fmt::Display);
        let outliers = &self.connection.worker.shared.outliers;
        outliers.report_result(key, endpoints, policy, failure, Instant::now());
    }
}

/// Returns the pause before the `retried`th retry: up to the base, doubled each time, at random (full
/// jitter), but no shorter than the route lets it be.
fn backoff(retries: &Retries, retried: u32) -> Duration {
    let doubled = 2_u32.saturating_pow(retried.saturating_sub(1)).min(MAX_BACKOFF);
    let most = retries.backoff.saturating_mul(doubled);
    most.mul_f64(rand::rng().random_range(0.0..1.0)).max(retries.least_backoff)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_back_off_grows_and_has_an_end() {
        let usual = Retries::default();
        let base = usual.backoff;
        for (retried, most) in [(1, base), (2, base * 2), (3, base * 4), (9, base * 10), (100, base * 10)] {
            assert!((0..100).all(|_| backoff(&usual, retried) <= most), "{retried}");
        }
        let least = Retries { least_backoff: base, ..usual };
        assert!((0..100).all(|_| backoff(&least, 1) == base && backoff(&least, 2) >= base));
    }
}
