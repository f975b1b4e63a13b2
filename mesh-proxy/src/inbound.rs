//! Step 5 of a connection (see [the crate page](crate)): it arrives at an enrolled pod. Who is the client,
//! does the policy allow it, then deliver it to the application.

use std::fmt::Display;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::identity::SpiffeId;
use mesh_api::plan::Workload;
use mesh_calm::FLOOD;
use mesh_common::is_mesh_port;
use mesh_listen::{Gate, Group, Standing};
use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;

use super::authorized_connections::{AccessRequest, AuthorizedConnection};
use super::connect_to_application::connect_to_application;
use super::connection_address_types::{ClientAddress, UpstreamAddress};
use super::handshake_limit::{HandshakePlace, PodHandshakeLimit};
use super::hbone::{self, headers};
use super::local_pod_identity::LocalPod;
use super::mux::{self, ResetReasonSetter};
use super::peer_connection_shares::{SessionLimit, SessionPlace, SessionStream};
use super::relay::{ByteMeter, SocketSide, reset_on_drop};
use super::stream::Stream;
use super::tls::{self, TlsStream};
use super::tunnel::{self, Refusal};
use super::worker::{DrainSignal, Worker};
use super::worker_and_pod_connection_limits::{ConnectionSlot, PodConnectionLimits};
use crate::certs::VerifiedPeer;
use crate::telemetry::{ConnectionDetails, ConnectionOutcome, ConnectionRecord, Reporter, ResponseFlag};

