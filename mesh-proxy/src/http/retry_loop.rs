//! The attempts of a request, one after the other, until one has a response for the client.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::{Bytes, BytesMut};
use h2::client::SendRequest;
use mesh_api::plan::http_routes::Retries;
use mesh_api::plan::{Endpoint, EndpointId, Workload};
use rand::RngExt;

use super::downstream_client::Client;
use super::grpc;
use super::h1::{RequestHead, ResponseHead};
use super::h2::{CountedStream, Http2Connection, was_refused};
use super::http_connection_context::HttpConnection;
use super::outgoing_request::OutgoingRequest;
use super::send_request::{AttemptError, Timers, send_and_read_head, within_time};
use super::upstream_connection::ServicePortSlot;
use super::upstream_connections::UpstreamKey;
use super::upstream_exchange::UpstreamExchange;
use super::upstream_target::{ConnectionSlot, Opened, TargetService, UpstreamProtocol};
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
    pub slots: RequestSlots,
}

/// What counts a request against limits of its service's port.
#[derive(Default)]
pub(super) struct RequestSlots {
    /// As one that is under way.
    request: Option<ServicePortSlot>,
    /// As one that is sent again.
    retry: Option<ServicePortSlot>,
}

/// An endpoint that has begun to answer.
pub(super) struct Reached {
    pub key: UpstreamKey,
    pub upstream: UpstreamExchange,
    /// Counts the request, at its endpoint and its service's port.
    pub active: ActiveRequest,
}

