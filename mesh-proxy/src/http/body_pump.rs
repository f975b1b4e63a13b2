//! Moves one body from one side to the other, whatever protocol each speaks.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::h1::{BodyDecoder, BodyEncoder, BodyPiece, Fields, Malformed};
use super::h2::{fields_of, header_map_of};
use super::{READ_SIZE, read_buffers};
use crate::mux::MAX_BYTES_PER_TURN;

/// Where a body comes from.
pub(super) enum BodySource<'a> {
    /// HTTP/1: a connection, and what was read from it and not used.
    Http1(&'a mut (dyn AsyncRead + Unpin), &'a mut BytesMut),
    /// HTTP/2: one of its streams.
    Http2(&'a mut RecvStream),
}

/// Where a body goes.
pub(super) enum BodySink<'a> {
    /// HTTP/1.
    Http1(&'a mut (dyn AsyncWrite + Unpin)),
    /// HTTP/2.
    Http2(&'a mut SendStream<Bytes>),
}

/// Takes a body out of its framing.
#[derive(Debug)]
pub(super) enum BodyUnframer {
    Http1(BodyDecoder),
    Http2 { is_done: bool },
}

/// Puts a body into its framing.
#[derive(Debug)]
pub(super) enum BodyFramer {
    Http1(BodyEncoder),
    Http2(EndStreamState),
}

/// How far the end of a stream of HTTP/2 is.
#[derive(Debug)]
pub(super) enum EndStreamState {
    /// More content may come.
    Open,
    /// No content comes behind what is to be written; trailers may.
    Pending(Fields),
    /// It is written.
    Written,
}

impl BodyUnframer {
    /// Whether all of the body was read, or there is none.
    pub fn is_done(&self) -> bool {
        match self {
            Self::Http1(decoder) => decoder.is_done(),
            Self::Http2 { is_done } => *is_done,
        }
    }
}

/// Moves a body, at most one piece at a time: whoever does not take bytes holds up whoever sends them.
#[derive(Debug)]
pub(super) struct BodyPump {
    reader: BodyUnframer,
    writer: BodyFramer,
    /// What is to be written next: HTTP/1 with its framing, HTTP/2 without.
    out: BytesMut,
    /// Bytes of the content that were read.
    moved: u64,
    trailers: TrailersSummary,
}

/// What came behind a body.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TrailersSummary {
    /// Whether there were any; they are not kept.
    pub are_there: bool,
    /// What gRPC says of the outcome there.
    pub grpc_status: Option<u32>,
}

/// Why a body did not come through.
#[derive(Debug, thiserror::Error)]
pub(super) enum PumpError {
    /// Reading failed.
    #[error("reading: {0}")]
    Read(io::Error),
    /// It ended before its end.
    #[error("the body is cut off")]
    Cut,
    /// Its framing is broken.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// Writing failed.
    #[error("writing: {0}")]
    Write(io::Error),
}

impl BodyPump {
    /// Creates a pump that writes `out` first: of HTTP/1, the head.
    pub fn new(reader: BodyUnframer, writer: BodyFramer, out: BytesMut) -> Self {
        let mut pump = Self { reader, writer, out, moved: 0, trailers: TrailersSummary::default() };
        if pump.has_read_all() {
            pump.write_end(Fields::default());
        }
        pump
    }

    /// Returns the bytes of content that were read.
    pub fn content_bytes_read(&self) -> u64 {
        self.moved
    }

