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
use mesh_common::is_mesh_port;
use mesh_listen::{Gate, Group, Standing};
use rustls::server::UnbufferedServerConnection;
use tokio::net::TcpStream;

use super::accept::{Caps, ConnectionSlot};
use super::addresses::{ClientAddress, UpstreamAddress};
use super::authorization::{AccessRequest, Authorized};
use super::deliver::deliver;
use super::handshakes::{Handshake, Handshakes};
use super::hbone::{self, headers};
use super::mux::{self, Revoker};
use super::pod::LocalPod;
use super::relay::{Meter, SocketIs, reset_on_drop};
use super::sessions::{OpenStream, Session, Sessions};
use super::stream::Stream;
use super::tls::{self, TlsStream};
use super::tunnel::{self, Refusal};
use super::worker::{Draining, Worker};
use crate::certs::PeerIdentity;
use crate::telemetry::{ConnectionRecord, Outcome, Parties, Reporter, ResponseFlag};

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
    BadRequest(#[from] headers::BadTarget),
    /// It asks for an address that is not the pod's.
    #[error("{asked} is not an address of {pod}")]
    NotThisPod {
        /// The address that was asked for.
        asked: IpAddr,
        /// The pod that the request came to.
        pod: String,
    },
    /// The pod has as many connections as it may.
    #[error("the pod has its connections already")]
    Crowded,
    /// The application could not be reached.
    #[error(transparent)]
    Deliver(#[from] super::deliver::Error),
}

/// A connection to a pod of this node, allowed and connected to the application.
pub struct Delivered {
    socket: TcpStream,
    authorized: Authorized,
}

/// A connection that arrives: from whom, and to which port of which pod.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// The client's identity, if mutual TLS (or this very node) proved it.
    pub identity: Option<SpiffeId>,
    /// The client's address.
    pub client: ClientAddress,
    /// The pod's address and port.
    pub to: UpstreamAddress,
    /// Whether the client asked for a service, not for this address.
    pub by_service: bool,
}

impl Arrival {
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
pub async fn take(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    workload: &Arc<Workload>,
    arrival: &Arrival,
) -> Result<Delivered, Error> {
    let refused = match take_at(worker, pod, workload, arrival).await {
        Err(error) if arrival.by_service && error.kind() == io::ErrorKind::ConnectionRefused => error,
        Err(error) if error.kind() == io::ErrorKind::AddrNotAvailable => error,
        taken => return taken,
    };
    match arrival.in_other_family(worker, pod) {
        Some(other) => take_at(worker, pod, workload, &other).await,
        None => Err(refused),
    }
}

async fn take_at(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    workload: &Arc<Workload>,
    arrival: &Arrival,
) -> Result<Delivered, Error> {
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
    let socket = deliver(worker, pod, arrival.client, arrival.to, authorized.permit()).await?;
    Ok(Delivered { socket, authorized })
}

impl Delivered {
    /// Returns the policy that allowed it, if one had to.
    pub fn policy(&self) -> Option<Arc<str>> {
        self.authorized.permit().policy().cloned()
    }

    /// Relays between the client and the application, until both are done or the policy revokes the
    /// connection.
    pub async fn carry(self, client: Stream, meter: &Meter) -> Outcome {
        let Self { socket, authorized } = self;
        let revoker = client.revoker();
        let revoked = async {
            let denial = authorized.revoked().await;
            revoker.iter().for_each(Revoker::revoke);
            denial
        };
        tokio::select! {
            result = client.relay(socket, SocketIs::Server, meter) => result.into(),
            // Both ends are reset, as they are set to be.
            denial = revoked => Outcome::Broken(format!("policy changed: {denial}")),
        }
    }
}

/// Serves one connection that came without mutual TLS.
pub async fn serve_plaintext(
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
        return worker.over_limit(&pod);
    };
    let parties = Parties::new(Reporter::Destination, client.address(), to.address());
    let mut record = ConnectionRecord::new(&worker.metrics, parties);
    record.parties.upstream = Some(to.address());
    let meter = Meter::default();
    let arrival = Arrival { identity: None, client, to, by_service: false };
    let admitting = Box::pin(admit(&worker, &pod, &arrival, &mut record));
    let admitted = tokio::select! {
        biased;
        admitted = admitting => admitted,
        () = share.evicted() => Err(Error::Crowded),
    };
    let outcome = match admitted {
        Ok(delivered) => {
            share.stand(Standing::Proven);
            meter.report_to(record.open());
            delivered.carry(Stream::Socket(socket), &meter).await
        }
        Err(error) => {
            reset_on_drop(&socket);
            error.log(&pod, client, to.port());
            error.into()
        }
    };
    record.end(&outcome, meter.bytes());
}

/// The limits that one connection of another node counts against.
pub struct SessionLimits {
    /// The slot of the connection itself.
    pub session: ConnectionSlot,
    /// The handshakes under way, until the peer has proved its identity.
    pub handshakes: Handshakes,
    /// The peer's share of the pod's connections.
    pub shares: Sessions,
    /// The limits of its streams.
    pub streams: Caps,
}

