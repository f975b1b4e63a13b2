//! Step 3 of a connection (see [the crate page](crate)): a pod opened it. Decides where it goes, opens the
//! way, relays, and records the outcome.

use std::cell::Cell;
use std::fmt::Display;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::http_routes::HttpRoutes;
use mesh_api::plan::outbound::{Destination, Reject, destination_of};
use mesh_api::plan::{
    ConnectionPool, Endpoint, EndpointId, Endpoints, HashKey, PortPolicy, Service, Workload,
};
use mesh_common::is_mesh_port;
use socket2::SockRef;
use tokio::net::TcpStream;

use super::balance::{
    ActiveConnection, AffinityKey, EndpointPick, EndpointsToSkip, KeyHash, PickBy, ServiceSlot,
};
use super::connect_to_endpoint::{
    ClientContext, ConnectOptions, Upstream, UpstreamError, connect_plain, connect_to_endpoint,
    expected_transport_name,
};
use super::connection_address_types::{ClientAddress, OriginalDestination, UpstreamAddress};
use super::http::HttpConnection;
use super::http::detect::detect_http;
use super::http::serve::serve_http;
use super::idle_and_duration_timeouts::LifetimeLimits;
use super::local_pod_identity::LocalPod;
use super::relay::{ByteMeter, SocketSide, reset_on_drop};
use super::stream::{LOCAL_TRANSPORT, Stream};
use super::surroundings::{ConnectOutcome, RequestedDestination};
use super::tunnel::EarlyData;
use super::worker::Worker;
use super::worker_and_pod_connection_limits::ConnectionSlot;
use crate::telemetry::{ConnectionDetails, ConnectionOutcome, ConnectionRecord, Reporter, ResponseFlag};

/// Most endpoints that are tried before the client's connection fails.
const TRIES: usize = 5;

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
    Refused(UpstreamError),
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
}

/// An open way to the destination, and the slots and limits that count while it is used.
struct Connected {
    upstream: Upstream,
    timeouts: Option<LifetimeLimits>,
    _slot: Option<ServiceSlot<(Arc<str>, u16)>>,
    _active: Option<ActiveConnection>,
}

/// Serves one connection that was accepted on a pod's outbound listener: opens the way, relays and records.
pub async fn serve_outbound(
    worker: Rc<Worker>,
    pod: Arc<LocalPod>,
    socket: TcpStream,
    peer: SocketAddr,
    _slot: ConnectionSlot,
) {
    // The listener's socket filter, which looks at SYNs, is inherited; without one nothing is lost.
    let _filter = SockRef::from(&socket).detach_filter();
    let opened = match worker.deferred.take_opened_outbound(&pod, &socket, peer) {
        Some(opened) => Some(opened),
        // Boxed, since it is needed only while opening: the connection may last for days.
        None => Box::pin(open_as_it_comes(&worker, &pod, &socket, peer)).await,
    };
    let opened = match opened {
        Some(OpenedOutbound::Http(http)) => match detect_http(&socket, http.is_declared).await {
            Some(protocol) => {
                let HttpOutbound { workload, client, original, .. } = *http;
                let connection = HttpConnection { worker, pod, workload, client, original };
                return serve_http(protocol, connection, socket).await;
            }
            None => {
                let request = ConnectRequest { reads_http: false, ..http.request };
                Box::pin(connect_or_record_failure(&worker, &pod, &request, EarlyData::Socket(&socket))).await
            }
        },
        other => other,
    };
    let Some(OpenedOutbound::Relay(relay)) = opened else { return reset_on_drop(&socket) };
    let RelayOutbound { mut record, connected } = *relay;
    let meter = ByteMeter::default();
    meter.also_count_in(record.record_opened());
    let outcome = carry(socket, connected, &meter).await;
    record.record_outcome(&outcome, meter.bytes_from_and_to_client());
}

