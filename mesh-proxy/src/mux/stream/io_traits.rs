//! `AsyncRead` and `AsyncWrite` for streams that no application's socket is attached to. Only one task at a
//! time may use a stream: both directions wake the same task.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use bytes::{Buf, BytesMut};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use super::super::frame::ControlFrame;
use super::{Stream, StreamError};

impl From<&StreamError> for io::Error {
    fn from(broken: &StreamError) -> Self {
        let kind = match broken {
            StreamError::Socket(kind) => *kind,
            StreamError::Reset(_) => io::ErrorKind::ConnectionReset,
            StreamError::Lost(_) | StreamError::Gone(_) => io::ErrorKind::ConnectionAborted,
        };
        Self::new(kind, broken.to_string())
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let broken = self.poll_stream_error(context);
        let state = &self.state;
        let mut backlog = state.backlog.borrow_mut();
        if !backlog.is_empty() && state.announced.get() {
            let bytes = backlog.len().min(into.remaining());
            into.put_slice(&backlog[..bytes]);
            backlog.advance(bytes);
            if backlog.is_empty() {
                // A new allocation later costs less than memory that an idle stream holds.
                *backlog = BytesMut::new();
            }
            state.give_back(bytes, &self.shared);
            return Poll::Ready(Ok(()));
        }
        // A stream that has ended is not broken by the end of its connection.
        if backlog.is_empty() && state.peer_ended.get() {
            return Poll::Ready(Ok(()));
        }
        broken.map_or(Poll::Pending, |broken| Poll::Ready(Err((&broken).into())))
    }
}

impl AsyncWrite for Stream {
    /// Writes at most as much as there is credit for.
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if let Some(broken) = self.poll_stream_error(context) {
            return Poll::Ready(Err((&broken).into()));
        }
        if self.sent_end {
            return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into()));
        }
        let state = &self.state;
        let credit = state.credit.get();
        let bytes = &bytes[..bytes.len().min(credit)];
        if bytes.is_empty() {
            return if credit == 0 { Poll::Pending } else { Poll::Ready(Ok(0)) };
        }
        let sent = ready!(self.shared.poll_queue_data(state, bytes));
        state.credit.set(credit - sent);
        Poll::Ready(Ok(sent))
    }

    /// Ready at once: the connection sends by itself what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Sends END: nothing more comes.
    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.sent_end {
            self.sent_end = true;
            self.shared.queue_frame(&ControlFrame::End(self.state.id));
        }
        Poll::Ready(Ok(()))
    }
}
