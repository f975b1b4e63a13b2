//! Moves one body from one side to the other.

use std::io;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};

use super::READ_SIZE;
use super::h1::{BodyDecoder, BodyEncoder, BodyPiece, Fields, Malformed};
use crate::mux::MAX_BYTES_PER_TURN;

/// Moves a body, at most one piece at a time: whoever does not take bytes holds up whoever sends them.
#[derive(Debug)]
pub(super) struct BodyPump {
    decoder: BodyDecoder,
    encoder: BodyEncoder,
    /// What is to be written next.
    out: BytesMut,
    /// Bytes of the content that were read.
    moved: u64,
    /// Whether trailers came.
    has_trailers: bool,
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
    /// Creates a pump that writes `out` first: the head.
    pub fn new(decoder: BodyDecoder, encoder: BodyEncoder, out: BytesMut) -> Self {
        Self { decoder, encoder, out, moved: 0, has_trailers: false }
    }

    /// Returns the bytes of content that were read.
    pub fn moved(&self) -> u64 {
        self.moved
    }

    /// Returns what is to be written next, for an addition.
    pub fn out_mut(&mut self) -> &mut BytesMut {
        &mut self.out
    }

    /// Whether all of the body was read.
    pub fn has_read_all(&self) -> bool {
        self.decoder.is_done()
    }

    /// Whether trailers came, which are not kept.
    pub fn has_trailers(&self) -> bool {
        self.has_trailers
    }

    /// Begins anew to another recipient: with a head, and the content that was read so far.
    pub fn restart(&mut self, head: &[u8], content: &[u8]) {
        self.out.clear();
        self.out.extend_from_slice(head);
        if !content.is_empty() {
            self.encoder.encode_data(content, &mut self.out);
        }
        if self.has_read_all() {
            self.encoder.encode_end(&Fields::default(), &mut self.out);
        }
    }

    /// Goes on until the whole body is written. `input` holds what was read and not used; `keep` sees each
    /// piece of the content. Errors: see [`PumpError`].
    pub fn poll(
        &mut self,
        context: &mut Context<'_>,
        (from, input): (&mut (impl AsyncRead + Unpin), &mut BytesMut),
        to: &mut (impl AsyncWrite + Unpin),
        mut keep: impl FnMut(&[u8]),
    ) -> Poll<Result<(), PumpError>> {
        let mut turn = MAX_BYTES_PER_TURN;
        loop {
            let written = self.out.len();
            ready!(self.poll_write_out(context, to)).map_err(PumpError::Write)?;
            if self.decoder.is_done() {
                return Pin::new(&mut *to).poll_flush(context).map_err(PumpError::Write);
            }
            turn = turn.saturating_sub(written);
            if turn == 0 {
                // The other direction and other connections come first.
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            if self.encode_what_came(input, &mut keep)? {
                let read = ready!(poll_fill(context, from, input)).map_err(PumpError::Read)?;
                if read == 0 && !self.decoder.end_of_input() {
                    return Poll::Ready(Err(PumpError::Cut));
                }
            }
        }
    }

    /// Encodes the pieces that are there, some 16 KiB at most. Returns whether there are none, so that more
    /// has to be read.
    fn encode_what_came(
        &mut self,
        input: &mut BytesMut,
        keep: &mut impl FnMut(&[u8]),
    ) -> Result<bool, Malformed> {
        while self.out.len() < READ_SIZE && !self.decoder.is_done() {
            match self.decoder.decode(input)? {
                BodyPiece::Data(data) => {
                    self.moved += data.len() as u64;
                    keep(&data);
                    self.encoder.encode_data(&data, &mut self.out);
                }
                BodyPiece::End(trailers) => {
                    self.has_trailers = !trailers.is_empty();
                    self.encoder.encode_end(&trailers, &mut self.out);
                }
                BodyPiece::Incomplete => return Ok(self.out.is_empty()),
            }
        }
        Ok(false)
    }

    fn poll_write_out(
        &mut self,
        context: &mut Context<'_>,
        to: &mut (impl AsyncWrite + Unpin),
    ) -> Poll<io::Result<()>> {
        while !self.out.is_empty() {
            let written = ready!(Pin::new(&mut *to).poll_write(context, &self.out))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.out.advance(written);
        }
        Poll::Ready(Ok(()))
    }
}

/// Reads once behind what `input` holds. Returns the number of bytes; 0 at the end.
pub(super) fn poll_fill(
    context: &mut Context<'_>,
    from: &mut (impl AsyncRead + Unpin),
    input: &mut BytesMut,
) -> Poll<io::Result<usize>> {
    input.reserve(READ_SIZE);
    // Nothing is lost if it is dropped before it is ready.
    pin!(from.read_buf(input)).poll(context)
}