/// Why a connection was not taken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The control plane has not told of the pod yet.
    #[error("the control plane has not told of this pod yet")]
    UnknownPod,
    /// The policy denies it.
    #[error("{0}")]
    Denied(String),
    /// It asks for one of the mesh's own ports, which would be a loop.
    #[error("port {0} is the mesh's own")]
    MeshPort(u16),
    /// The request for a stream is not one, or can't be parsed.
    #[error("bad request: {0}")]
    BadRequest(#[from] headers::InvalidConnectTarget),
    /// It asks for an address that is not the pod's.
    #[error("{asked} is not an address of {pod}")]
    NotThisPod {
        /// The address that was asked for.
        asked: IpAddr,
        /// The pod that the request came to.
        pod: String,
    },
    /// The pod has as many connections as it may, or a newcomer has the place.
    #[error("the pod has its connections already")]
    Crowded,
    /// The application could not be reached.
    #[error(transparent)]
    Deliver(#[from] super::connect_to_application::Error),
}

/// A socket that is connected to the application of a pod of this node, and the policy's permit for it.
/// Nothing is relayed yet.
pub struct AuthorizedApplicationSocket {
    socket: TcpStream,
    authorized: AuthorizedConnection,
}

/// A connection that arrives: from whom, and to which port of which pod.
#[derive(Clone, Debug)]
pub struct InboundRequest {
    /// The client's identity, if mutual TLS (or this very node) proved it.
    pub identity: Option<SpiffeId>,
    /// The client's address.
    pub client: ClientAddress,
    /// The pod's address and port.
    pub to: UpstreamAddress,
    /// Whether the client asked for a service, not for this address.
    pub by_service: bool,
}

impl InboundRequest {
    /// Returns the same between the other addresses of both ends, IPv4 for IPv6 or the reverse; none if one
    /// end has no such address.
    fn in_other_family(&self, worker: &Worker, pod: &LocalPod) -> Option<Self> {
        let is_other = |address: &&IpAddr| address.is_ipv4() != self.to.ip().is_ipv4();
        let to = pod.addresses.iter().find(is_other)?;
        let source = worker.snapshot().workload_by_address(self.client.ip())?;
        let client = source.addresses.iter().find(is_other)?;
        Some(Self {
            client: ClientAddress::new(SocketAddr::new(*client, self.client.address().port())),
            to: UpstreamAddress::new(SocketAddr::new(*to, self.to.port())),
            ..self.clone()
        })
    }
}

/// Asks the policy and connects to the application: the only way to it, whichever listener the connection
/// came through. Errors: see [`Error`].
///
/// Behind a service of both families a server may listen on one alone. Without a mesh its clients would be
/// refused on the other family and take this one; here they are connected already, so both are tried. Both
/// are also tried when `::1`, from which IPv6 is delivered, has no port left for the server's: IPv4 has more
/// addresses.
pub async fn authorize_and_connect(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    workload: &Arc<Workload>,
    arrival: &InboundRequest,
) -> Result<AuthorizedApplicationSocket, Error> {
    let refused = match authorize_and_connect_to(worker, pod, workload, arrival).await {
        Err(error)
            if arrival.by_service && error.io_kind_without_mesh() == io::ErrorKind::ConnectionRefused =>
        {
            error
        }
        Err(error) if error.io_kind_without_mesh() == io::ErrorKind::AddrNotAvailable => error,
        taken => return taken,
    };
    match arrival.in_other_family(worker, pod) {
        Some(other) => authorize_and_connect_to(worker, pod, workload, &other).await,
        None => Err(refused),
    }
}

async fn authorize_and_connect_to(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    workload: &Arc<Workload>,
    arrival: &InboundRequest,
) -> Result<AuthorizedApplicationSocket, Error> {
    if is_mesh_port(arrival.to.port()) {
        return Err(Error::MeshPort(arrival.to.port()));
    }
    let request = AccessRequest {
        identity: arrival.identity.clone(),
        source: arrival.client.ip(),
        destination: arrival.to.address(),
        workload: Arc::clone(workload),
    };
    let (authorized, notes) =
        worker.authorizations.authorize(request, || worker.snapshot()).map_err(|decision| {
            let reason = decision.verdict.to_string();
            let from = arrival.identity.as_ref().map_or_else(|| "plaintext".to_owned(), ToString::to_string);
            tracing::warn!(%from, client = %arrival.client, %pod, port = arrival.to.port(), "{reason}");
            Error::Denied(reason)
        })?;
    for policy in notes.audited {
        tracing::info!(%policy, client = %arrival.client, %pod, port = arrival.to.port(), "audited");
    }
    for dry_run in notes.dry_run {
        let (policy, effect) = (dry_run.policy, dry_run.would);
        tracing::info!(%policy, client = %arrival.client, %pod, port = arrival.to.port(), "dry run: would {effect}");
    }
    let socket = connect_to_application(worker, pod, arrival.client, arrival.to, authorized.permit()).await?;
    Ok(AuthorizedApplicationSocket { socket, authorized })
}

impl AuthorizedApplicationSocket {
    /// Puts a socket and the policy's permit for it together.
    pub fn from_parts(socket: TcpStream, authorized: AuthorizedConnection) -> Self {
        Self { socket, authorized }
    }

    /// Returns the socket, and the policy's permit, which whoever moves bytes has to watch.
    pub fn into_parts(self) -> (TcpStream, AuthorizedConnection) {
        (self.socket, self.authorized)
    }

    /// Returns the policy that allowed it, if one had to.
    pub fn policy_that_allowed_it(&self) -> Option<Arc<str>> {
        self.authorized.permit().policy_name().cloned()
    }

    /// Relays between the client and the application, until both are done or the policy revokes the
    /// connection.
    pub async fn relay_until_revoked(self, client: Stream, meter: &ByteMeter) -> ConnectionOutcome {
        let Self { socket, authorized } = self;
        let revoker = client.reset_reason_setter();
        let revoked = async {
            let denial = authorized.wait_until_revoked().await;
            revoker.iter().for_each(ResetReasonSetter::set_reason_to_revoked);
            denial
        };
        tokio::select! {
            result = client.relay(socket, SocketSide::Server, meter) => result.into(),
            // Both ends are reset, as they are set to be.
            denial = revoked => ConnectionOutcome::Broken(format!("policy changed: {denial}")),
        }
    }
}

/// Serves one connection that came without mutual TLS.
pub async fn serve_plaintext_connection(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    limits: (ConnectionSlot, Gate),
) {
    let Ok(local) = socket.local_addr() else { return };
    let (client, to) = (ClientAddress::new(peer), UpstreamAddress::new(local));
    if came_from_inside(&pod, client) {
        tracing::warn!(%pod, %client, "a program connected to the mesh's port 15006 itself: refused");
        return reset_on_drop(&socket);
    }
    let (_slot, strangers) = limits;
    let Some(share) = strangers.enter(Group::of(client.ip())) else {
        reset_on_drop(&socket);
        return worker.report_over_limit(&pod);
    };
    let details = ConnectionDetails::new(Reporter::Destination, client.address(), to.address());
    let mut record = ConnectionRecord::new(&worker.metrics, details);
    record.details.upstream = Some(to.address());
    let meter = ByteMeter::default();
    let arrival = InboundRequest { identity: None, client, to, by_service: false };
    let admitting = Box::pin(admit(&worker, &pod, &arrival, &mut record));
    let admitted = tokio::select! {
        biased;
        admitted = admitting => admitted,
        () = share.evicted() => Err(Error::Crowded),
    };
    let outcome = match admitted {
        Ok(delivered) => {
            share.stand(Standing::Proven);
            meter.also_count_in(record.record_opened());
            delivered.relay_until_revoked(Stream::Socket(socket), &meter).await
        }
        Err(error) => {
            reset_on_drop(&socket);
            error.log(&pod, client, to.port());
            error.into()
        }
    };
    record.record_outcome(&outcome, meter.bytes_from_and_to_client());
}

/// The limits that one connection of another node counts against.
pub struct MtlsConnectionLimits {
    /// The slot of the connection itself.
    pub session: ConnectionSlot,
    /// The handshakes under way, until the peer has proved its identity.
    pub handshakes: PodHandshakeLimit,
    /// The peer's share of the pod's connections.
    pub shares: SessionLimit,
    /// The limits of its streams.
    pub streams: PodConnectionLimits,
}

/// Serves one connection over mutual TLS, in either framing: each of its streams becomes a task.
pub async fn serve_mtls_connection(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    limits: MtlsConnectionLimits,
) {
    let MtlsConnectionLimits { session: _session, handshakes, shares, streams } = limits;
    let peer = ClientAddress::new(peer);
    if came_from_inside(&pod, peer) {
        tracing::warn!(%pod, %peer, "a program connected to the mesh's port 15008 itself: refused");
        return reset_on_drop(&socket);
    }
    if worker.flood_penalties.is_refused(&pod.uid, peer.ip(), Instant::now()) {
        worker.metrics.count_refused_handshake();
        tracing::debug!(%pod, %peer, "the peer was cut off a moment ago: HBONE connection refused");
        return reset_on_drop(&socket);
    }
    let Some(handshake) = handshakes.take_or_evict(peer.ip()) else {
        worker.metrics.count_refused_handshake();
        return reset_on_drop(&socket);
    };
    let Some((tls, verified_peer)) = Box::pin(shake_hands(&worker, &pod, socket, peer, handshake)).await
    else {
        return;
    };
    let identity = verified_peer.id().clone();
    let Some(session) = shares.take_or_evict(peer.ip(), &identity) else {
        return worker.report_over_limit(&pod);
    };
    let (draining, budget) = (Rc::clone(&worker.draining), worker.receive_budget(&pod));
    let leaving = Rc::<DrainSignal>::default();
    let told = Rc::clone(&leaving);
    // A peer that could not connect any more opens no streams either.
    let drain = async move {
        tokio::select! {
            () = draining.wait_for_drain() => {}
            () = verified_peer.wait_until_invalid() => {}
            () = told.wait_for_drain() => {}
        }
    };
    let (own_worker, own_pod) = (Rc::clone(&worker), Arc::clone(&pod));
    let asking = Rc::clone(&session);
    let handle = move |incoming| {
        let counted = (streams.try_take_slot().ok(), asking.count_stream());
        serve_stream(Rc::clone(&own_worker), Arc::clone(&own_pod), identity.clone(), peer, counted, incoming)
    };
    let penalize = || worker.flood_penalties.add(&pod.uid, peer.ip(), Instant::now());
    let served = tokio::select! {
        served = serve_tunnel_streams(tls, &budget, drain, handle, penalize) => served,
        reason = end_of(&session, &leaving) => Err(io::Error::new(io::ErrorKind::TimedOut, reason)),
    };
    match served {
        Err(error) if matches!(error.kind(), FLOOD | io::ErrorKind::Other) => {
            tracing::warn!(%pod, %peer, %error, "connection over mutual TLS cut off");
        }
        Err(error) => tracing::debug!(%peer, %error, "connection over mutual TLS ended"),
        Ok(()) => {}
    }
}

/// Serves the streams, in the framing that ALPN has chosen. `on_flood` runs if the peer is cut off for a
/// flood. Errors: the connection broke.
pub(crate) async fn serve_tunnel_streams<F: Future<Output = ()> + 'static>(
    tls: TlsStream<UnbufferedServerConnection>,
    budget: &Rc<mux::PodReceiveBudget>,
    drain: impl Future<Output = ()>,
    handle: impl Fn(tunnel::IncomingStream) -> F,
    on_flood: impl FnOnce(),
) -> io::Result<()> {
    if tls.alpn_protocol() == Some(mux::ALPN) {
        let server = mux::ServerConnection::new(tls, budget);
        let handle = |incoming| handle(tunnel::IncomingStream::Mesh(incoming));
        return server.serve(drain, handle, on_flood).await;
    }
    let serve = async {
        let server = hbone::ServerConnection::start(tls).await?;
        server.serve(drain, |incoming| handle(tunnel::IncomingStream::Hbone(incoming))).await
    };
    let served = serve.await;
    if served.as_ref().is_err_and(|error| error.kind() == FLOOD) {
        on_flood();
    }
    served
}