/// Opens the way for a connection that was accepted first, without deferred accept.
async fn open_as_it_comes(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    socket: &TcpStream,
    peer: SocketAddr,
) -> Option<OpenedOutbound> {
    match worker.surroundings.original_destination(socket) {
        Ok(Some(asked)) => {
            connect_or_record_failure(
                worker,
                pod,
                &ConnectRequest { asked, port: peer.port(), reads_http: true },
                EarlyData::Socket(socket),
            )
            .await
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
pub async fn connect_or_record_failure(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    request: &ConnectRequest,
    early: EarlyData<'_>,
) -> Option<OpenedOutbound> {
    let original = OriginalDestination::new(request.asked.destination);
    let client =
        ClientAddress::new(SocketAddr::new(pod.same_family_address_or_given(original.ip()), request.port));
    let details = ConnectionDetails::new(Reporter::Source, client.address(), original.address());
    let mut record = ConnectionRecord::new(&worker.metrics, details);
    // Until an endpoint is tried.
    record.details.transport = "none";
    let connecting = Connecting { early, client, original, request };
    match connect(worker, pod, &connecting, &mut record).await {
        Ok(Way::Relay(connected)) => {
            worker.surroundings.note_connect_result(pod, original.address(), ConnectOutcome::Taken);
            Some(OpenedOutbound::Relay(Box::new(RelayOutbound { record, connected })))
        }
        Ok(Way::Http { workload, is_declared }) => {
            // Its requests are recorded instead.
            record.end_without_outcome();
            let http = HttpOutbound { workload, client, original, request: *request, is_declared };
            Some(OpenedOutbound::Http(Box::new(http)))
        }
        Err(error) => {
            if matches!(error, Error::Refused(_)) {
                worker.surroundings.note_connect_result(pod, original.address(), ConnectOutcome::Refused);
            }
            tracing::debug!(%pod, %client, %original, %error, "outbound connection not made");
            record
                .record_outcome(&ConnectionOutcome::Failed(error.response_flag(), error.to_string()), (0, 0));
            None
        }
    }
}

/// A connection that a pod asks for.
#[derive(Clone, Copy)]
pub struct ConnectRequest {
    /// The destination that it asks for.
    pub asked: RequestedDestination,
    /// The client's port.
    pub port: u16,
    /// Whether it is read as HTTP if the destination has routes.
    pub reads_http: bool,
}

/// What becomes of a connection once it is accepted.
pub enum OpenedOutbound {
    /// The way is open. Dropping it records the connection as abandoned.
    Relay(Box<RelayOutbound>),
    /// Its requests are read, and each has a way of its own.
    Http(Box<HttpOutbound>),
}

/// An open way for a connection that is relayed.
pub struct RelayOutbound {
    record: ConnectionRecord,
    connected: Connected,
}

/// A connection that is read as HTTP, should it speak that.
pub struct HttpOutbound {
    workload: Arc<Workload>,
    client: ClientAddress,
    original: OriginalDestination,
    request: ConnectRequest,
    is_declared: bool,
}

/// The way of a connection.
enum Way {
    Relay(Connected),
    /// None yet: requests of this client have one each. `is_declared` is whether the port is declared to
    /// speak HTTP/1.
    Http {
        workload: Arc<Workload>,
        is_declared: bool,
    },
}

/// A connection to be connected.
struct Connecting<'a> {
    /// Bytes that the client has sent already; none with deferred accept.
    early: EarlyData<'a>,
    client: ClientAddress,
    original: OriginalDestination,
    request: &'a ConnectRequest,
}

async fn connect(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    connecting: &Connecting<'_>,
    record: &mut ConnectionRecord,
) -> Result<Way, Error> {
    let Connecting { early, client, original, request } = *connecting;
    let workload = worker.wait_for_workload(pod).await.ok_or(Error::UnknownPod)?;
    record.details.set_source_workload(&workload);
    record.details.labels.source_identity = Some(pod.identity.clone());
    let exposed = Cell::new(false);
    let mut origin =
        ClientContext { worker, pod, workload: &workload, client, service: None, early, exposed };
    let snapshot = worker.snapshot();
    let routes = HttpRoutes::find(&snapshot, &workload, original.address()).filter(|_| request.reads_http);
    if let Some(routes) = routes {
        return Ok(Way::Http { workload, is_declared: routes.is_declared });
    }
    let connected = match destination_of(&snapshot, &workload, original.address()) {
        Destination::Reject(reject) => Err(Error::Rejected(reject)),
        Destination::Passthrough => pass_through(worker, pod, original, record).await,
        Destination::Workload(endpoint) => {
            ask_for_direct_ways(worker, pod, original, std::slice::from_ref(&endpoint));
            let reached = reach(&origin, &endpoint, default_options(), record).await;
            let upstream = reached.map_err(|error| Error::of_all(error, true))?;
            Ok(Connected { upstream, timeouts: None, _slot: None, _active: None })
        }
        Destination::Service { service, port, policy, endpoints } => {
            record.details.labels.service = Some(Arc::clone(&service));
            origin.service = Some(&service.hostname);
            ask_for_direct_ways(worker, pod, original, &endpoints);
            let not_direct = request.asked.not_direct;
            let way = To { service: &service, port, policy: &policy, endpoints: &endpoints, not_direct };
            balance(&origin, &way, record).await
        }
    };
    connected.map(Way::Relay)
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
    let known = worker.snapshot().contains_address(original.ip());
    if !known && worker.surroundings.strict_egress_refuses(pod, original.address()) {
        return Err(Error::StrictEgress(original.address()));
    }
    let to = UpstreamAddress::new(original.address());
    record.details.upstream = Some(to.address());
    record.details.transport = "plain";
    let ConnectOptions { timeout, keepalive } = default_options();
    let connect = connect_plain(worker, pod, to, keepalive);
    let socket = tokio::time::timeout(timeout, connect)
        .await
        .map_err(|_| UpstreamError::Timeout(timeout))?
        .map_err(UpstreamError::Connect)?;
    let upstream = Upstream::Stream(Stream::from_socket(socket));
    Ok(Connected { upstream, timeouts: None, _slot: None, _active: None })
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
    origin: &ClientContext<'_>,
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
            let connections = &worker.shared.service_limits.connections;
            // Requests may wait for one.
            Some(connections.try_take_slot_in_turn(key, limit.get()).ok_or_else(full)?)
        }
    };
    let options = ConnectOptions { timeout: policy.pool.connect_timeout, keepalive: policy.pool.keepalive };
    let mut excluded = worker.shared.outliers.ejected_endpoints(endpoints, policy, Instant::now());
    let own = Own::of(origin.workload, to);
    if to.not_direct && own.is_none() {
        leave_out_near(worker, endpoints, &mut excluded);
    }
    let first = own.as_ref().and_then(|own| own.choose(worker, endpoints, &excluded));
    let mut last = Error::AllEjected(Arc::clone(&service.hostname));
    let mut refused = 0;
    let by = PickBy::key_or_balancer(client_key(origin, policy), policy);
    for EndpointPick { endpoint, key, active } in
        worker.picker.pick_endpoints(endpoints, by, excluded, first).take(TRIES)
    {
        let result = reach(origin, endpoint, options, record).await;
        report(worker, &key, endpoints, policy, &result);
        match result {
            Ok(upstream) => {
                if let Some(own) = own {
                    own.keep(worker, &key);
                }
                let timeouts = LifetimeLimits::from_policy(&policy.pool);
                return Ok(Connected { upstream, timeouts, _slot: slot, _active: Some(active) });
            }
            Err(error) if error.stops_retries() || origin.exposed.get() => return Err(error.into()),
            Err(error) => {
                tracing::debug!(%endpoint, %error, "trying another endpoint");
                refused += usize::from(error.is_connection_refused());
                last = Error::of_all(error, refused == endpoints.len());
            }
        }
    }
    Err(last)
}

