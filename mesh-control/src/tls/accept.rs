//! The accept loop: caps, back-off, and handshakes that hold nobody up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::{Connection, ServerTls};
use crate::metrics::Metrics;

/// Connections at a time: some thousand nodes, each with one for discovery and one for certificates.
const CONNECTIONS: usize = 16 * 1024;
/// Handshakes at a time; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// A handshake takes two round trips; whoever needs longer than this is not trying.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Finished handshakes that the server has not taken over yet.
const READY: usize = 16;
/// Back-off while the kernel refuses to accept (no descriptors, no memory).
const BACKOFF: std::ops::RangeInclusive<Duration> = Duration::from_millis(5)..=Duration::from_secs(1);

/// Accepts until the stream is dropped.
pub fn incoming(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    metrics: Arc<Metrics>,
) -> ReceiverStream<io::Result<Connection>> {
    let (ready, stream) = mpsc::channel(READY);
    tokio::spawn(async move {
        let closed = ready.clone();
        tokio::select! {
            () = closed.closed() => {}
            () = accept(listener, tls, metrics, ready) => {}
        }
    });
    ReceiverStream::new(stream)
}

async fn accept(
    listener: TcpListener,
    tls: Arc<ServerTls>,
    metrics: Arc<Metrics>,
    ready: mpsc::Sender<io::Result<Connection>>,
) {
    let connections = Arc::new(Semaphore::new(CONNECTIONS));
    let handshakes = Arc::new(Semaphore::new(HANDSHAKES));
    let mut backoff = *BACKOFF.start();
    loop {
        let slots =
            tokio::join!(Arc::clone(&connections).acquire_owned(), Arc::clone(&handshakes).acquire_owned());
        // Neither semaphore is ever closed.
        let (Ok(connection), Ok(handshake)) = slots else { return };
        match listener.accept().await {
            Ok((socket, address)) => {
                backoff = *BACKOFF.start();
                let newcomer = Newcomer { socket, address, connection, metrics: Arc::clone(&metrics) };
                let (acceptor, ready) = (TlsAcceptor::from(tls.current()), ready.clone());
                tokio::spawn(async move {
                    let done = newcomer.shake_hands(acceptor).await;
                    drop(handshake);
                    if let Some(connection) = done {
                        // Fails only if the server has stopped.
                        let _ = ready.send(Ok(connection)).await;
                    }
                });
            }
            Err(error) => {
                warn!(%error, "cannot accept; trying again in {backoff:?}");
                sleep(backoff).await;
                backoff = (backoff * 2).min(*BACKOFF.end());
            }
        }
    }
}

struct Newcomer {
    socket: TcpStream,
    address: SocketAddr,
    connection: OwnedSemaphorePermit,
    metrics: Arc<Metrics>,
}

impl Newcomer {
    async fn shake_hands(self, acceptor: TlsAcceptor) -> Option<Connection> {
        let address = self.address;
        // Small answers must not wait for the peer's acknowledgement; if the kernel says no, they merely do.
        let _ = self.socket.set_nodelay(true);
        let reason = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(self.socket)).await {
            Ok(Ok(stream)) => {
                return Some(Connection::new(stream, address, self.metrics, self.connection));
            }
            // Health checks of load balancers connect and go.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                debug!(%address, "connection closed before the handshake");
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not finished after {HANDSHAKE_TIMEOUT:?}"),
        };
        self.metrics.handshake_failures.inc();
        warn!(%address, reason, "TLS handshake refused");
        None
    }
}