/// Returns why a session is over, after asking the peer to go and giving it time for that.
async fn end_of(session: &SessionPlace, leaving: &DrainSignal) -> &'static str {
    /// Time for goodbyes.
    const TIME_TO_GO: Duration = Duration::from_secs(2);
    let reason = session.wait_for_end_reason().await;
    leaving.begin_drain();
    tokio::time::sleep(TIME_TO_GO).await;
    reason
}

/// Runs the handshake; none if it failed, or a newcomer got its place.
async fn shake_hands(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    socket: TcpStream,
    peer: ClientAddress,
    place: HandshakePlace,
) -> Option<(TlsStream<UnbufferedServerConnection>, VerifiedPeer)> {
    let handshake = async {
        let Some(own) = worker.wait_for_certificate(&pod.identity).await else {
            tracing::warn!(%pod, %peer, identity = %pod.identity, "no valid certificate: HBONE connection refused");
            reset_on_drop(&socket);
            return None;
        };
        let started = Instant::now();
        let refused = |error: &dyn Display| tracing::warn!(%pod, %peer, %error, "HBONE connection refused");
        let tls = match tls::server_handshake(socket, Arc::clone(&own.server)).await {
            Ok(tls) => tls,
            // Logged as debug: anybody can connect and go, as often as it likes.
            Err(error @ tls::HandshakeError::Lost(_)) => {
                tracing::debug!(%pod, %peer, %error, "HBONE connection refused");
                return None;
            }
            Err(error) => {
                refused(&error);
                return None;
            }
        };
        worker.metrics.observe_handshake_time(started.elapsed());
        let certificates = tls.peer_certificates().unwrap_or_default();
        let verified_peer = VerifiedPeer::new(&worker.shared.certificates, certificates);
        Some((tls, verified_peer.inspect_err(|error| refused(error)).ok()?))
    };
    tokio::select! {
        biased;
        done = handshake => done,
        () = place.wait_until_evicted() => {
            worker.metrics.count_refused_handshake();
            tracing::debug!(%pod, %peer, "a newcomer has the handshake's place: HBONE connection refused");
            None
        }
    }
}