/// That a request is under way, until it is dropped.
pub(super) struct ActiveRequest {
    _at_endpoint: ActiveConnection,
    _at_service: Option<ServicePortSlot>,
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
            let is_repeated = may_retry
                && attempted.as_ref().map_or_else(|error| self.is_retriable(error), |_| self.is_failure())
                && self.begin_retry(record);
            match attempted {
                Ok(upstream) if !is_repeated => {
                    if let Some((own, timeout)) = own {
                        affinity.remember_endpoint(own, &key, timeout, Instant::now());
                    }
                    let active =
                        ActiveRequest { _at_endpoint: active, _at_service: self.slots.request.take() };
                    return Ok(Reached { key: upstream_key, upstream, active });
                }
                Err(error) if !is_repeated => return Err(error),
                Ok(upstream) => upstream.abandon(),
                Err(_) => {}
            }
            retried += 1;
            self.slots.request = None;
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
        self.outgoing.begin_attempt(&mut self.timers);
        let mut slot = self.wait_for_connection(client).await?;
        self.count_request()?;
        let worker = &self.connection.worker;
        let usage = self.target.connection_use();
        if let Some(mut pooled) = worker.http_connections.take(key).await {
            pooled.begin_request(slot, usage);
            let mut upstream = UpstreamExchange::Http1(pooled);
            match self.send_on(&mut upstream, client).await {
                // The server closed it as the request was on its way (RFC 9112, 9.3.1), which costs no retry:
                // once, on a new connection in its place.
                Err(AttemptError::Reset(_)) if self.can_repeat_at_once() => slot = upstream.take_slot(),
                attempted => return attempted.map(|()| upstream),
            }
            self.outgoing.begin_attempt(&mut self.timers);
        }
        let first = BytesMut::from(self.outgoing.first_bytes());
        let opening = self.target.open(self.connection, self.workload, endpoint, &first);
        let Opened { mut connection, sent } = within_time(opening, &mut self.timers).await??;
        self.outgoing.skip(sent);
        connection.begin_request(slot, usage);
        let mut upstream = UpstreamExchange::Http1(Box::new(connection));
        self.send_on(&mut upstream, client).await?;
        Ok(upstream)
    }

    async fn attempt_http2(
        &mut self,
        key: &UpstreamKey,
        endpoint: &Endpoint,
        client: &mut Client,
    ) -> Result<UpstreamExchange, AttemptError> {
        self.outgoing.begin_attempt(&mut self.timers);
        self.count_request()?;
        let shared = match self.get_or_open_shared(key, endpoint, None).await {
            Err(AttemptError::NoConnection(_)) => {
                self.slots.request = None;
                self.wait_for_shared(key, endpoint, client).await
            }
            shared => shared,
        };
        let (counted, requests) = shared?;
        let Some((head, is_end)) = self.outgoing.take_stream_head() else {
            return Err(AttemptError::Reset("the request was written for HTTP/1".to_owned()));
        };
        match within_time(counted.send_request(requests, head, is_end), &mut self.timers).await? {
            Ok(stream) => {
                let mut upstream = UpstreamExchange::Http2(Box::new(stream));
                self.send_on(&mut upstream, client).await?;
                Ok(upstream)
            }
            // The connection is over, or about to be: nothing was sent on it.
            Err(error) if was_refused(&error) || !error.is_reset() => {
                Err(AttemptError::Refused(error.to_string()))
            }
            Err(error) => Err(AttemptError::Reset(error.to_string())),
        }
    }

    /// Returns a place on a connection of HTTP/2. `slot` is one below the service's limit that the request
    /// has waited for. Errors: see [`AttemptError`]; the request needs another slot and there is none.
    async fn get_or_open_shared(
        &mut self,
        key: &UpstreamKey,
        endpoint: &Endpoint,
        slot: Option<ServicePortSlot>,
    ) -> Result<(CountedStream, SendRequest<Bytes>), AttemptError> {
        let worker = &self.connection.worker;
        let (has_waited, waited) = (slot.is_some(), Cell::new(slot));
        let take_slot = || match waited.take() {
            None if has_waited => Ok(None),
            None => self.target.try_take_connection(worker),
            slot => Ok(slot),
        };
        // Boxed, since few requests open one.
        let open = || {
            Box::pin(async {
                let slot = take_slot()?;
                let nothing = BytesMut::new();
                let opening = self.target.open(self.connection, self.workload, endpoint, &nothing);
                let opened = opening.await?.connection;
                let budget = worker.receive_budget(&self.connection.pod);
                let stream_ended = worker.http_connections.stream_ended(key);
                let started = Http2Connection::start(opened, slot, budget, stream_ended).await;
                started.map_err(|error| AttemptError::Reset(error.to_string()))
            })
        };
        let usage = self.target.connection_use();
        let shared = worker.http_connections.get_or_open_shared(key, usage, &take_slot, open);
        within_time(shared, &mut self.timers).await?
    }

    /// Waits until the service may have another connection, if its policy limits them. Errors: so many
    /// requests wait, or it took too long, or the client is gone.
    async fn wait_for_connection(
        &mut self,
        client: &mut Client,
    ) -> Result<Option<ServicePortSlot>, AttemptError> {
        match self.target.take_connection(&self.connection.worker)? {
            ConnectionSlot::Taken(slot) => Ok(slot),
            ConnectionSlot::Queued(place) => self.within_wait(client, place.wait()).await.map(Some),
        }
    }

    /// Waits for a place on a connection of HTTP/2: until the service may have another one, or one that there
    /// is has room again. Errors: as above.
    async fn wait_for_shared(
        &mut self,
        key: &UpstreamKey,
        endpoint: &Endpoint,
        client: &mut Client,
    ) -> Result<(CountedStream, SendRequest<Bytes>), AttemptError> {
        let slot = match self.target.take_connection(&self.connection.worker)? {
            ConnectionSlot::Taken(slot) => slot,
            ConnectionSlot::Queued(place) => {
                let worker = Rc::clone(&self.connection.worker);
                let usage = self.target.connection_use();
                let stream = worker.http_connections.wait_for_room(key, usage);
                let either = async {
                    tokio::select! {
                        biased;
                        slot = place.wait() => Ok(slot),
                        stream = stream => Err(stream),
                    }
                };
                match self.within_wait(client, either).await? {
                    Ok(slot) => Some(slot),
                    Err(stream) => {
                        self.count_request()?;
                        return Ok(stream);
                    }
                }
            }
        };
        self.count_request()?;
        self.get_or_open_shared(key, endpoint, slot).await
    }

    /// Waits for `coming`, as long as the request has time, which runs meanwhile, and its client is there.
    /// Errors: one is over.
    async fn within_wait<T>(
        &mut self,
        client: &mut Client,
        coming: impl Future<Output = T>,
    ) -> Result<T, AttemptError> {
        self.timers.start();
        // Boxed, since few requests wait.
        let waiting = Box::pin(async {
            tokio::select! {
                biased;
                come = coming => Ok(come),
                error = client.wait_until_reset() => Err(AttemptError::ClientGone(error.to_string())),
            }
        });
        let come = within_time(waiting, &mut self.timers).await.map_err(|late| match late {
            AttemptError::TryTimeout(time) | AttemptError::RouteTimeout(time) => {
                AttemptError::NoConnectionInTime(time)
            }
            other => other,
        })??;
        if !self.outgoing.has_read_all() {
            // Nobody read the body meanwhile.
            self.timers.stop();
        }
        Ok(come)
    }

    /// Counts the request as one that is under way. Errors: so many are.
    fn count_request(&mut self) -> Result<(), AttemptError> {
        self.slots.request = None;
        self.slots.request = self.target.take_request(&self.connection.worker)?;
        Ok(())
    }

    /// Counts the request as one that is sent again, instead of an earlier time. Returns whether it may be.
    fn begin_retry(&mut self, record: &mut RequestRecord) -> bool {
        self.slots.retry = None;
        match self.target.take_retry(&self.connection.worker) {
            Ok(slot) => {
                self.slots.retry = slot;
                true
            }
            Err((limit, most)) => {
                record.refuse_retry(limit, most);
                false
            }
        }
    }

    /// Sends the request and reads the head of its response. Errors: it has none.
    async fn send_on(
        &mut self,
        upstream: &mut UpstreamExchange,
        client: &mut Client,
    ) -> Result<(), AttemptError> {
        let messages = (self.head, &mut self.outgoing);
        send_and_read_head(upstream, client, messages, &mut self.response, &mut self.timers).await
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
            | AttemptError::Overflow(..)
            | AttemptError::NoConnection(_)
            | AttemptError::NoConnectionInTime(_)
            | AttemptError::RouteTimeout(_)
            | AttemptError::Revoked(_)
            | AttemptError::ClientGone(_)
            | AttemptError::ClientMalformed(_) => false,
        }
    }

    /// Reports an attempt to outlier detection: the status of its response, or that there is none.
    fn report(&self, key: &EndpointId, attempted: &Result<UpstreamExchange, AttemptError>) {
        let TargetService { policy, endpoints, .. } = self.target;
        let outliers = &self.connection.worker.shared.outliers;
        let failure = match attempted {
            Ok(_) => {
                let status = self.response.status.as_u16();
                return outliers.report_response(key, endpoints, policy, status, Instant::now());
            }
            Err(AttemptError::Connect(error)) if error.stops_retries() => return,
            Err(
                error @ (AttemptError::Connect(_)
                | AttemptError::Reset(_)
                | AttemptError::Refused(_)
                | AttemptError::Malformed(_)
                | AttemptError::TryTimeout(_)
                | AttemptError::RouteTimeout(_)),
            ) => error,
            Err(_) => return,
        };
        outliers.report_result(key, endpoints, policy, Some(failure), Instant::now());
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