/// Returns the key of a connection, if its policy hashes what a connection has.
fn client_key(origin: &ClientContext<'_>, policy: &PortPolicy) -> Option<KeyHash> {
    let is_hashed = matches!(policy.hash, Some(HashKey::SourceIp));
    is_hashed.then(|| KeyHash::of_client(origin.client.address().ip()))
}

/// Session affinity of one connection: its client, and how long that keeps an endpoint.
struct Own {
    client: AffinityKey,
    timeout: Duration,
}

impl Own {
    fn of(client: &Workload, to: &To<'_>) -> Option<Self> {
        let (client, timeout) =
            AffinityKey::key_and_timeout_if_enabled(client, to.service, to.policy, to.port)?;
        Some(Self { client, timeout })
    }

    fn choose(&self, worker: &Worker, endpoints: &Endpoints, excluded: &EndpointsToSkip) -> Option<usize> {
        worker.shared.affinity.choose_endpoint_index(&self.client, endpoints, excluded, Instant::now())
    }

    fn keep(self, worker: &Worker, endpoint: &EndpointId) {
        worker.shared.affinity.remember_endpoint(self.client, endpoint, self.timeout, Instant::now());
    }
}

/// Leaves out the endpoints on this node, which have got their share from the kernel already. Without any
/// others they stay: the kernel may have left them out for a failure.
fn leave_out_near(worker: &Worker, endpoints: &Endpoints, excluded: &mut EndpointsToSkip) {
    let (near, far): (Vec<_>, Vec<_>) = (0..endpoints.len())
        .filter(|index| !excluded.contains(*index))
        .partition(|index| worker.local_pod_by_address(endpoints[*index].address.ip()).is_some());
    if !far.is_empty() {
        near.into_iter().for_each(|index| excluded.add(index));
    }
}

