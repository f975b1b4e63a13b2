//! Step 4 of a connection (see [the crate page](crate)): opens the way to one endpoint, from the pod's own
//! network namespace.

use std::cell::Cell;
use std::io;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::identity::SpiffeId;
use mesh_api::plan::{Endpoint, TcpKeepalive, TunnelProtocol, Workload};
use mesh_common::HBONE_PORT;
use tokio::net::{TcpSocket, TcpStream};

use super::connection_address_types::{ClientAddress, UpstreamAddress};
use super::inbound::{self, AuthorizedApplicationSocket, InboundRequest};
use super::local_pod_identity::LocalPod;
use super::stream::{self, Stream};
use super::tls;
use super::tunnel::{EarlyData, OpenError, StreamRequest, Tunnel};
use super::tunnel_pool::{ClosedFlag, TunnelKey};
use super::worker::Worker;
use crate::certs::{VerifiedPeer, WorkloadCertificate};
use crate::telemetry::ResponseFlag;

/// Most tries to open a stream whose connection breaks.
const TRIES: usize = 4;

/// An open way to an endpoint.
pub enum Upstream {
    /// Plain TCP, or a stream over mutual TLS.
    Stream(Stream),
    /// The application of a pod on this node, whose policy has allowed the connection.
    Local(AuthorizedApplicationSocket),
}

impl Upstream {
    /// Returns how many bytes of [`EarlyData::Bytes`] were sent when it was opened.
    pub fn early_bytes_sent(&self) -> usize {
        match self {
            Self::Stream(stream) => stream.early_bytes_sent(),
            Self::Local(_) => 0,
        }
    }
}

/// Why an endpoint could not be reached.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// The connection could not be made.
    #[error("connecting: {0}")]
    Connect(#[from] io::Error),
    /// The endpoint did not answer in time.
    #[error("no answer within {} ms", .0.as_millis())]
    Timeout(Duration),
    /// There is no valid certificate to connect with.
    #[error("no valid certificate for {0} yet")]
    NoCertificate(SpiffeId),
    /// Mutual TLS failed.
    #[error(transparent)]
    Tls(#[from] tls::HandshakeError),
    /// The endpoint proved another identity.
    #[error("the endpoint is {found} and not {expected}")]
    WrongPeer {
        /// The identity that it proved, or why it proved none.
        found: String,
        /// The identity that it should have.
        expected: SpiffeId,
    },
    /// The endpoint refused the stream.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The destination's policy denies it (both pods are on this node).
    #[error("{0}")]
    Denied(String),
}

impl UpstreamError {
    /// Whether no other endpoint needs to be tried: a policy denies it, or there is no certificate to connect
    /// with.
    pub fn stops_retries(&self) -> bool {
        match self {
            Self::Denied(_) | Self::NoCertificate(_) => true,
            Self::Open(error) => error.is_denied_by_policy(),
            _ => false,
        }
    }

    /// Whether the endpoint said that nothing listens there, or its node that it can't reach the application.
    pub fn is_connection_refused(&self) -> bool {
        match self {
            Self::Connect(error) => error.kind() == io::ErrorKind::ConnectionRefused,
            Self::Open(error) => error.is_application_unreachable(),
            _ => false,
        }
    }

    /// Whether the connection broke, which says nothing of the endpoint.
    fn is_loss(&self) -> bool {
        match self {
            Self::Open(error) => error.is_connection_failure(),
            Self::Tls(error) => matches!(error, tls::HandshakeError::Lost(_)),
            _ => false,
        }
    }

    /// Returns the transport as the access log names it, if there was a tunnel that a peer refused a stream
    /// on.
    pub fn transport_of_refused_stream(&self) -> Option<&'static str> {
        match self {
            Self::Open(error) => Some(error.transport_name()),
            _ => None,
        }
    }

    /// Returns Istio's response flag for the error (docs/wire.md, Response flags).
    pub fn response_flag(&self) -> ResponseFlag {
        match self {
            Self::Denied(_) => ResponseFlag::Denied,
            Self::Open(error) if error.is_denied_by_policy() => ResponseFlag::Denied,
            Self::Tls(_) => ResponseFlag::TlsFailure,
            Self::WrongPeer { .. } | Self::NoCertificate(_) => ResponseFlag::IdentityError,
            Self::Connect(_) | Self::Timeout(_) | Self::Open(_) => ResponseFlag::ConnectFailed,
        }
    }
}

