//! A request on its way to endpoints: what is sent, and what of it may be sent again.

use std::io;
use std::task::{Context, Poll};

use bytes::{Buf, BytesMut};
use http::Request;

use super::body_pump::{BodyFramer, BodyPump, BodySink, BodyUnframer, EndStreamState, PumpError};
use super::downstream_client::Client;
use super::h1::{BodyEncoder, BodyFraming};
use super::kept_body::KeptBody;
use super::send_request::{AttemptError, Timers};

/// The head of a request as endpoints get it.
pub(super) enum OutgoingHead {
    /// Written as HTTP/1.1.
    Http1(BytesMut),
    /// For HTTP/2.
    Http2(Box<Request<()>>),
}

/// A request on its way to endpoints.
pub(super) struct OutgoingRequest {
    pump: BodyPump,
    kept: KeptBody,
    head: OutgoingHead,
    is_sent: bool,
    /// Whether a byte of an answer has come in this attempt.
    has_answer: bool,
    /// Why the endpoint takes no more of the request; a response may come all the same.
    write_error: Option<io::Error>,
}

impl OutgoingRequest {
    /// Creates a request with that head, whose body comes from the client by `reader`.
    pub fn new(head: OutgoingHead, body: BodyFraming, reader: BodyUnframer, kept: KeptBody) -> Self {
        let writer = match &head {
            OutgoingHead::Http1(_) => BodyFramer::Http1(BodyEncoder::new(body, true)),
            OutgoingHead::Http2(_) => BodyFramer::Http2(EndStreamState::Open),
        };
        let pump = BodyPump::new(reader, writer, BytesMut::new());
        Self { pump, kept, head, is_sent: false, has_answer: false, write_error: None }
    }

    /// Whether all of it that was read can be sent again.
    pub fn is_repeatable(&self) -> bool {
        self.kept.holds_all_read(self.pump.content_bytes_read()) && !self.pump.trailers().are_there
    }

    /// Returns the whole body; none: it was not read to its end, or not kept.
    pub fn whole_content(&self) -> Option<&[u8]> {
        let content = match self.kept.content() {
            Some(content) => content,
            None if self.pump.content_bytes_read() == 0 => &[],
            None => return None,
        };
        (self.pump.has_read_all() && !self.pump.trailers().are_there).then_some(content)
    }

    /// Whether the endpoint has sent anything in this attempt.
    pub fn has_answer(&self) -> bool {
        self.has_answer
    }

    /// Notes that the endpoint has sent something.
    pub fn note_answer(&mut self) {
        self.has_answer = true;
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
        self.pump.content_bytes_read()
    }

    /// Begins an attempt, with what was read of the body before.
    pub fn begin_attempt(&mut self, timers: &mut Timers) {
        (self.is_sent, self.has_answer, self.write_error) = (false, false, None);
        let head: &[u8] = match &self.head {
            OutgoingHead::Http1(head) => head,
            OutgoingHead::Http2(_) => &[],
        };
        self.pump.restart(head, self.kept.content().unwrap_or_default());
        timers.reset_attempt();
        if self.pump.has_read_all() {
            timers.start();
        }
    }

    /// Returns what is sent first on a connection of HTTP/1.
    pub fn first_bytes(&mut self) -> &[u8] {
        self.pump.out_mut()
    }

    /// Leaves out what was sent when the connection was opened.
    pub fn skip(&mut self, sent: usize) {
        let out = self.pump.out_mut();
        out.advance(sent.min(out.len()));
    }

    /// Returns the head for a stream of HTTP/2, and whether nothing follows it, which is then taken for sent.
    /// None: the request is one of HTTP/1.
    pub fn take_stream_head(&mut self) -> Option<(Request<()>, bool)> {
        let OutgoingHead::Http2(head) = &self.head else { return None };
        Some(((**head).clone(), self.pump.take_end_with_head()))
    }

    /// Sends on. Returns why the client's side of it has failed: it is gone, or sends what is no body.
    pub fn poll_send(
        &mut self,
        context: &mut Context<'_>,
        client: &mut Client,
        mut to: BodySink<'_>,
        timers: &mut Timers,
    ) -> Poll<AttemptError> {
        if let Poll::Ready(gone) = client.poll_stream_gone(context) {
            return Poll::Ready(AttemptError::ClientGone(gone.to_string()));
        }
        if !self.is_sent && self.write_error.is_none() {
            let kept = &mut self.kept;
            match self.pump.poll(context, &mut client.body_source(), &mut to, |piece| kept.push(piece)) {
                Poll::Pending => {}
                Poll::Ready(Ok(())) => self.is_sent = true,
                Poll::Ready(Err(PumpError::Write(error))) => self.write_error = Some(error),
                Poll::Ready(Err(PumpError::Malformed(malformed))) => {
                    return Poll::Ready(AttemptError::ClientMalformed(malformed));
                }
                Poll::Ready(Err(error @ (PumpError::Read(_) | PumpError::Cut))) => {
                    return Poll::Ready(AttemptError::ClientGone(error.to_string()));
                }
            }
        }
        if self.has_read_all() {
            timers.start();
        }
        Poll::Pending
    }

    /// Returns that the endpoint ended the connection without a response.
    pub fn error_of_reset(&self, reason: &str) -> AttemptError {
        AttemptError::Reset(self.write_error.as_ref().map_or_else(|| reason.to_owned(), ToString::to_string))
    }
}
