//! An accepted connection, and who is at its other end.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_api::identity::SpiffeId;
use mesh_calm::{Guarded, Role, Trial};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, sleep_until};
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;
use tracing::debug;

use super::session::{Paced, Session};
use super::standing::{Crowded, Standing};
use crate::metrics::Metrics;

/// Who is at the other end, as far as TLS and TCP know.
#[derive(Clone)]
pub struct Peer {
    /// Address of the socket.
    pub address: SocketAddr,
    /// Identity in the certificate that was sent and verified, if one was.
    pub identity: Option<SpiffeId>,
    standing: Option<Arc<Standing>>,
}

/// Frames that are taken of whoever has not proved who it is: an agent's first call has some ten.
const STRANGERS_FRAMES: u32 = 300;
/// Bytes of them. A signing request has some thousand with its token; a resumed stream of discovery waits
/// with all but its window until it is known whose it is.
const STRANGERS_BYTES: u32 = 128 << 10;

impl Peer {
    /// The sender of a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        // Every connection brings one; without it nobody is trusted.
        let nobody = || Self { address: (IpAddr::from([0; 4]), 0).into(), identity: None, standing: None };
        request.extensions().get().cloned().unwrap_or_else(nobody)
    }

    /// It has shown that it is the agent of a node: from now on its connection counts as that node's.
    pub fn prove(&self, node: &Arc<str>) -> Result<(), Crowded> {
        self.standing.as_ref().map_or(Ok(()), |standing| standing.prove(node))
    }
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let ip = self.address.ip().to_canonical();
        SocketAddr::new(ip, self.address.port()).fmt(f)
    }
}

/// A connection after its handshake.
pub struct Connection {
    stream: Guarded<Session>,
    peer: Peer,
    metrics: Arc<Metrics>,
    /// What ends a stranger's connection.
    end: Option<End>,
    ended: bool,
}

type End = Pin<Box<dyn Future<Output = &'static str> + Send>>;

impl Connection {
    /// Whoever has not proved by `until` which node's agent it is has to go.
    pub(super) fn new(
        stream: TlsStream<Paced>,
        address: SocketAddr,
        metrics: Arc<Metrics>,
        standing: Arc<Standing>,
        until: Instant,
    ) -> Self {
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = leaf.and_then(|leaf| SpiffeId::from_certificate_der(leaf).ok());
        metrics.connections.inc();
        let trial =
            Trial { frames: STRANGERS_FRAMES, bytes: STRANGERS_BYTES, proven: Arc::clone(standing.proven()) };
        let end = end_of_stranger(Arc::clone(&standing), until);
        Self {
            stream: Guarded::new(Session::new(stream), Role::Server).on_trial(trial),
            peer: Peer { address, identity, standing: Some(standing) },
            metrics,
            end: Some(Box::pin(end)),
            ended: false,
        }
    }

    /// An error once the connection of a stranger is over.
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.ended {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        let Some(end) = &mut self.end else { return Ok(()) };
        let proven = self.peer.standing.as_ref().is_none_or(|standing| standing.is_proven());
        if proven {
            self.end = None;
        } else if let Poll::Ready(reason) = end.as_mut().poll(cx) {
            debug!(peer = %self.peer, reason, "connection ended");
            self.metrics.strangers_ended.inc();
            self.ended = true;
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

async fn end_of_stranger(standing: Arc<Standing>, until: Instant) -> &'static str {
    tokio::select! {
        () = standing.evicted() => "a newcomer has its place",
        () = sleep_until(until) => "it has not said who it is",
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.metrics.connections.dec();
    }
}

impl Connected for Connection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