/// Has the kernel take the pod's next connections directly, if one of the endpoints is on this node.
fn ask_for_direct_ways(
    worker: &Worker,
    pod: &LocalPod,
    original: OriginalDestination,
    endpoints: &[Endpoint],
) {
    let is_near = |endpoint: &Endpoint| worker.local_pod_by_address(endpoint.address.ip()).is_some();
    if endpoints.iter().any(is_near) {
        worker.surroundings.suggest_direct_connection(pod, original.address());
    }
}

/// Reports the result of a connect to outlier detection. A denial by policy says nothing of the endpoint.
fn report(
    worker: &Worker,
    key: &EndpointId,
    among: &Endpoints,
    policy: &PortPolicy,
    result: &Result<Upstream, UpstreamError>,
) {
    let failure: Option<&dyn Display> = match result {
        Ok(_) => None,
        Err(error) if error.stops_retries() => return,
        Err(error) => Some(error),
    };
    worker.shared.outliers.report_result(key, among, policy, failure, Instant::now());
}

/// Opens the way to one endpoint and records where it leads. Errors: the endpoint can't be reached.
async fn reach(
    origin: &ClientContext<'_>,
    endpoint: &Endpoint,
    options: ConnectOptions,
    record: &mut ConnectionRecord,
) -> Result<Upstream, UpstreamError> {
    let started = Instant::now();
    record.details.set_destination_workload(&endpoint.workload);
    record.details.upstream = Some(endpoint.address);
    record.details.transport = expected_transport_name(origin, endpoint);
    let opened = connect_to_endpoint(origin, endpoint, options).await;
    let upstream = opened.inspect_err(|error| {
        record.details.transport = error.transport_of_refused_stream().unwrap_or(record.details.transport);
    })?;
    origin.worker.metrics.observe_connect_time(started.elapsed());
    note(&upstream, &endpoint.workload, record);
    Ok(upstream)
}

fn note(upstream: &Upstream, workload: &Workload, record: &mut ConnectionRecord) {
    match upstream {
        Upstream::Stream(stream) => record.details.transport = stream.transport_name(),
        Upstream::Local(local) => {
            record.details.transport = LOCAL_TRANSPORT;
            record.details.policy = local.policy_that_allowed_it();
        }
    }
    if !matches!(upstream, Upstream::Stream(Stream::Socket(_))) {
        record.details.labels.destination_identity = Some(workload.identity.clone());
    }
}

