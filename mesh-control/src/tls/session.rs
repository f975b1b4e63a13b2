//! A TLS session that reads in turns, and ends when its peer sends records without data.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use mesh_calm::BarrenBytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

/// Bytes of a turn: rustls would read on as long as there is something, if it is only key updates.
const TURN: usize = 32 * 1024;

/// Bytes that a session may receive beside those of its data: a handshake several times over, or some
/// thousand key updates.
const MOST_BARREN: usize = 128 * 1024;

/// The socket below, of which a turn reads so much before others get theirs.
pub(super) struct Paced {
    tcp: TcpStream,
    left: usize,
    /// Bytes that are not counted yet.
    received: usize,
}

impl Paced {
    pub fn new(tcp: TcpStream) -> Self {
        Self { tcp, left: TURN, received: 0 }
    }
}

impl AsyncRead for Paced {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.left == 0 {
            this.left = TURN;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let limit = this.left.min(buffer.remaining());
        let mut limited = ReadBuf::new(buffer.initialize_unfilled_to(limit));
        let polled = Pin::new(&mut this.tcp).poll_read(cx, &mut limited);
        let read = limited.filled().len();
        buffer.advance(read);
        this.received += read;
        this.left = if polled.is_pending() { TURN } else { this.left - read };
        polled
    }
}

impl AsyncWrite for Paced {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tcp).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tcp).poll_shutdown(cx)
    }
}

/// The session.
pub(super) struct Session {
    tls: TlsStream<Paced>,
    barren: BarrenBytes,
}

impl Session {
    pub fn new(tls: TlsStream<Paced>) -> Self {
        Self { tls, barren: BarrenBytes::new(MOST_BARREN) }
    }

    fn count(&mut self, data: usize) -> io::Result<()> {
        let (socket, _) = self.tls.get_mut();
        self.barren.count(std::mem::take(&mut socket.received), data)
    }
}

impl AsyncRead for Session {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        let polled = Pin::new(&mut this.tls).poll_read(cx, buffer);
        this.count(buffer.filled().len() - before)?;
        ready!(polled)?;
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Session {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.tls.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(cx)
    }
}