/// Serves one connection over mutual TLS, in either framing: each of its streams becomes a task.
pub async fn serve_hbone(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    limits: SessionLimits,
) {
    let SessionLimits { session: _session, handshakes, shares, streams } = limits;
    let peer = ClientAddress::new(peer);
    if came_from_inside(&pod, peer) {
        tracing::warn!(%pod, %peer, "a program connected to the mesh's port 15008 itself: refused");
        return reset_on_drop(&socket);
    }
    let Some(handshake) = handshakes.enter(peer.ip()) else {
        worker.metrics.handshake_over_limit();
        return reset_on_drop(&socket);
    };
    let Some((tls, peer_identity)) = Box::pin(shake_hands(&worker, &pod, socket, peer, handshake)).await
    else {
        return;
    };
    let identity = peer_identity.id().clone();
    let Some(session) = shares.enter(peer.ip(), &identity) else { return worker.over_limit(&pod) };
    let (draining, budget) = (Rc::clone(&worker.draining), worker.budget(&pod));
    let leaving = Rc::<Draining>::default();
    let told = Rc::clone(&leaving);
    // A peer that could not connect any more opens no streams either.
    let drain = async move {
        tokio::select! {
            () = draining.begun() => {}
            () = peer_identity.invalidated() => {}
            () = told.begun() => {}
        }
    };
    let own_pod = Arc::clone(&pod);
    let asking = Rc::clone(&session);
    let handle = move |incoming| {
        let counted = (streams.try_slot().ok(), asking.stream());
        serve_stream(Rc::clone(&worker), Arc::clone(&own_pod), identity.clone(), peer, counted, incoming)
    };
    let served = tokio::select! {
        served = serve_session(tls, &budget, drain, handle) => served,
        reason = end_of(&session, &leaving) => Err(io::Error::new(io::ErrorKind::TimedOut, reason)),
    };
    match served {
        Err(error) if error.kind() == io::ErrorKind::Other => {
            tracing::warn!(%pod, %peer, %error, "connection over mutual TLS cut off");
        }
        Err(error) => tracing::debug!(%peer, %error, "connection over mutual TLS ended"),
        Ok(()) => {}
    }
}

/// Serves the streams, in the framing that ALPN has chosen. Errors: the connection broke.
pub(crate) async fn serve_session<F: Future<Output = ()> + 'static>(
    tls: TlsStream<UnbufferedServerConnection>,
    budget: &Rc<mux::Budget>,
    drain: impl Future<Output = ()>,
    handle: impl Fn(tunnel::IncomingStream) -> F,
) -> io::Result<()> {
    if tls.alpn_protocol() == Some(mux::ALPN) {
        let server = mux::Server::new(tls, budget);
        return server.serve(drain, |incoming| handle(tunnel::IncomingStream::Mesh(incoming))).await;
    }
    let server = hbone::Server::start(tls).await?;
    server.serve(drain, |incoming| handle(tunnel::IncomingStream::Hbone(incoming))).await
}

/// Returns why a session is over, after asking the peer to go and giving it time for that.
async fn end_of(session: &Session, leaving: &Draining) -> &'static str {
    /// Time for goodbyes.
    const TIME_TO_GO: Duration = Duration::from_secs(2);
    let reason = session.over().await;
    leaving.begin();
    tokio::time::sleep(TIME_TO_GO).await;
    reason
}