    /// Returns what is to be written next, for an addition.
    pub fn out_mut(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Whether all of the body was read.
    pub fn has_read_all(&self) -> bool {
        self.reader.is_done()
    }

    /// Returns what came behind the body so far.
    pub fn trailers(&self) -> TrailersSummary {
        self.trailers
    }

    /// Begins anew to another recipient: with a head, which HTTP/2 has elsewhere, and the content that was
    /// read so far.
    pub fn restart(&mut self, head: &[u8], content: &[u8]) {
        self.out.clear();
        self.out.extend_from_slice(head);
        if let BodyFramer::Http2(end) = &mut self.writer {
            *end = EndStreamState::Open;
        }
        if !content.is_empty() {
            self.write_data(content);
        }
        if self.has_read_all() {
            self.write_end(Fields::default());
        }
    }

    /// Notes that the head of a stream has said that nothing follows it, if nothing does. Returns whether.
    pub fn take_end_with_head(&mut self) -> bool {
        let BodyFramer::Http2(end) = &mut self.writer else { return false };
        let ends =
            self.out.is_empty() && matches!(end, EndStreamState::Pending(trailers) if trailers.is_empty());
        if ends {
            *end = EndStreamState::Written;
        }
        ends
    }

    /// Goes on until the whole body is written. `keep` sees each piece of the content. Errors: see
    /// [`PumpError`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        from: &mut BodySource<'_>,
        to: &mut BodySink<'_>,
        mut keep: impl FnMut(&[u8]),
    ) -> Poll<Result<(), PumpError>> {
        let mut turn = MAX_BYTES_PER_TURN;
        loop {
            if !self.out.is_empty() {
                self.add_what_came(context, from, &mut keep)?;
            }
            let written = self.out.len();
            ready!(self.poll_write_out(context, to)).map_err(PumpError::Write)?;
            if self.has_read_all() {
                return match to {
                    BodySink::Http1(to) => Pin::new(&mut **to).poll_flush(context).map_err(PumpError::Write),
                    BodySink::Http2(_) => Poll::Ready(Ok(())),
                };
            }
            turn = turn.saturating_sub(written);
            if turn == 0 {
                // The other direction and other connections come first.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            ready!(self.poll_read(context, from, &mut keep))?;
        }
    }

    /// Reads at least one piece, and all that are there, some 16 KiB at most.
    fn poll_read(
        &mut self,
        context: &mut Context<'_>,
        from: &mut BodySource<'_>,
        keep: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<(), PumpError>> {
        match from {
            BodySource::Http1(from, input) => loop {
                if !self.take_what_came(input, keep)? {
                    return Poll::Ready(Ok(()));
                }
                let read = ready!(poll_fill(context, &mut **from, input)).map_err(PumpError::Read)?;
                if read == 0
                    && let BodyUnframer::Http1(decoder) = &mut self.reader
                    && !decoder.end_of_input()
                {
                    return Poll::Ready(Err(PumpError::Cut));
                }
            },
            BodySource::Http2(stream) => {
                while self.out.len() < READ_SIZE && !self.has_read_all() {
                    match self.poll_stream(context, stream, keep) {
                        Poll::Pending if !self.out.is_empty() => break,
                        polled => ready!(polled)?,
                    }
                }
                Poll::Ready(Ok(()))
            }
        }
    }

    /// Adds what has come already to what is to be written: a head goes out with the body behind it.
    fn add_what_came(
        &mut self,
        context: &mut Context<'_>,
        from: &mut BodySource<'_>,
        keep: &mut impl FnMut(&[u8]),
    ) -> Result<(), PumpError> {
        if self.has_read_all() {
            return Ok(());
        }
        match from {
            BodySource::Http1(_, input) => self.take_what_came(input, keep).map(drop)?,
            // It waits for nothing while something is to be written.
            BodySource::Http2(_) => {
                if let Poll::Ready(read) = self.poll_read(context, from, keep) {
                    read?;
                }
            }
        }
        Ok(())
    }

    /// Takes the pieces that are there out of `input`. Returns whether there are none, so that more has to be
    /// read.
    fn take_what_came(
        &mut self,
        input: &mut BytesMut,
        keep: &mut impl FnMut(&[u8]),
    ) -> Result<bool, Malformed> {
        while self.out.len() < READ_SIZE {
            let BodyUnframer::Http1(decoder) = &mut self.reader else { return Ok(false) };
            if decoder.is_done() {
                break;
            }
            match decoder.decode(input)? {
                BodyPiece::Data(data) => self.pass_on(&data, keep),
                BodyPiece::End(trailers) => self.end(trailers),
                BodyPiece::Incomplete => return Ok(self.out.is_empty()),
            }
        }
        Ok(false)
    }

    /// Takes the next piece from a stream of HTTP/2.
    fn poll_stream(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut RecvStream,
        keep: &mut impl FnMut(&[u8]),
    ) -> Poll<Result<(), PumpError>> {
        let broken = |error| PumpError::Read(io::Error::other::<h2::Error>(error));
        match ready!(stream.poll_data(context)) {
            Some(data) => {
                let data = data.map_err(broken)?;
                // What is not written yet is bounded, so the sender may go on.
                stream.flow_control().release_capacity(data.len()).map_err(broken)?;
                self.pass_on(&data, keep);
            }
            None => {
                let trailers = ready!(stream.poll_trailers(context)).map_err(broken)?;
                self.reader = BodyUnframer::Http2 { is_done: true };
                self.end(trailers.as_ref().map(fields_of).unwrap_or_default());
            }
        }
        Poll::Ready(Ok(()))
    }

    fn pass_on(&mut self, data: &[u8], keep: &mut impl FnMut(&[u8])) {
        self.moved += data.len() as u64;
        keep(data);
        self.write_data(data);
    }

    fn end(&mut self, trailers: Fields) {
        let grpc_status = trailers.joined_value("grpc-status").and_then(|status| status.parse().ok());
        self.trailers = TrailersSummary { are_there: !trailers.is_empty(), grpc_status };
        self.write_end(trailers);
    }

    fn write_data(&mut self, data: &[u8]) {
        match &self.writer {
            BodyFramer::Http1(encoder) => encoder.encode_data(data, &mut self.out),
            BodyFramer::Http2(_) => self.out.extend_from_slice(data),
        }
    }

    fn write_end(&mut self, trailers: Fields) {
        match &mut self.writer {
            BodyFramer::Http1(encoder) => encoder.encode_end(&trailers, &mut self.out),
            // The head has said so.
            BodyFramer::Http2(EndStreamState::Written) => {}
            BodyFramer::Http2(end) => *end = EndStreamState::Pending(trailers),
        }
    }

    fn poll_write_out(&mut self, context: &mut Context<'_>, to: &mut BodySink<'_>) -> Poll<io::Result<()>> {
        match to {
            BodySink::Http1(to) => {
                while !self.out.is_empty() {
                    let written = ready!(Pin::new(&mut **to).poll_write(context, &self.out))?;
                    if written == 0 {
                        return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
                    }
                    self.out.advance(written);
                }
                Poll::Ready(Ok(()))
            }
            BodySink::Http2(stream) => self.poll_write_stream(context, stream),
        }
    }

    fn poll_write_stream(
        &mut self,
        context: &mut Context<'_>,
        stream: &mut SendStream<Bytes>,
    ) -> Poll<io::Result<()>> {
        let BodyFramer::Http2(end) = &mut self.writer else { return Poll::Ready(Ok(())) };
        while !self.out.is_empty() {
            stream.reserve_capacity(self.out.len());
            let most = match stream.capacity() {
                0 => match ready!(stream.poll_capacity(context)) {
                    Some(capacity) => capacity.map_err(io::Error::other)?,
                    None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
                },
                there => there,
            };
            let piece = self.out.split_to(most.min(self.out.len())).freeze();
            let is_last = self.out.is_empty()
                && matches!(end, EndStreamState::Pending(trailers) if trailers.is_empty());
            stream.send_data(piece, is_last).map_err(io::Error::other)?;
            if is_last {
                *end = EndStreamState::Written;
            }
        }
        if let EndStreamState::Pending(trailers) = end {
            if trailers.is_empty() {
                stream.send_data(Bytes::new(), true).map_err(io::Error::other)?;
            } else {
                stream.send_trailers(header_map_of(trailers)).map_err(io::Error::other)?;
            }
            *end = EndStreamState::Written;
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads once behind what `input` holds. Returns the number of bytes; 0 at the end.
pub(super) fn poll_fill(
    context: &mut Context<'_>,
    from: &mut (impl AsyncRead + Unpin + ?Sized),
    input: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    read_buffers::make_room(input);
    // Nothing is lost if it is dropped before it is ready.
    pin!(from.read_buf(input)).poll(context)
}