/// The client's end of a connection, as opening needs it.
pub struct ClientContext<'a> {
    /// The worker that the connection lives on.
    pub worker: &'a Rc<Worker>,
    /// The pod that connects.
    pub pod: &'a Arc<LocalPod>,
    /// The pod's workload.
    pub workload: &'a Workload,
    /// The application's own address and port.
    pub client: ClientAddress,
    /// Host name of the service that it addressed, if it did.
    pub service: Option<&'a str>,
    /// Bytes that the application has sent already.
    pub early: EarlyData<'a>,
    /// Whether an endpoint may have got those bytes: then no other may get them.
    pub exposed: Cell<bool>,
}

/// How to connect.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Timeout of everything up to the endpoint's answer.
    pub timeout: Duration,
    /// TCP keep-alive of plain connections; none: they have none.
    pub keepalive: Option<TcpKeepalive>,
}

/// Returns the pod of this node that `endpoint` is, if connections to it are not encrypted.
fn near(origin: &ClientContext<'_>, endpoint: &Endpoint) -> Option<Arc<LocalPod>> {
    let destination = origin.worker.local_pod_by_address(endpoint.address.ip())?;
    (!origin.worker.surroundings.encrypts_same_node(origin.pod, &destination)).then_some(destination)
}

/// Returns the transport for the access log before the way is open: `local`, `plain` or `hbone`. Only the
/// handshake tells a tunnel's framing; until then it is named after its port.
pub fn expected_transport_name(origin: &ClientContext<'_>, endpoint: &Endpoint) -> &'static str {
    match endpoint.tunnel_protocol {
        _ if near(origin, endpoint).is_some() => stream::LOCAL_TRANSPORT,
        TunnelProtocol::Plain => stream::PLAIN_TRANSPORT,
        TunnelProtocol::Hbone => stream::HBONE_TRANSPORT,
    }
}

/// Opens the way to `endpoint`. Errors: see [`UpstreamError`].
pub async fn connect_to_endpoint(
    origin: &ClientContext<'_>,
    endpoint: &Endpoint,
    options: ConnectOptions,
) -> Result<Upstream, UpstreamError> {
    let opening = async {
        if let Some(destination) = near(origin, endpoint) {
            return local(origin, &destination, endpoint).await;
        }
        match endpoint.tunnel_protocol {
            TunnelProtocol::Plain => {
                let address = UpstreamAddress::new(endpoint.address);
                let socket = connect_plain(origin.worker, origin.pod, address, options.keepalive).await?;
                Ok(Upstream::Stream(Stream::from_socket(socket)))
            }
            TunnelProtocol::Hbone => Ok(Upstream::Stream(tunnel(origin, endpoint).await?)),
        }
    };
    tokio::time::timeout(options.timeout, opening)
        .await
        .map_err(|_| UpstreamError::Timeout(options.timeout))?
}

/// Connects in the pod's network namespace, so that the source address and network policies hold. Errors:
/// those of `connect(2)`, or there is no socket in the pod.
pub async fn connect_plain(
    worker: &Worker,
    pod: &LocalPod,
    address: UpstreamAddress,
    keepalive: Option<TcpKeepalive>,
) -> io::Result<TcpStream> {
    let socket = worker.surroundings.outbound_socket(pod, address.ip()).await?;
    socket.set_tcp_nodelay(true)?;
    if let Some(keepalive) = keepalive {
        let mut settings = socket2::TcpKeepalive::new();
        settings = keepalive.time.map_or(settings.clone(), |time| settings.with_time(time));
        settings = keepalive.interval.map_or(settings.clone(), |interval| settings.with_interval(interval));
        settings = keepalive.probes.map_or(settings.clone(), |probes| settings.with_retries(probes.get()));
        socket.set_tcp_keepalive(&settings)?;
    }
    TcpSocket::from_std_stream(socket.into()).connect(address.address()).await
}

/// Connects to a pod of this node: asks its policy here, and encrypts nothing, since nothing leaves the agent
/// between the two sockets.
async fn local(
    origin: &ClientContext<'_>,
    destination: &LocalPod,
    endpoint: &Endpoint,
) -> Result<Upstream, UpstreamError> {
    let arrival = InboundRequest {
        identity: Some(origin.pod.identity.clone()),
        client: origin.client,
        to: UpstreamAddress::new(endpoint.address),
        by_service: origin.service.is_some(),
    };
    match inbound::authorize_and_connect(origin.worker, destination, &endpoint.workload, &arrival).await {
        Ok(delivered) => Ok(Upstream::Local(delivered)),
        Err(inbound::Error::Denied(reason)) => Err(UpstreamError::Denied(reason)),
        Err(error) => Err(UpstreamError::Connect(io::Error::new(error.io_kind_without_mesh(), error))),
    }
}

/// Opens a stream over mutual TLS. If its connection breaks it is opened again, unless the application may
/// have got some of its bytes: where the other node's proxy was stopped, replaced or killed, its next one
/// takes a new connection.
async fn tunnel(origin: &ClientContext<'_>, endpoint: &Endpoint) -> Result<Stream, UpstreamError> {
    for _ in 1..TRIES {
        match tunnel_once(origin, endpoint).await {
            Err(error) if error.is_loss() && !origin.exposed.get() => {
                tracing::debug!(endpoint = %endpoint, %error, "opening a stream again");
            }
            result => return result,
        }
    }
    tunnel_once(origin, endpoint).await
}

async fn tunnel_once(origin: &ClientContext<'_>, endpoint: &Endpoint) -> Result<Stream, UpstreamError> {
    let identity = origin
        .worker
        .wait_for_certificate(&origin.pod.identity)
        .await
        .ok_or_else(|| UpstreamError::NoCertificate(origin.pod.identity.clone()))?;
    let destination = SocketAddr::new(endpoint.address.ip(), HBONE_PORT);
    let key = TunnelKey {
        source: Arc::clone(&origin.pod.uid),
        destination,
        workload: Arc::clone(&endpoint.workload.uid),
    };
    let make = |closed| start(origin, endpoint, destination, &identity, closed);
    let pooled = origin.worker.pool.get_or_open(key, &identity, &endpoint.expected_identities, make).await?;
    let result = open_on(&pooled.connection, origin, endpoint).await;
    if matches!(&result, Err(UpstreamError::Open(error)) if error.is_connection_failure()) {
        pooled.retire();
    }
    result
}

async fn open_on(
    connection: &Tunnel,
    origin: &ClientContext<'_>,
    endpoint: &Endpoint,
) -> Result<Stream, UpstreamError> {
    let opening = StreamRequest {
        client: origin.client.address(),
        destination: endpoint.address,
        service: origin.service,
        workload: Some(origin.workload),
        early: origin.early,
        exposed: &origin.exposed,
    };
    Ok(connection.open_stream(&opening).await?)
}

/// Makes a new connection, in the framing that ALPN chooses.
async fn start(
    origin: &ClientContext<'_>,
    endpoint: &Endpoint,
    destination: SocketAddr,
    identity: &WorkloadCertificate,
    closed: ClosedFlag,
) -> Result<(Tunnel, VerifiedPeer), UpstreamError> {
    let (tls, peer) = connect(origin, endpoint, destination, identity).await?;
    let budget = origin.worker.receive_budget(origin.pod);
    let connection = Tunnel::start(tls, &budget, move || closed.mark_closed()).await?;
    Ok((connection, peer))
}

async fn connect(
    origin: &ClientContext<'_>,
    endpoint: &Endpoint,
    destination: SocketAddr,
    identity: &WorkloadCertificate,
) -> Result<(tls::TlsStream<rustls::client::UnbufferedClientConnection>, VerifiedPeer), UpstreamError> {
    let tcp =
        connect_plain(origin.worker, origin.pod, UpstreamAddress::new(destination), Some(HBONE_KEEPALIVE))
            .await?;
    let started = Instant::now();
    let tls = tls::client_handshake_unverified_name(tcp, Arc::clone(&identity.client)).await?;
    origin.worker.metrics.observe_handshake_time(started.elapsed());
    let expected = || endpoint.workload.identity.clone();
    let peer =
        VerifiedPeer::new(&origin.worker.shared.certificates, tls.peer_certificates().unwrap_or_default())
            .map_err(|error| UpstreamError::WrongPeer { found: error.to_string(), expected: expected() })?;
    if endpoint.expected_identities.contains(peer.id()) {
        Ok((tls, peer))
    } else {
        Err(UpstreamError::WrongPeer { found: peer.id().to_string(), expected: expected() })
    }
}

/// TCP keep-alive of connections between nodes (docs/wire.md, Keep-alive). Their pings notice a dead peer
/// sooner; this keeps NATs on the way from forgetting them.
const HBONE_KEEPALIVE: TcpKeepalive = TcpKeepalive {
    probes: NonZeroU32::new(9),
    time: Some(Duration::from_mins(3)),
    interval: Some(Duration::from_mins(3)),
};

#[cfg(test)]
mod tests;
