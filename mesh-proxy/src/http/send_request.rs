//! One attempt to have a request answered by one endpoint: sends it, and waits for the head of the response.

use std::future::{pending, poll_fn};
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::Sleep;

use super::body_pump::{BodyPump, BodySink, PumpError, poll_fill};
use super::downstream_client::Client;
use super::h1::{MAX_HEAD, Malformed, RequestHead, ResponseHead, find_head_end};
use super::h2::{ResponseEvent, UpstreamStream, was_refused};
use super::outgoing_request::OutgoingRequest;
use super::upstream_connection::UpstreamConnection;
use super::upstream_exchange::UpstreamExchange;
use crate::authorized_connections::AuthorizedConnection;
use crate::connect_to_endpoint::UpstreamError;
use crate::telemetry::RequestLimit;

/// Most interim responses to one request.
const MAX_INTERIM: usize = 100;

/// Why an attempt has no response that goes to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// Every endpoint is ejected after failures.
    #[error("every endpoint is ejected after failures")]
    AllEjected,
    /// The service has as many requests, or retries, as its policy lets it.
    #[error("the service has its {1} requests already ({0})")]
    Overflow(RequestLimit, u32),
    /// The service has as many connections as its policy lets it, so that the request waits.
    #[error("the service has its {0} connections already (maxConnections)")]
    NoConnection(u32),
    /// It waited too long.
    #[error("none of the service's connections (maxConnections) was free within {} ms", .0.as_millis())]
    NoConnectionInTime(Duration),
    /// No connection could be made, so nothing was sent.
    #[error(transparent)]
    Connect(UpstreamError),
    /// The connection ended without a response.
    #[error("the upstream connection ended: {0}")]
    Reset(String),
    /// The endpoint has not begun to work on the request (RFC 9113, 8.7).
    #[error("the endpoint refused the stream: {0}")]
    Refused(String),
    /// The response is none.
    #[error("the response is malformed: {0}")]
    Malformed(Malformed),
    /// The attempt took longer than its timeout.
    #[error("no response within {} ms (perTryTimeout)", .0.as_millis())]
    TryTimeout(Duration),
    /// The request took longer than its timeout.
    #[error("no response within {} ms (timeout of the route)", .0.as_millis())]
    RouteTimeout(Duration),
    /// The policy no longer allows the connection.
    #[error("policy changed: {0}")]
    Revoked(String),
    /// The client is gone.
    #[error("the client is gone: {0}")]
    ClientGone(String),
    /// The client's body is malformed.
    #[error("the request's body is malformed: {0}")]
    ClientMalformed(Malformed),
}

/// The times that a request has. They begin when the whole of it was sent, as in Envoy.
pub(super) struct Timers {
    route: Timer,
    attempt: Timer,
}

struct Timer {
    after: Option<Duration>,
    running: Option<Pin<Box<Sleep>>>,
}

impl Timer {
    fn start(&mut self) {
        if let (Some(after), None) = (self.after, &self.running) {
            self.running = Some(Box::pin(tokio::time::sleep(after)));
        }
    }

    fn poll_expired(&mut self, context: &mut Context<'_>) -> Option<Duration> {
        let running = self.running.as_mut()?;
        running.as_mut().poll(context).is_ready().then_some(self.after?)
    }
}

impl Timers {
    pub fn new(route: Option<Duration>, attempt: Option<Duration>) -> Self {
        let timer = |after| Timer { after, running: None };
        Self { route: timer(route), attempt: timer(attempt) }
    }

    /// Begins those that have not begun: the whole request was sent.
    pub fn start(&mut self) {
        self.route.start();
        self.attempt.start();
    }

    /// Returns an error once a time is over.
    pub fn poll_expired(&mut self, context: &mut Context<'_>) -> Poll<AttemptError> {
        if let Some(after) = self.route.poll_expired(context) {
            return Poll::Ready(AttemptError::RouteTimeout(after));
        }
        match self.attempt.poll_expired(context) {
            Some(after) => Poll::Ready(AttemptError::TryTimeout(after)),
            None => Poll::Pending,
        }
    }