async fn serve_stream(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    identity: SpiffeId,
    peer: ClientAddress,
    (slot, stream): (Option<ConnectionSlot>, SessionStream),
    incoming: tunnel::IncomingStream,
) {
    let destination = incoming.destination();
    let to = destination.as_ref().map_or(peer.address(), |to| *to);
    let client = ClientAddress::new(headers::believed_client(incoming.client_address(), peer.address()));
    let asked = UpstreamAddress::new(to).address();
    let details = ConnectionDetails::new(Reporter::Destination, client.address(), asked);
    let mut record = ConnectionRecord::new(&worker.metrics, details);
    record.details.transport = incoming.transport_name();
    record.details.labels.source_identity = Some(identity.clone());
    record.details.labels.destination_identity = Some(pod.identity.clone());
    let meter = ByteMeter::default();
    let admitted = match &slot {
        Some(_) => Box::pin(admit_stream(&worker, &pod, identity, client, &incoming, &mut record)).await,
        None => {
            worker.report_over_limit(&pod);
            Err(Error::Crowded)
        }
    };
    if admitted.is_ok() {
        stream.mark_authorized();
    }
    let outcome = match admitted {
        Ok(delivered) => match incoming.into_accepted_stream(record.details.labels.destination.as_deref()) {
            Ok(stream) => {
                meter.also_count_in(record.record_opened());
                delivered.relay_until_revoked(stream, &meter).await
            }
            Err(error) => ConnectionOutcome::Broken(format!("client: {error}")),
        },
        Err(error) => {
            incoming.refuse(error.refusal());
            error.log(&pod, peer, to.port());
            error.into()
        }
    };
    record.record_outcome(&outcome, meter.bytes_from_and_to_client());
}

