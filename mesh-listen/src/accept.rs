//! Accepting: with the peer's ends, and with a pause when the kernel can't.

use std::io;

use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tracing::warn;

use crate::{ExhaustionBackoff, Peer, is_of_one_connection};

/// Half of what the kernel keeps of a connection in each direction: it doubles what it is told (`SO_SNDBUF`,
/// socket(7)).
const BUFFER: usize = 64 << 10;

/// A socket that connections come to.
pub trait Accept: Send + 'static {
    /// A connection.
    type Stream: AsyncRead + AsyncWrite + Send + Unpin + 'static;

    /// The next connection and its ends. Errors: the kernel can't accept now, or the peer is gone already.
    fn accept(&self) -> impl Future<Output = io::Result<(Self::Stream, Peer)>> + Send;

    /// Bounds what the kernel keeps for each connection that comes from now on.
    fn bound_buffers(&self) {}
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn accept(&self) -> io::Result<(TcpStream, Peer)> {
        let (stream, from) = Self::accept(self).await?;
        let to = stream.local_addr()?;
        Ok((stream, Peer::Network { from, to }))
    }

    /// Connections have what their listener has; by themselves they would grow to megabytes.
    fn bound_buffers(&self) {
        let socket = SockRef::from(self);
        // Refused, they are as the system has them.
        let _ = socket.set_recv_buffer_size(BUFFER).and_then(|()| socket.set_send_buffer_size(BUFFER));
    }
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn accept(&self) -> io::Result<(UnixStream, Peer)> {
        let (stream, _unnamed) = Self::accept(self).await?;
        let uid = stream.peer_cred()?.uid();
        Ok((stream, Peer::User { uid }))
    }
}

/// The next connection, however long it takes.
pub(crate) async fn next<L: Accept>(listener: &L) -> (L::Stream, Peer) {
    let mut backoff = ExhaustionBackoff::default();
    loop {
        match listener.accept().await {
            Ok(accepted) => return accepted,
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept; trying again in {:?}", backoff.pause());
                backoff.sleep_and_double().await;
            }
        }
    }
}