    /// Ends the time of the attempt: its response has begun.
    pub fn end_attempt(&mut self) {
        self.attempt = Timer { after: None, running: None };
    }

    /// Ends all that have begun: what was waited for has come, and the request is not sent yet.
    pub fn stop(&mut self) {
        (self.route.running, self.attempt.running) = (None, None);
    }

    /// Begins the time of another attempt with its request.
    pub fn reset_attempt(&mut self) {
        self.attempt.running = None;
    }
}

/// Sends a request on its way to an endpoint and reads the head of its response; interim responses go to the
/// client meanwhile. Errors: see [`AttemptError`].
pub(super) async fn send_and_read_head(
    upstream: &mut UpstreamExchange,
    client: &mut Client,
    (request, outgoing): (&RequestHead, &mut OutgoingRequest),
    response: &mut ResponseHead,
    timers: &mut Timers,
) -> Result<(), AttemptError> {
    let mut interim_bytes = 0;
    for _ in 0..MAX_INTERIM {
        let messages = (request, &mut *outgoing);
        match upstream {
            UpstreamExchange::Http1(connection) => {
                read_http1_head(connection, client, messages, response, timers).await?;
            }
            UpstreamExchange::Http2(stream) => {
                read_http2_head(stream, client, messages, response, timers).await?;
            }
        }
        if !response.is_interim() {
            return Ok(());
        }
        interim_bytes += response.fields.size();
        if interim_bytes > MAX_HEAD {
            break;
        }
        let sent = within_time(client.send_interim(request.version, response), timers).await?;
        sent.map_err(|error| AttemptError::ClientGone(error.to_string()))?;
    }
    Err(AttemptError::Malformed(Malformed::Invalid("interim responses do not end")))
}

/// Goes on with the request until the next head of a response has come on a connection of HTTP/1.
async fn read_http1_head(
    connection: &mut UpstreamConnection,
    client: &mut Client,
    (request, outgoing): (&RequestHead, &mut OutgoingRequest),
    response: &mut ResponseHead,
    timers: &mut Timers,
) -> Result<(), AttemptError> {
    let (io, input, authorized) = connection.parts();
    let mut revoked = pin!(revocation(authorized));
    let mut searched = 0;
    let length = poll_fn(|context| {
        if let Poll::Ready(reason) = revoked.as_mut().poll(context) {
            return Poll::Ready(Err(AttemptError::Revoked(reason)));
        }
        if let Poll::Ready(error) = outgoing.poll_send(context, client, BodySink::Http1(io), timers) {
            return Poll::Ready(Err(error));
        }
        loop {
            let seen = &input[..input.len().min(MAX_HEAD + 1)];
            match find_head_end(seen, &mut searched) {
                Ok(Some(length)) => return Poll::Ready(Ok(length)),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Err(AttemptError::Malformed(malformed))),
            }
            match poll_fill(context, io, input) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(outgoing.error_of_reset("closed"))),
                Poll::Ready(Ok(_)) => outgoing.note_answer(),
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(outgoing.error_of_reset(&error.to_string())));
                }
                Poll::Pending => return timers.poll_expired(context).map(Err),
            }
        }
    })
    .await?;
    let head = input.split_to(length);
    response.parse(&head, &request.method).map_err(AttemptError::Malformed)
}

