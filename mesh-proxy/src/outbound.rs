//! Step 3 of a connection (see [the crate page](crate)): a pod opened it. Decides where it goes, opens the
//! way, relays, and records the outcome.

use std::cell::Cell;
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::outbound::{Destination, Reject, destination_of};
use mesh_api::plan::{EndpointKey, Endpoints, PortPolicy, Service, Target, Workload};
use mesh_common::is_mesh_port;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::accept::ConnectionSlot;
use super::addresses::{ClientAddress, OriginalDestination, UpstreamAddress};
use super::balance::{Active, AffinityClient, LeftOut, Pick, Slot};
use super::lifetime::Lifetime;
use super::pod::LocalPod;
use super::relay::{Meter, SocketIs, reset_on_drop};
use super::stream::Stream;
use super::surroundings::{Asked, ConnectOutcome};
use super::tunnel::Early;
use super::upstream::{self, Options, Origin, Upstream};
use super::worker::Worker;
use crate::telemetry::{ConnectionRecord, Outcome, Parties, Reporter, ResponseFlag};

/// Most endpoints that are tried before the client's connection fails.
const TRIES: usize = 5;

/// Connect timeout where no policy sets one (Istio's `meshConfig.connectTimeout`).
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error("the control plane has not told of this pod yet")]
    UnknownPod,
    #[error("{0}")]
    Rejected(Reject),
    #[error("strict egress: the mesh no longer knows {0}, and no rule names it")]
    StrictEgress(SocketAddr),
    #[error("port {0} is the mesh's own")]
    MeshPort(u16),
    #[error("{service} port {port} has its {limit} connections already")]
    TooMany { service: Arc<str>, port: u16, limit: u32 },
    #[error("every endpoint of {0} is ejected after failures")]
    AllEjected(Arc<str>),
    #[error("nobody takes connections: {0}")]
    Refused(upstream::Error),
    #[error(transparent)]
    Upstream(#[from] upstream::Error),
}

/// An open way to the destination, and the slots and limits that count while it is used.
struct Connected {
    upstream: Upstream,
    lifetime: Option<Lifetime>,
    _slot: Option<Slot<(Arc<str>, u16)>>,
    _active: Option<Active>,
}

/// Serves one connection that was accepted on a pod's outbound listener: opens the way, relays and records.
pub async fn serve(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    _slot: ConnectionSlot,
) {
    // The listener's socket filter, which looks at SYNs, is inherited; without one nothing is lost.
    let _filter = SockRef::from(&socket).detach_filter();
    let opened = match worker.deferred.take(&pod, &socket, peer) {
        Some(opened) => Some(opened),
        // Boxed, since it is needed only while opening: the connection may last for days.
        None => Box::pin(open_as_it_comes(&worker, &pod, &socket, peer)).await,
    };
    let Some(Opened { mut record, connected }) = opened else { return reset_on_drop(&socket) };
    let meter = Meter::default();
    meter.report_to(record.open());
    let outcome = carry(socket, connected, &meter).await;
    record.end(&outcome, meter.bytes());
}

/// Opens the way for a connection that was accepted first, without deferred accept.
async fn open_as_it_comes(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    socket: &TcpStream,
    peer: SocketAddr,
) -> Option<Opened> {
    match worker.surroundings.original_destination(socket) {
        Ok(Some(asked)) => {
            open(worker, pod, &ConnectRequest { asked, port: peer.port() }, Early::Socket(socket)).await
        }
        Ok(None) => {
            tracing::warn!(%pod, %peer, "a program connected to the mesh's port 15001 itself: refused");
            None
        }
        Err(error) => {
            tracing::error!(%pod, %peer, %error, "can't read a connection's destination: refused");
            None
        }
    }
}

/// Opens the way for a pod's connection; none if it is refused, which is recorded here.
pub async fn open(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    request: &ConnectRequest,
    early: Early<'_>,
) -> Option<Opened> {
    let original = OriginalDestination::new(request.asked.destination);
    let client = ClientAddress::new(SocketAddr::new(pod.address_like(original.ip()), request.port));
    let parties = Parties::new(Reporter::Source, client.address(), original.address());
    let mut record = ConnectionRecord::new(&worker.metrics, parties);
    // Until an endpoint is tried.
    record.parties.transport = "none";
    let connecting = Connecting { early, client, original, not_direct: request.asked.not_direct };
    match connect(worker, pod, &connecting, &mut record).await {
        Ok(connected) => {
            worker.surroundings.note_outcome(pod, original.address(), ConnectOutcome::Taken);
            Some(Opened { record, connected })
        }
        Err(error) => {
            if matches!(error, Error::Refused(_)) {
                worker.surroundings.note_outcome(pod, original.address(), ConnectOutcome::Refused);
            }
            tracing::debug!(%pod, %client, %original, %error, "outbound connection not made");
            record.end(&Outcome::Failed(error.response_flag(), error.to_string()), (0, 0));
            None
        }
    }
}

