//! What carries the bytes of a connection: a socket, or a stream over mutual TLS, whichever way that is framed.
//!
//! [`Stream::relay`] joins one with a socket, by the fastest way there is for its kind. Whoever has to see the
//! bytes reads and writes them instead.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::relay::{self, Meter, SocketIs, relay_hbone, relay_mesh, relay_plain, reset_on_drop};
use super::{hbone, mux};

/// What the access log calls HBONE.
pub const HBONE: &str = "hbone";
/// What the access log calls the mesh's own protocol.
pub const MESH: &str = "mesh";
/// What the access log calls a socket's bytes as they are.
pub const PLAIN: &str = "plain";

/// Carries the bytes of one connection in both directions. Reset if it is dropped before both have ended.
///
/// It is read and written by one task at a time.
pub enum Stream {
    /// A TCP connection, which was set to be reset when it is dropped ([`reset_on_drop`]).
    Socket(TcpStream),
    /// A stream of the mesh's own protocol.
    Mesh(mux::Stream),
    /// HTTP/2 CONNECT.
    Hbone(hbone::Stream),
}

impl Stream {
    /// A socket, reset from now on when it is dropped before its end.
    pub fn of_socket(socket: TcpStream) -> Self {
        reset_on_drop(&socket);
        Self::Socket(socket)
    }

    /// How the access log calls it.
    pub fn transport(&self) -> &'static str {
        match self {
            Self::Socket(_) => PLAIN,
            Self::Mesh(_) => MESH,
            Self::Hbone(_) => HBONE,
        }
    }

    /// Bytes of [`Early::Bytes`](mux::Early) that were sent when it was opened: whoever writes begins behind
    /// them.
    pub fn sent_early(&self) -> usize {
        match self {
            Self::Mesh(stream) => stream.sent_early(),
            Self::Socket(_) | Self::Hbone(_) => 0,
        }
    }

    /// Carries bytes from and to a socket until both directions are closed. On an error both ends are reset,
    /// and when this is dropped before the end.
    pub async fn relay(
        self,
        socket: TcpStream,
        socket_is: SocketIs,
        meter: &Meter,
    ) -> Result<(), relay::Error> {
        match (self, socket_is) {
            (Self::Socket(server), SocketIs::Client) => relay_plain(socket, server, meter).await,
            (Self::Socket(client), SocketIs::Server) => relay_plain(client, socket, meter).await,
            (Self::Mesh(mut stream), _) => relay_mesh(socket, &mut stream, socket_is, meter).await,
            (Self::Hbone(mut stream), _) => relay_hbone(socket, &mut stream, socket_is, meter).await,
        }
    }

    /// Says why the stream is reset, if its protocol has a word for it.
    pub fn revoker(&self) -> Option<mux::Revoker> {
        match self {
            Self::Mesh(stream) => Some(stream.revoker()),
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
