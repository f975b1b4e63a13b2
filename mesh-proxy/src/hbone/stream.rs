//! An open stream: after the 200 its DATA frames are the raw bytes, `END_STREAM` is FIN, `RST_STREAM` is RST.

use std::cell::Cell;
use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use h2::{RecvStream, SendStream};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::mux::MAX_BYTES_PER_TURN;

/// Both directions of a stream.
pub struct Stream {
    /// To the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub receive: RecvStream,
    /// Bytes received by `AsyncRead` and not read yet. Their credit is not given back.
    pub unread: Bytes,
    _counted: Option<CountedStream>,
}

/// Counts the open streams of a connection of ours. (`h2` keeps its number to itself.)
#[derive(Clone, Default)]
pub(super) struct OpenStreamCount(Rc<Cell<usize>>);

/// An open stream, counted until it is dropped.
pub(super) struct CountedStream(Rc<Cell<usize>>);

impl Stream {
    pub(super) fn new(send: SendStream<Bytes>, receive: RecvStream, counted: Option<CountedStream>) -> Self {
        Self { send, receive, unread: Bytes::new(), _counted: counted }
    }
}

impl AsyncRead for Stream {
    /// Reads bytes and gives their credit back.
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let stream = self.get_mut();
        while stream.unread.is_empty() {
            match ready!(stream.receive.poll_data(context)) {
                Some(Ok(bytes)) => stream.unread = bytes,
                Some(Err(error)) => return Poll::Ready(Err(h2_to_io_error(&error))),
                None => return Poll::Ready(Ok(())),
            }
        }
        let bytes = stream.unread.len().min(into.remaining());
        into.put_slice(&stream.unread.split_to(bytes));
        let given_back = stream.receive.flow_control().release_capacity(bytes);
        Poll::Ready(given_back.map_err(io::Error::other))
    }
}

impl AsyncWrite for Stream {
    /// Writes at most as much as there is credit for.
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let send = &mut self.get_mut().send;
        if bytes.is_empty() {
            return Poll::Ready(Ok(0));
        }
        send.reserve_capacity(bytes.len().min(MAX_BYTES_PER_TURN));
        while send.capacity() == 0 {
            match ready!(send.poll_capacity(context)) {
                Some(Ok(_)) => {}
                Some(Err(error)) => return Poll::Ready(Err(h2_to_io_error(&error))),
                None => return Poll::Ready(Err(io::ErrorKind::BrokenPipe.into())),
            }
        }
        let bytes = &bytes[..bytes.len().min(send.capacity())];
        let sent = send.send_data(Bytes::copy_from_slice(bytes), false);
        Poll::Ready(sent.map(|()| bytes.len()).map_err(|error| h2_to_io_error(&error)))
    }

    /// Ready at once: the connection sends by itself what was written.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    /// Tells the peer that nothing more comes.
    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        let ended = self.get_mut().send.send_data(Bytes::new(), true);
        Poll::Ready(ended.map_err(|error| h2_to_io_error(&error)))
    }
}

/// Converts a stream's error to the one that a socket would have had.
pub fn h2_to_io_error(error: &h2::Error) -> io::Error {
    match error.reason() {
        Some(reason) if error.is_reset() => {
            io::Error::new(io::ErrorKind::ConnectionReset, format!("stream reset: {reason}"))
        }
        _ => io::Error::new(io::ErrorKind::ConnectionAborted, error.to_string()),
    }
}

impl OpenStreamCount {
    pub(super) fn get(&self) -> usize {
        self.0.get()
    }

    pub(super) fn count_stream(&self) -> CountedStream {
        self.0.set(self.0.get() + 1);
        CountedStream(Rc::clone(&self.0))
    }
}

impl Drop for CountedStream {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