/// Runs the handshake; none if it failed, or a newcomer got its place.
async fn shake_hands(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    socket: TcpStream,
    peer: ClientAddress,
    place: Handshake,
) -> Option<(TlsStream<UnbufferedServerConnection>, PeerIdentity)> {
    let handshake = async {
        let Some(own) = worker.identity(&pod.identity).await else {
            tracing::warn!(%pod, %peer, identity = %pod.identity, "no valid certificate: HBONE connection refused");
            reset_on_drop(&socket);
            return None;
        };
        let started = Instant::now();
        let refused = |error: &dyn Display| tracing::warn!(%pod, %peer, %error, "HBONE connection refused");
        let tls = match tls::accept(socket, Arc::clone(&own.server)).await {
            Ok(tls) => tls,
            // Logged as debug: anybody can connect and go, as often as it likes.
            Err(error @ tls::Error::Lost(_)) => {
                tracing::debug!(%pod, %peer, %error, "HBONE connection refused");
                return None;
            }
            Err(error) => {
                refused(&error);
                return None;
            }
        };
        worker.metrics.handshake(started.elapsed());
        let certificates = tls.peer_certificates().unwrap_or_default();
        let peer_identity = PeerIdentity::new(&worker.shared.certificates, certificates);
        Some((tls, peer_identity.inspect_err(|error| refused(error)).ok()?))
    };
    tokio::select! {
        biased;
        done = handshake => done,
        () = place.evicted() => {
            worker.metrics.handshake_over_limit();
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
    (slot, stream): (Option<ConnectionSlot>, OpenStream),
    incoming: tunnel::IncomingStream,
) {
    let destination = incoming.destination();
    let to = destination.as_ref().map_or(peer.address(), |to| *to);
    let client = ClientAddress::new(headers::client(incoming.client(), peer.address()));
    let asked = UpstreamAddress::new(to).address();
    let parties = Parties::new(Reporter::Destination, client.address(), asked);
    let mut record = ConnectionRecord::new(&worker.metrics, parties);
    record.parties.transport = incoming.transport();
    record.parties.labels.source_identity = Some(identity.clone());
    record.parties.labels.destination_identity = Some(pod.identity.clone());
    let meter = Meter::default();
    let admitted = match &slot {
        Some(_) => Box::pin(admit_stream(&worker, &pod, identity, client, &incoming, &mut record)).await,
        None => {
            worker.over_limit(&pod);
            Err(Error::Crowded)
        }
    };
    if admitted.is_ok() {
        stream.authorized();
    }
    let outcome = match admitted {
        Ok(delivered) => match incoming.accept(record.parties.labels.destination.as_deref()) {
            Ok(stream) => {
                meter.report_to(record.open());
                delivered.carry(stream, &meter).await
            }
            Err(error) => Outcome::Broken(format!("client: {error}")),
        },
        Err(error) => {
            incoming.refuse(error.refusal());
            error.log(&pod, peer, to.port());
            error.into()
        }
    };
    record.end(&outcome, meter.bytes());
}

async fn admit_stream(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    identity: SpiffeId,
    client: ClientAddress,
    incoming: &tunnel::IncomingStream,
    record: &mut ConnectionRecord,
) -> Result<Delivered, Error> {
    record.parties.labels.source = worker.snapshot().workload_by_address(client.ip());
    record.parties.labels.service =
        incoming.host().and_then(|host| headers::service(&host, &worker.snapshot()));
    let to = UpstreamAddress::new(incoming.destination()?);
    if !is_of_this_pod(worker, pod, to.ip()).await {
        return Err(Error::NotThisPod { asked: to.ip(), pod: pod.to_string() });
    }
    record.parties.upstream = Some(to.address());
    let by_service = record.parties.labels.service.is_some();
    let arrival = Arrival { identity: Some(identity), client, to, by_service };
    admit(worker, pod, &arrival, record).await
}

async fn admit(
    worker: &Rc<Worker>,
    pod: &LocalPod,
    arrival: &Arrival,
    record: &mut ConnectionRecord,
) -> Result<Delivered, Error> {
    if record.parties.labels.source.is_none() {
        record.parties.labels.source = worker.snapshot().workload_by_address(arrival.client.ip());
    }
    let workload = worker.workload_of(pod).await.ok_or(Error::UnknownPod)?;
    record.parties.destination(&workload);
    let delivered = take(worker, pod, &workload, arrival).await?;
    record.parties.policy = delivered.policy();
    Ok(delivered)
}

/// Whether an address is one of a pod's. The mesh may know of addresses that the pod did not have yet when it
/// was enrolled.
async fn is_of_this_pod(worker: &Rc<Worker>, pod: &LocalPod, address: IpAddr) -> bool {
    let told =
        async { worker.workload_of(pod).await.is_some_and(|workload| workload.addresses.contains(&address)) };
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

    /// Returns the error that the client would have seen without a mesh.
    pub fn kind(&self) -> io::ErrorKind {
        match self {
            Self::Deliver(super::deliver::Error::Connect(error)) => error.kind(),
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

impl From<Error> for Outcome {
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
    use crate::fixture::{self, PlainSockets, run};

    async fn taken(surroundings: PlainSockets, to: SocketAddr) -> Result<Delivered, Error> {
        let (worker, pod) = fixture::worker(surroundings);
        let workload = worker.workload_of(&pod).await.unwrap();
        let client = ClientAddress::new("10.0.0.9:1000".parse().unwrap());
        let to = UpstreamAddress::new(to);
        let arrival = Arrival { identity: None, client, to, by_service: false };
        take(&worker, &pod, &workload, &arrival).await
    }

    #[test]
    fn an_application_gets_what_policy_allows() {
        run(async {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            let to = listener.local_addr().unwrap();
            let mut delivered = taken(PlainSockets::to(None), to).await.unwrap();
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
        run(async {
            let kind = io::ErrorKind::AddrNotAvailable;
            let surroundings = PlainSockets { no_delivery: Some(kind), ..PlainSockets::to(None) };
            let error = taken(surroundings, "127.0.0.1:80".parse().unwrap()).await.err().unwrap();
            assert_eq!(error.kind(), kind);
        });
    }

    #[test]
    fn the_meshs_own_ports_are_nobodys() {
        run(async {
            let error =
                taken(PlainSockets::to(None), "127.0.0.1:15001".parse().unwrap()).await.err().unwrap();
            assert!(matches!(error, Error::MeshPort(15001)), "{error}");
        });
    }
}