/// A connection that a pod asks for.
pub struct ConnectRequest {
    /// The destination that it asks for.
    pub asked: Asked,
    /// The client's port.
    pub port: u16,
}

/// An open way for a connection. Dropping it records the connection as abandoned.
pub struct Opened {
    record: ConnectionRecord,
    connected: Connected,
}

/// A connection to be connected.
struct Connecting<'a> {
    /// Bytes that the client has sent already; none with deferred accept.
    early: Early<'a>,
    client: ClientAddress,
    original: OriginalDestination,
    /// See [`To::not_direct`].
    not_direct: bool,
}

async fn connect(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    connecting: &Connecting<'_>,
    record: &mut ConnectionRecord,
) -> Result<Connected, Error> {
    let Connecting { early, client, original, not_direct } = *connecting;
    let workload = worker.workload_of(pod).await.ok_or(Error::UnknownPod)?;
    record.parties.source(&workload);
    record.parties.labels.source_identity = Some(pod.identity.clone());
    let exposed = Cell::new(false);
    let mut origin = Origin { worker, pod, workload: &workload, client, service: None, early, exposed };
    match destination_of(&worker.snapshot(), &workload, original.address()) {
        Destination::Reject(reject) => Err(Error::Rejected(reject)),
        Destination::Passthrough => pass_through(worker, pod, original, record).await,
        Destination::Workload(target) => {
            ask_for_direct_ways(worker, pod, original, std::slice::from_ref(&target));
            let reached = reach(&origin, &target, default_options(), record).await;
            let upstream = reached.map_err(|error| Error::of_all(error, true))?;
            Ok(Connected { upstream, lifetime: None, _slot: None, _active: None })
        }
        Destination::Service { service, port, policy, endpoints } => {
            record.parties.labels.service = Some(Arc::clone(&service));
            origin.service = Some(&service.hostname);
            ask_for_direct_ways(worker, pod, original, &endpoints);
            let way = To { service: &service, port, policy: &policy, endpoints: &endpoints, not_direct };
            balance(&origin, &way, record).await
        }
    }
}

/// Connects to the address that the client used: the mesh knows it no longer, or is told to stay out of the
/// way. Errors: strict egress refuses it, it is one of the mesh's own ports, or the connect fails.
async fn pass_through(
    worker: &Worker,
    pod: &LocalPod,
    original: OriginalDestination,
    record: &mut ConnectionRecord,
) -> Result<Connected, Error> {
    if is_mesh_port(original.port()) {
        return Err(Error::MeshPort(original.port()));
    }
    let known = worker.snapshot().knows_address(original.ip());
    if !known && worker.surroundings.refuses_unknown(pod, original.address()) {
        return Err(Error::StrictEgress(original.address()));
    }
    let to = UpstreamAddress::new(original.address());
    record.parties.upstream = Some(to.address());
    record.parties.transport = "plain";
    let connect = upstream::plain(worker, pod, to, None);
    let socket = tokio::time::timeout(CONNECT_TIMEOUT, connect)
        .await
        .map_err(|_| upstream::Error::Timeout(CONNECT_TIMEOUT))?
        .map_err(upstream::Error::Connect)?;
    let upstream = Upstream::Stream(Stream::of_socket(socket));
    Ok(Connected { upstream, lifetime: None, _slot: None, _active: None })
}

/// A service that a connection goes to, with its policy and endpoints.
struct To<'a> {
    service: &'a Arc<Service>,
    port: u16,
    policy: &'a PortPolicy,
    endpoints: &'a Endpoints,
    /// Whether the kernel drew another endpoint than those on this node, which it connects to directly.
    not_direct: bool,
}

