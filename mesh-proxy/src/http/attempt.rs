//! One attempt to have a request answered by one endpoint: sends it, and waits for the head of the response.

use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, BytesMut};
use tokio::io::AsyncWriteExt;
use tokio::time::Sleep;

use super::body_pump::{BodyPump, PumpError, poll_fill};
use super::client_connection::ClientConnection;
use super::h1::{
    BodyDecoder, BodyEncoder, BodyFraming, ConnectionWord, Fields, MAX_HEAD, Malformed, RequestHead,
    ResponseHead, ResponseLine, Version, find_head_end, write_response_head,
};
use super::request_body::KeptBody;
use super::upstream_connection::{UpstreamConnection, UpstreamStream};
use crate::upstream;

/// Most interim responses to one request.
const MAX_INTERIM: usize = 100;

/// Why an attempt has no response that goes to the client.
#[derive(Debug, thiserror::Error)]
pub(super) enum AttemptError {
    /// Every endpoint is ejected after failures.
    #[error("every endpoint is ejected after failures")]
    AllEjected,
    /// The service has as many connections as its policy lets it.
    #[error("the service has its {0} connections already (maxConnections)")]
    Overflow(u32),
    /// No connection could be made, so nothing was sent.
    #[error(transparent)]
    Connect(upstream::Error),
    /// The connection ended without a response.
    #[error("the upstream connection ended: {0}")]
    Reset(String),
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

/// A request on its way to endpoints: what is sent, and what of it may be sent again.
pub(super) struct OutgoingRequest {
    pump: BodyPump,
    kept: KeptBody,
    head: BytesMut,
    is_sent: bool,
    /// Whether a byte of an answer has come in this attempt.
    has_answer: bool,
    /// Why the endpoint takes no more of the request; a response may come all the same.
    write_error: Option<io::Error>,
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

    fn start(&mut self) {
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

    /// Begins the time of another attempt with its request.
    fn restart_attempt(&mut self) {
        self.attempt.running = None;
    }
}

impl OutgoingRequest {
    /// Creates a request whose head is written so, and whose body comes from the client.
    pub fn new(head: BytesMut, body: BodyFraming, kept: KeptBody) -> Self {
        let pump = BodyPump::new(BodyDecoder::new(body), BodyEncoder::new(body, true), BytesMut::new());
        Self { pump, kept, head, is_sent: false, has_answer: false, write_error: None }
    }

    /// Whether all of it that was read can be sent again.
    pub fn is_repeatable(&self) -> bool {
        self.kept.is_whole(self.pump.moved()) && !self.pump.has_trailers()
    }

    /// Returns the whole request, framed as `body`; none: it was not read to its end, or not kept.
    pub fn whole_message(&self, body: BodyFraming) -> Option<BytesMut> {
        let content = match self.kept.content() {
            Some(content) => content,
            None if self.pump.moved() == 0 => &[],
            None => return None,
        };
        if !self.pump.has_read_all() || self.pump.has_trailers() {
            return None;
        }
        let (encoder, mut message) = (BodyEncoder::new(body, false), self.head.clone());
        if !content.is_empty() {
            encoder.encode_data(content, &mut message);
        }
        encoder.encode_end(&Fields::default(), &mut message);
        Some(message)
    }

    /// Whether the endpoint has sent anything in this attempt.
    pub fn has_answer(&self) -> bool {
        self.has_answer
    }

    /// Whether the whole of it was sent.
    pub fn is_sent(&self) -> bool {
        self.is_sent && self.write_error.is_none()
    }

    /// Whether all of the client's body was read.
    pub fn has_read_all(&self) -> bool {
        self.pump.has_read_all()
    }

    /// Returns the bytes of the body that were read.
    pub fn body_bytes(&self) -> u64 {
        self.pump.moved()
    }

    /// Begins an attempt, with what was read of the body before.
    pub fn begin_attempt(&mut self, timers: &mut Timers) {
        (self.is_sent, self.has_answer, self.write_error) = (false, false, None);
        self.pump.restart(&self.head, self.kept.content().unwrap_or_default());
        timers.restart_attempt();
        if self.pump.has_read_all() {
            timers.start();
        }
    }

    /// Returns what is sent first.
    pub fn first_bytes(&mut self) -> &[u8] {
        self.pump.out_mut()
    }

    /// Leaves out what was sent when the connection was opened.
    pub fn skip(&mut self, sent: usize) {
        let out = self.pump.out_mut();
        out.advance(sent.min(out.len()));
    }