async fn admit_stream(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    identity: SpiffeId,
    client: ClientAddress,
    incoming: &tunnel::IncomingStream,
    record: &mut ConnectionRecord,
) -> Result<AuthorizedApplicationSocket, Error> {
    record.details.labels.source = worker.snapshot().workload_by_address(client.ip());
    record.details.labels.service =
        incoming.service_host().and_then(|host| headers::service_by_hostname(&host, &worker.snapshot()));
    let to = UpstreamAddress::new(incoming.destination()?);
    if !is_of_this_pod(worker, pod, to.ip()).await {
        return Err(Error::NotThisPod { asked: to.ip(), pod: pod.to_string() });
    }
    record.details.upstream = Some(to.address());
    let by_service = record.details.labels.service.is_some();
    let arrival = InboundRequest { identity: Some(identity), client, to, by_service };
    admit(worker, pod, &arrival, record).await
}

async fn admit(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    arrival: &InboundRequest,
    record: &mut ConnectionRecord,
) -> Result<AuthorizedApplicationSocket, Error> {
    if record.details.labels.source.is_none() {
        record.details.labels.source = worker.snapshot().workload_by_address(arrival.client.ip());
    }
    let workload = worker.wait_for_workload(pod).await.ok_or(Error::UnknownPod)?;
    record.details.set_destination_workload(&workload);
    let delivered = authorize_and_connect(worker, pod, &workload, arrival).await?;
    record.details.policy = delivered.policy_that_allowed_it();
    Ok(delivered)
}

/// Whether an address is one of a pod's. The mesh may know of addresses that the pod did not have yet when it
/// was enrolled.
async fn is_of_this_pod(worker: &Rc<Worker>, pod: &LocalPod, address: IpAddr) -> bool {
    let told = async {
        worker.wait_for_workload(pod).await.is_some_and(|workload| workload.addresses.contains(&address))
    };
    pod.addresses.contains(&address) || told.await
}