/// Tries endpoints, each at most once, until one takes the connection. Errors: why the last one did not.
async fn balance(
    origin: &Origin<'_>,
    to: &To<'_>,
    record: &mut ConnectionRecord,
) -> Result<Connected, Error> {
    let worker = origin.worker;
    let To { service, port, policy, endpoints, .. } = *to;
    let slot = match policy.pool.max_connections {
        None => None,
        Some(limit) => {
            let key = (Arc::clone(&service.key), port);
            let full = || Error::TooMany { service: Arc::clone(&service.hostname), port, limit: limit.get() };
            Some(worker.shared.limits.take(key, limit.get()).ok_or_else(full)?)
        }
    };
    let options = Options { timeout: policy.pool.connect_timeout, keepalive: policy.pool.keepalive };
    let mut left_out = worker.shared.health.ejected(endpoints, policy, Instant::now());
    let own = Own::of(origin.workload, to);
    if to.not_direct && own.is_none() {
        leave_out_near(worker, endpoints, &mut left_out);
    }
    let first = own.as_ref().and_then(|own| own.choose(worker, endpoints, &left_out));
    let mut last = Error::AllEjected(Arc::clone(&service.hostname));
    let mut refused = 0;
    for Pick { endpoint, key, active } in
        worker.picker.picks(endpoints, policy.lb, left_out, first).take(TRIES)
    {
        let result = reach(origin, endpoint, options, record).await;
        report(worker, &key, endpoints, policy, &result);
        match result {
            Ok(upstream) => {
                if let Some(own) = own {
                    own.keep(worker, &key);
                }
                let lifetime = Lifetime::of(&policy.pool);
                return Ok(Connected { upstream, lifetime, _slot: slot, _active: Some(active) });
            }
            Err(error) if error.is_final() || origin.exposed.get() => return Err(error.into()),
            Err(error) => {
                tracing::debug!(%endpoint, %error, "trying another endpoint");
                refused += usize::from(error.is_refusal());
                last = Error::of_all(error, refused == endpoints.len());
            }
        }
    }
    Err(last)
}

/// Session affinity of one connection: its client, and how long that keeps an endpoint.
struct Own {
    client: AffinityClient,
    timeout: Duration,
}

impl Own {
    fn of(client: &Workload, to: &To<'_>) -> Option<Self> {
        let (client, timeout) = AffinityClient::of(client, to.service, to.policy, to.port)?;
        Some(Self { client, timeout })
    }

    fn choose(&self, worker: &Worker, endpoints: &Endpoints, left_out: &LeftOut) -> Option<usize> {
        worker.shared.affinity.choose(&self.client, endpoints, left_out, Instant::now())
    }

    fn keep(self, worker: &Worker, endpoint: &EndpointKey) {
        worker.shared.affinity.keep(self.client, endpoint, self.timeout, Instant::now());
    }
}

/// Leaves out the endpoints on this node, which have got their share from the kernel already. Without any
/// others they stay: the kernel may have left them out for a failure.
fn leave_out_near(worker: &Worker, endpoints: &Endpoints, left_out: &mut LeftOut) {
    let (near, far): (Vec<_>, Vec<_>) = (0..endpoints.len())
        .filter(|index| !left_out.contains(*index))
        .partition(|index| worker.local_pod(endpoints[*index].address.ip()).is_some());
    if !far.is_empty() {
        near.into_iter().for_each(|index| left_out.add(index));
    }
}

/// Has the kernel take the pod's next connections directly, if one of the endpoints is on this node.
fn ask_for_direct_ways(worker: &Worker, pod: &LocalPod, original: OriginalDestination, endpoints: &[Target]) {
    let is_near = |target: &Target| worker.local_pod(target.address.ip()).is_some();
    if endpoints.iter().any(is_near) {
        worker.surroundings.suggest_direct(pod, original.address());
    }
}

/// Reports the result of a connect to outlier detection. A denial by policy says nothing of the endpoint.
fn report(
    worker: &Worker,
    key: &EndpointKey,
    among: &Endpoints,
    policy: &PortPolicy,
    result: &Result<Upstream, upstream::Error>,
) {
    let failure: Option<&dyn Display> = match result {
        Ok(_) => None,
        Err(error) if error.is_final() => return,
        Err(error) => Some(error),
    };
    worker.shared.health.report(key, among, policy, failure, Instant::now());
}

