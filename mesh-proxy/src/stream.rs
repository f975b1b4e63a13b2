//! Step 6 of a connection (see [the crate page](crate)): one type for what carries its bytes, a socket or a
//! stream over mutual TLS in either framing.
//!
//! [`Stream::relay`] joins it with a socket, by the fastest way there is for its kind. Whoever has to see the
//! bytes reads and writes it instead: it is `AsyncRead` and `AsyncWrite`.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::relay::{self, ByteMeter, SocketSide, relay_hbone, relay_mux, relay_sockets, reset_on_drop};
use super::{hbone, mux};

/// Transport in the access log: HBONE.
pub const HBONE_TRANSPORT: &str = "hbone";
/// Transport in the access log: the mesh's own framing.
pub const MESH_TRANSPORT: &str = "mesh";
/// Transport in the access log: the socket of an application on the same node.
pub const LOCAL_TRANSPORT: &str = "local";
/// Transport in the access log: plain TCP.
pub const PLAIN_TRANSPORT: &str = "plain";

/// Carries the bytes of one connection in both directions. Dropping it before both have ended resets it.
///
/// Only one task at a time may read and write it.
pub enum Stream {
    /// A TCP connection, set to be reset when it is dropped ([`reset_on_drop`]).
    Socket(TcpStream),
    /// A stream of the mesh's own protocol.
    Mesh(mux::Stream),
    /// An HTTP/2 CONNECT stream.
    Hbone(hbone::Stream),
}

impl Stream {
    /// Wraps a socket, and sets it to be reset when it is dropped before its end.
    pub fn from_socket(socket: TcpStream) -> Self {
        reset_on_drop(&socket);
        Self::Socket(socket)
    }

    /// Returns the transport as the access log names it.
    pub fn transport_name(&self) -> &'static str {
        match self {
            Self::Socket(_) => PLAIN_TRANSPORT,
            Self::Mesh(_) => MESH_TRANSPORT,
            Self::Hbone(_) => HBONE_TRANSPORT,
        }
    }

    /// Returns how many bytes of [`EarlyData::Bytes`](mux::EarlyData) were sent when the stream was opened:
    /// writing starts behind them.
    pub fn early_bytes_sent(&self) -> usize {
        match self {
            Self::Mesh(stream) => stream.early_bytes_sent(),
            Self::Socket(_) | Self::Hbone(_) => 0,
        }
    }

    /// Relays between the stream and a socket until both directions are closed. On an error, or if the future
    /// is dropped before the end, both ends are reset. Errors: which end broke.
    pub async fn relay(
        self,
        socket: TcpStream,
        socket_side: SocketSide,
        meter: &ByteMeter,
    ) -> Result<(), relay::Error> {
        match (self, socket_side) {
            (Self::Socket(server), SocketSide::Client) => relay_sockets(socket, server, meter).await,
            (Self::Socket(client), SocketSide::Server) => relay_sockets(client, socket, meter).await,
            (Self::Mesh(mut stream), _) => relay_mux(socket, &mut stream, socket_side, meter).await,
            (Self::Hbone(mut stream), _) => relay_hbone(socket, &mut stream, socket_side, meter).await,
        }
    }

    /// Returns what tells the peer why the stream is reset, if its protocol has a word for it.
    pub fn reset_reason_setter(&self) -> Option<mux::ResetReasonSetter> {
        match self {
            Self::Mesh(stream) => Some(stream.reset_reason_setter()),
            Self::Socket(_) | Self::Hbone(_) => None,
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(socket) => Pin::new(socket).poll_read(context, into),
            Self::Mesh(stream) => Pin::new(stream).poll_read(context, into),
            Self::Hbone(stream) => Pin::new(stream).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Socket(socket) => Pin::new(socket).poll_write(context, bytes),
            Self::Mesh(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Hbone(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(socket) => Pin::new(socket).poll_flush(context),
            Self::Mesh(stream) => Pin::new(stream).poll_flush(context),
            Self::Hbone(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Socket(socket) => Pin::new(socket).poll_shutdown(context),
            Self::Mesh(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Hbone(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}

#[cfg(test)]
mod tests;