/// Whether a connection came from the pod's own programs and not over its network.
fn came_from_inside(pod: &LocalPod, client: ClientAddress) -> bool {
    client.ip().is_loopback() || pod.addresses.contains(&client.ip())
}

impl Error {
    /// Logs the error; a denial was logged with the decision.
    fn log(&self, pod: &LocalPod, peer: ClientAddress, port: u16) {
        if !matches!(self, Self::Denied(_)) {
            tracing::warn!(%pod, %peer, port, error = %self, "inbound connection refused");
        }
    }

    /// Returns the error that the client would have seen without a mesh; `Other` if the mesh itself refused.
    pub fn io_kind_without_mesh(&self) -> io::ErrorKind {
        match self {
            Self::Deliver(super::connect_to_application::Error::Connect(error)) => error.kind(),
            _ => io::ErrorKind::Other,
        }
    }

    /// Returns why the stream is refused, as the peer is told.
    fn refusal(&self) -> Refusal {
        match self {
            Self::Denied(_) => Refusal::Denied,
            Self::MeshPort(_) | Self::BadRequest(_) | Self::NotThisPod { .. } => Refusal::BadRequest,
            Self::UnknownPod | Self::Crowded | Self::Deliver(_) => Refusal::Unavailable,
        }
    }
}

impl From<Error> for ConnectionOutcome {
    fn from(error: Error) -> Self {
        let flag = match error {
            Error::Denied(_) => ResponseFlag::Denied,
            Error::UnknownPod => ResponseFlag::IdentityError,
            Error::Crowded => ResponseFlag::Overflow,
            Error::MeshPort(_) | Error::BadRequest(_) | Error::NotThisPod { .. } | Error::Deliver(_) => {
                ResponseFlag::ConnectFailed
            }
        };
        Self::Failed(flag, error.to_string())
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    use super::*;
    use crate::fixture::{self, PlainSurroundings, run_as_worker};

    async fn taken(
        surroundings: PlainSurroundings,
        to: SocketAddr,
    ) -> Result<AuthorizedApplicationSocket, Error> {
        let (worker, pod) = fixture::worker_and_pod(surroundings);
        let workload = worker.wait_for_workload(&pod).await.unwrap();
        let client = ClientAddress::new("10.0.0.9:1000".parse().unwrap());
        let to = UpstreamAddress::new(to);
        let arrival = InboundRequest { identity: None, client, to, by_service: false };
        authorize_and_connect(&worker, &pod, &workload, &arrival).await
    }

    #[test]
    fn an_application_gets_what_policy_allows() {
        run_as_worker(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let to = listener.local_addr().unwrap();
            let mut delivered = taken(PlainSurroundings::with_destination(None), to).await.unwrap();
            let (mut application, _) = listener.accept().await.unwrap();
            delivered.socket.write_all(b"hello").await.unwrap();
            let mut heard = [0; 5];
            application.read_exact(&mut heard).await.unwrap();
            assert_eq!(&heard, b"hello");
        });
    }

    /// Then the application may be reached over the other family.
    #[test]
    fn it_is_told_that_a_pod_has_no_address_for_a_family() {
        run_as_worker(async {
            let kind = io::ErrorKind::AddrNotAvailable;
            let surroundings =
                PlainSurroundings { no_delivery: Some(kind), ..PlainSurroundings::with_destination(None) };
            let error = taken(surroundings, "127.0.0.1:80".parse().unwrap()).await.err().unwrap();
            assert_eq!(error.io_kind_without_mesh(), kind);
        });
    }

    #[test]
    fn the_meshs_own_ports_are_nobodys() {
        run_as_worker(async {
            let error = taken(PlainSurroundings::with_destination(None), "127.0.0.1:15001".parse().unwrap())
                .await
                .err()
                .unwrap();
            assert!(matches!(error, Error::MeshPort(15001)), "{error}");
        });
    }
}