/// Opens the way to one endpoint and records where it leads. Errors: the endpoint can't be reached.
async fn reach(
    origin: &Origin<'_>,
    target: &Target,
    options: Options,
    record: &mut ConnectionRecord,
) -> Result<Upstream, upstream::Error> {
    let started = Instant::now();
    record.parties.destination(&target.workload);
    record.parties.upstream = Some(target.address);
    record.parties.transport = upstream::attempt(origin, target);
    let opened = upstream::open(origin, target, options).await;
    let upstream = opened.inspect_err(|error| {
        record.parties.transport = error.transport().unwrap_or(record.parties.transport);
    })?;
    origin.worker.metrics.connected(started.elapsed());
    note(&upstream, &target.workload, record);
    Ok(upstream)
}

fn note(upstream: &Upstream, workload: &Workload, record: &mut ConnectionRecord) {
    match upstream {
        Upstream::Stream(stream) => record.parties.transport = stream.transport(),
        Upstream::Local(local) => {
            record.parties.transport = "local";
            record.parties.policy = local.policy();
        }
    }
    if !matches!(upstream, Upstream::Stream(Stream::Socket(_))) {
        record.parties.labels.destination_identity = Some(workload.identity.clone());
    }
}

async fn carry(socket: TcpStream, connected: Connected, meter: &Meter) -> Outcome {
    let Connected { upstream, lifetime, _slot, _active } = connected;
    match lifetime {
        None => join(socket, upstream, meter).await,
        // Boxed: few connections have a bound.
        Some(lifetime) => {
            Box::pin(lifetime.bound(socket, meter, |socket| join(socket, upstream, meter))).await
        }
    }
}

async fn join(socket: TcpStream, upstream: Upstream, meter: &Meter) -> Outcome {
    let result = match upstream {
        Upstream::Stream(stream) => stream.relay(socket, SocketIs::Client, meter).await,
        // Boxed, like the relay between two sockets: few connections need it.
        Upstream::Local(local) => return Box::pin(local.carry(Stream::Socket(socket), meter)).await,
    };
    result.into()
}

fn default_options() -> Options {
    Options { timeout: CONNECT_TIMEOUT, keepalive: None }
}

impl Error {
    /// Wraps why the last endpoint could not be reached; `refused` is whether all endpoints have refused.
    fn of_all(error: upstream::Error, refused: bool) -> Self {
        if refused && error.is_refusal() { Self::Refused(error) } else { Self::Upstream(error) }
    }

    fn response_flag(&self) -> ResponseFlag {
        match self {
            Self::Upstream(error) | Self::Refused(error) => error.response_flag(),
            Self::UnknownPod => ResponseFlag::IdentityError,
            Self::Rejected(_)
            | Self::StrictEgress(_)
            | Self::MeshPort(_)
            | Self::TooMany { .. }
            | Self::AllEjected(_) => ResponseFlag::ConnectFailed,
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::spawn_local;

    use super::*;
    use crate::accept::{Cap, Caps};
    use crate::fixture::{self, PlainSockets, echo, run, sockets};

    /// A client's connection to a worker in these surroundings.
    async fn client(surroundings: PlainSockets) -> TcpStream {
        let (worker, pod) = fixture::worker(surroundings);
        let (client, accepted) = sockets().await;
        let caps = Caps { worker: Cap::new(1), pod: Cap::new(1), from_elsewhere: None };
        let (peer, slot) = (accepted.peer_addr().unwrap(), caps.try_slot().unwrap());
        spawn_local(serve(worker, pod, accepted, peer, slot));
        client
    }

    #[test]
    fn a_destination_outside_of_the_mesh_is_reached_as_it_is() {
        run(async {
            let surroundings = PlainSockets::to(Some(echo().await));
            let met = Rc::clone(&surroundings.met);
            let mut client = client(surroundings).await;
            client.write_all(b"hello").await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            assert_eq!(answer, "hello<done>");
            assert_eq!(*met.borrow(), [ConnectOutcome::Taken]);
        });
    }

    #[test]
    fn strict_egress_refuses_what_the_mesh_does_not_know() {
        run(async {
            let refused = Some(echo().await);
            let mut client = client(PlainSockets { refused, ..PlainSockets::to(refused) }).await;
            let read = client.read(&mut [0]).await;
            assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn who_wants_to_go_nowhere_or_where_nobody_is_gets_a_reset() {
        run(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let closed = listener.local_addr().unwrap();
            drop(listener);
            for destination in [None, Some(closed)] {
                let mut client = client(PlainSockets::to(destination)).await;
                let read = client.read(&mut [0]).await;
                assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{destination:?}");
            }
        });
    }
}