    /// Sends on. Errors: the client is gone, or sends what is no body.
    fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        client: &mut ClientConnection,
        upstream: &mut UpstreamStream,
    ) -> Poll<Result<(), AttemptError>> {
        if self.is_sent || self.write_error.is_some() {
            return Poll::Pending;
        }
        let kept = &mut self.kept;
        let from = (&mut client.socket, &mut client.input);
        match self.pump.poll(context, from, upstream, |piece| kept.push(piece)) {
            Poll::Pending => Poll::Pending,
            Poll::Ready(Ok(())) => {
                self.is_sent = true;
                Poll::Ready(Ok(()))
            }
            Poll::Ready(Err(PumpError::Write(error))) => {
                self.write_error = Some(error);
                Poll::Pending
            }
            Poll::Ready(Err(PumpError::Malformed(malformed))) => {
                Poll::Ready(Err(AttemptError::ClientMalformed(malformed)))
            }
            Poll::Ready(Err(error @ (PumpError::Read(_) | PumpError::Cut))) => {
                Poll::Ready(Err(AttemptError::ClientGone(error.to_string())))
            }
        }
    }
}

/// Sends a request on a connection and reads the head of its response; interim responses go to the client
/// meanwhile. Errors: see [`AttemptError`].
pub(super) async fn send_and_read_head(
    connection: &mut UpstreamConnection,
    client: &mut ClientConnection,
    (request, outgoing): (&RequestHead, &mut OutgoingRequest),
    response: &mut ResponseHead,
    timers: &mut Timers,
) -> Result<(), AttemptError> {
    for _ in 0..MAX_INTERIM {
        wait_for_head(connection, client, (request, outgoing), response, timers).await?;
        if !response.is_interim() {
            return Ok(());
        }
        if request.version == Version::Http11 {
            let line = ResponseLine {
                status: response.status,
                reason: &response.reason,
                body: BodyFraming::None,
                announced_length: None,
                connection: ConnectionWord::Nothing,
            };
            let mut out = BytesMut::new();
            write_response_head(&line, &response.fields, &mut out);
            let sent = within_time(client.socket.write_all(&out), timers).await?;
            sent.map_err(|error| AttemptError::ClientGone(error.to_string()))?;
        }
    }
    Err(AttemptError::Malformed(Malformed::Invalid("interim responses do not end")))
}

/// Sends on until the head of a response has come.
async fn wait_for_head(
    connection: &mut UpstreamConnection,
    client: &mut ClientConnection,
    (request, outgoing): (&RequestHead, &mut OutgoingRequest),
    response: &mut ResponseHead,
    timers: &mut Timers,
) -> Result<(), AttemptError> {
    let (io, input, revoked) = connection.parts();
    let mut revoked = pin!(revoked);
    let mut searched = 0;
    let length = poll_fn(|context| {
        if let Poll::Ready(reason) = revoked.as_mut().poll(context) {
            return Poll::Ready(Err(AttemptError::Revoked(reason)));
        }
        if let Poll::Ready(Err(error)) = outgoing.poll_send(context, client, io) {
            return Poll::Ready(Err(error));
        }
        if outgoing.has_read_all() {
            timers.start();
        }
        loop {
            let seen = &input[..input.len().min(MAX_HEAD + 1)];
            match find_head_end(seen, &mut searched) {
                Ok(Some(length)) => return Poll::Ready(Ok(length)),
                Ok(None) => {}
                Err(malformed) => return Poll::Ready(Err(AttemptError::Malformed(malformed))),
            }
            match poll_fill(context, io, input) {
                Poll::Ready(Ok(0)) => return Poll::Ready(Err(outgoing.reset_error("closed"))),
                Poll::Ready(Ok(_)) => outgoing.has_answer = true,
                Poll::Ready(Err(error)) => return Poll::Ready(Err(outgoing.reset_error(&error.to_string()))),
                Poll::Pending => return timers.poll_expired(context).map(Err),
            }
        }
    })
    .await?;
    let head = input.split_to(length);
    response.parse(&head, &request.method).map_err(AttemptError::Malformed)
}

impl OutgoingRequest {
    fn reset_error(&self, reason: &str) -> AttemptError {
        AttemptError::Reset(self.write_error.as_ref().map_or_else(|| reason.to_owned(), ToString::to_string))
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

/// Sends the response to the client, `out` first, and goes on sending the request if that is not done.
/// Returns how it ended, and the bytes of its body.
pub(super) async fn relay_response(
    connection: &mut UpstreamConnection,
    client: &mut ClientConnection,
    outgoing: &mut OutgoingRequest,
    mut pump: BodyPump,
    timers: &mut Timers,
) -> (ResponseEnd, u64) {
    let (io, input, revoked) = connection.parts();
    let mut revoked = pin!(revoked);
    let end = poll_fn(|context| {
        if let Poll::Ready(reason) = revoked.as_mut().poll(context) {
            return Poll::Ready(ResponseEnd::UpstreamBroke(format!("policy changed: {reason}")));
        }
        if let Poll::Ready(Err(error)) = outgoing.poll_send(context, client, io) {
            return Poll::Ready(ResponseEnd::ClientGone(error.to_string()));
        }
        if outgoing.has_read_all() {
            timers.start();
        }
        match pump.poll(context, (io, input), &mut client.socket, |_| ()) {
            Poll::Ready(Ok(())) => Poll::Ready(ResponseEnd::Complete),
            Poll::Ready(Err(PumpError::Write(error))) => {
                Poll::Ready(ResponseEnd::ClientGone(error.to_string()))
            }
            Poll::Ready(Err(error)) => Poll::Ready(ResponseEnd::UpstreamBroke(error.to_string())),
            Poll::Pending => timers.poll_expired(context).map(|late| ResponseEnd::Late(late.to_string())),
        }
    })
    .await;
    (end, pump.moved())
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
