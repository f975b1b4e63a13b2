//! An accepted connection, and who is at its other end.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use mesh_api::identity::SpiffeId;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::server::TlsStream;
use tonic::transport::server::Connected;

use crate::metrics::Metrics;

/// Who is at the other end, as far as TLS and TCP know.
#[derive(Clone, Debug)]
pub struct Peer {
    /// Address of the socket.
    pub address: SocketAddr,
    /// Identity in the certificate that was sent and verified, if one was.
    pub identity: Option<SpiffeId>,
}

impl Peer {
    /// The sender of a request.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        // Every connection brings one; without it nobody is trusted.
        let nobody = || Self { address: (IpAddr::from([0; 4]), 0).into(), identity: None };
        request.extensions().get().cloned().unwrap_or_else(nobody)
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
    stream: TlsStream<TcpStream>,
    peer: Peer,
    metrics: Arc<Metrics>,
    _slot: OwnedSemaphorePermit,
}

impl Connection {
    pub(super) fn new(
        stream: TlsStream<TcpStream>,
        address: SocketAddr,
        metrics: Arc<Metrics>,
        slot: OwnedSemaphorePermit,
    ) -> Self {
        let leaf = stream.get_ref().1.peer_certificates().and_then(|chain| chain.first());
        let identity = leaf.and_then(|leaf| SpiffeId::from_certificate_der(leaf).ok());
        metrics.connections.inc();
        Self { stream, peer: Peer { address, identity }, metrics, _slot: slot }
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
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
