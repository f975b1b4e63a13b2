//! The accept loop: places, back-off, and handshakes that hold nobody up.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use mesh_listen::{ExhaustionBackoff, Group, is_of_one_connection};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout_at};
use tokio_rustls::TlsAcceptor;
use tokio_stream::wrappers::ReceiverStream;
use tracing::{debug, warn};

use super::session::Paced;
use super::standing::{Places, Standing};
use super::{Connection, ServerTls};
use crate::metrics::Metrics;

/// A handshake takes two round trips; whoever needs longer than this is not trying.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Whoever has not proved by then which node's agent it is will not: the API server says whose token it is
/// within that.
const PROOF_TIMEOUT: Duration = Duration::from_secs(20);
/// Finished handshakes that the server has not taken over yet.
const READY: usize = 16;

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
    let places = Places::default();
    let mut backoff = ExhaustionBackoff::default();
    loop {
        match listener.accept().await {
            Ok((socket, address)) => {
                backoff = ExhaustionBackoff::default();
                // Strangers make room for it: there always is a place.
                let Some(place) = places.strangers.enter(Group::of(address.ip())) else { continue };
                let standing = Arc::new(Standing::new(place, &places));
                let newcomer = Newcomer { socket, address, standing, metrics: Arc::clone(&metrics) };
                let (acceptor, ready) = (TlsAcceptor::from(tls.current()), ready.clone());
                tokio::spawn(async move {
                    if let Some(connection) = newcomer.shake_hands(acceptor).await {
                        // Fails only if the server has stopped.
                        let _ = ready.send(Ok(connection)).await;
                    }
                });
            }
            Err(error) if is_of_one_connection(&error) => {}
            Err(error) => {
                warn!(%error, "cannot accept; trying again in {:?}", backoff.pause());
                backoff.sleep_and_double().await;
            }
        }
    }
}

struct Newcomer {
    socket: TcpStream,
    address: SocketAddr,
    standing: Arc<Standing>,
    metrics: Arc<Metrics>,
}

impl Newcomer {
    async fn shake_hands(self, acceptor: TlsAcceptor) -> Option<Connection> {
        let Self { socket, address, standing, metrics } = self;
        let accepted = Instant::now();
        // Small answers must not wait for the peer's acknowledgement; if the kernel says no, they merely do.
        let _ = socket.set_nodelay(true);
        let shaking = timeout_at(accepted + HANDSHAKE_TIMEOUT, acceptor.accept(Paced::new(socket)));
        let shaken = tokio::select! {
            shaken = shaking => shaken,
            () = standing.evicted() => {
                metrics.strangers_ended.inc();
                return None;
            }
        };
        let reason = match shaken {
            Ok(Ok(stream)) => {
                let until = accepted + PROOF_TIMEOUT;
                return Some(Connection::new(stream, address, metrics, standing, until));
            }
            // Health checks of load balancers connect and go.
            Ok(Err(error)) if error.kind() == io::ErrorKind::UnexpectedEof => {
                debug!(peer = %address, "connection closed before the handshake");
                return None;
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("not finished after {HANDSHAKE_TIMEOUT:?}"),
        };
        metrics.handshake_failures.inc();
        warn!(peer = %address, reason, "TLS handshake refused");
        None
    }
}