/// Goes on with the request until the next head of a response has come on a stream of HTTP/2.
async fn read_http2_head(
    stream: &mut UpstreamStream,
    client: &mut Client,
    (request, outgoing): (&RequestHead, &mut OutgoingRequest),
    response: &mut ResponseHead,
    timers: &mut Timers,
) -> Result<(), AttemptError> {
    let (head, is_end) = poll_fn(|context| {
        let sent = outgoing.poll_send(context, client, BodySink::Http2(&mut stream.send), timers);
        if let Poll::Ready(error) = sent {
            return Poll::Ready(Err(error));
        }
        match stream.poll_response(context) {
            Poll::Ready(Ok(ResponseEvent::Interim(head))) => Poll::Ready(Ok((head, false))),
            Poll::Ready(Ok(ResponseEvent::Head(head, is_end))) => Poll::Ready(Ok((head, is_end))),
            Poll::Ready(Err(error)) => Poll::Ready(Err(stream_error(stream, &error))),
            Poll::Pending => timers.poll_expired(context).map(|late| {
                // Who is silent may be gone.
                stream.counted.mark_connection_over();
                Err(late)
            }),
        }
    })
    .await?;
    outgoing.note_answer();
    response.set_http2(&head.into_parts().0, is_end, &request.method).map_err(AttemptError::Malformed)
}

/// Returns why a stream has no response.
pub(super) fn stream_error(stream: &UpstreamStream, error: &h2::Error) -> AttemptError {
    if let Some(reason) = stream.counted.revocation_reason() {
        return AttemptError::Revoked(reason);
    }
    if error.is_go_away() {
        stream.counted.mark_connection_over();
    }
    if was_refused(error) {
        return AttemptError::Refused(error.to_string());
    }
    AttemptError::Reset(error.to_string())
}

/// Waits until the policy no longer allows a connection; if no policy is about it, for ever.
async fn revocation(authorized: Option<&AuthorizedConnection>) -> String {
    match authorized {
        Some(authorized) => authorized.wait_until_revoked().await.to_string(),
        None => pending().await,
    }
}

/// How a response came through to the client.
#[derive(Debug)]
pub(super) enum ResponseEnd {
    /// Whole.
    Complete,
    /// The endpoint broke it off.
    UpstreamBroke(String),
    /// It took longer than the request has.
    Late(String),
    /// The client is gone.
    ClientGone(String),
}

/// Sends the response to the client, and goes on sending the request if that is not done. Returns how it
/// ended.
pub(super) async fn relay_response(
    upstream: &mut UpstreamExchange,
    client: &mut Client,
    outgoing: &mut OutgoingRequest,
    pump: &mut BodyPump,
    timers: &mut Timers,
) -> ResponseEnd {
    let (mut io, authorized) = upstream.parts();
    let mut revoked = pin!(revocation(authorized));
    poll_fn(|context| {
        if let Poll::Ready(reason) = revoked.as_mut().poll(context) {
            return Poll::Ready(ResponseEnd::UpstreamBroke(format!("policy changed: {reason}")));
        }
        if let Poll::Ready(error) = outgoing.poll_send(context, client, io.sink(), timers) {
            return Poll::Ready(ResponseEnd::ClientGone(error.to_string()));
        }
        let (Some(mut from), Some(mut to)) = (io.source(), client.sink()) else {
            return Poll::Ready(ResponseEnd::Complete);
        };
        match pump.poll(context, &mut from, &mut to, |_| ()) {
            Poll::Ready(Ok(())) => Poll::Ready(ResponseEnd::Complete),
            Poll::Ready(Err(PumpError::Write(error))) => {
                Poll::Ready(ResponseEnd::ClientGone(error.to_string()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(ResponseEnd::UpstreamBroke(error.to_string())),
            Poll::Pending => timers.poll_expired(context).map(|late| ResponseEnd::Late(late.to_string())),
        }
    })
    .await
}

/// Waits for `opening`, as long as the request has time. Errors: a time is over.
pub(super) async fn within_time<T>(
    opening: impl Future<Output = T>,
    timers: &mut Timers,
) -> Result<T, AttemptError> {
    let expired = poll_fn(|context| timers.poll_expired(context));
    tokio::select! {
        biased;
        opened = opening => Ok(opened),
        late = expired => Err(late),
    }
}