async fn carry(socket: TcpStream, connected: Connected, meter: &ByteMeter) -> ConnectionOutcome {
    let Connected { upstream, timeouts, _slot, _active } = connected;
    match timeouts {
        None => join(socket, upstream, meter).await,
        // Boxed: few connections have a bound.
        Some(timeouts) => {
            Box::pin(timeouts.relay_until_timeout(socket, meter, |socket| join(socket, upstream, meter)))
                .await
        }
    }
}

/// Relays until both sides are done.
pub async fn join(socket: TcpStream, upstream: Upstream, meter: &ByteMeter) -> ConnectionOutcome {
    let result = match upstream {
        Upstream::Stream(stream) => stream.relay(socket, SocketSide::Client, meter).await,
        // Boxed, like the relay between two sockets: few connections need it.
        Upstream::Local(local) => {
            return Box::pin(local.relay_until_revoked(Stream::Socket(socket), meter)).await;
        }
    };
    result.into()
}

/// Returns the options of a connection that no policy is about.
fn default_options() -> ConnectOptions {
    ConnectOptions { timeout: ConnectionPool::default().connect_timeout, keepalive: None }
}

impl Error {
    /// Wraps why the last endpoint could not be reached; `refused` is whether all endpoints have refused.
    fn of_all(error: UpstreamError, refused: bool) -> Self {
        if refused && error.is_connection_refused() { Self::Refused(error) } else { Self::Upstream(error) }
    }

    fn response_flag(&self) -> ResponseFlag {
        match self {
            Self::Upstream(error) | Self::Refused(error) => error.response_flag(),
            Self::UnknownPod => ResponseFlag::IdentityError,
            Self::TooMany { .. } => ResponseFlag::Overflow,
            Self::Rejected(_) | Self::StrictEgress(_) | Self::MeshPort(_) | Self::AllEjected(_) => {
                ResponseFlag::ConnectFailed
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::spawn_local;

    use super::*;
    use crate::fixture::{self, PlainSurroundings, run_as_worker, spawn_echo_server, tcp_pair};
    use crate::worker_and_pod_connection_limits::{ConnectionLimit, PodConnectionLimits};

    /// A client's connection to a worker in these surroundings.
    async fn client(surroundings: PlainSurroundings) -> TcpStream {
        let (worker, pod) = fixture::worker_and_pod(surroundings);
        let (client, accepted) = tcp_pair().await;
        let limits = PodConnectionLimits {
            worker: ConnectionLimit::new(1),
            pod: ConnectionLimit::new(1),
            from_elsewhere: None,
        };
        let (peer, slot) = (accepted.peer_addr().unwrap(), limits.try_take_slot().unwrap());
        spawn_local(serve_outbound(worker, pod, accepted, peer, slot));
        client
    }

    #[test]
    fn a_destination_outside_of_the_mesh_is_reached_as_it_is() {
        run_as_worker(async {
            let surroundings = PlainSurroundings::with_destination(Some(spawn_echo_server().await));
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
        run_as_worker(async {
            let refused = Some(spawn_echo_server().await);
            let mut client =
                client(PlainSurroundings { refused, ..PlainSurroundings::with_destination(refused) }).await;
            let read = client.read(&mut [0]).await;
            assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset);
        });
    }

    #[test]
    fn who_wants_to_go_nowhere_or_where_nobody_is_gets_a_reset() {
        run_as_worker(async {
            let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
            let closed = listener.local_addr().unwrap();
            drop(listener);
            for destination in [None, Some(closed)] {
                let mut client = client(PlainSurroundings::with_destination(destination)).await;
                let read = client.read(&mut [0]).await;
                assert_eq!(read.unwrap_err().kind(), std::io::ErrorKind::ConnectionReset, "{destination:?}");
            }
        });
    }

    #[test]
    fn a_service_that_has_its_connections_is_flagged_as_envoy_does() {
        let full = Error::TooMany { service: "web.app.svc.cluster.local".into(), port: 80, limit: 1 };
        assert_eq!(full.response_flag(), ResponseFlag::Overflow);
    }
}
