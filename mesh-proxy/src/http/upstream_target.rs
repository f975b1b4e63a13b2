//! Where a request goes: a service's endpoints, and connections to them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use mesh_api::plan::http_routes::HttpDestination;
use mesh_api::plan::outbound::{Destination, Reject, destination_of};
use mesh_api::plan::{AppProtocol, Endpoint, Endpoints, HttpPool, PortPolicy, Service, Snapshot, Workload};

use super::h1::{RequestHead, Version};
use super::http_connection_context::HttpConnection;
use super::send_request::AttemptError;
use super::upstream_connection::{ConnectionUse, ServicePortSlot, UpstreamConnection};
use super::upstream_connections::UpstreamKey;
use crate::balance::{PlaceInQueue, ServiceLimits, ServicePortKey, SlotOrPlace};
use crate::connect_to_endpoint::{
    ClientContext, ConnectOptions, connect_to_endpoint, expected_transport_name,
};
use crate::telemetry::{RequestFlag, RequestLimit};
use crate::tunnel::EarlyData;
use crate::worker::Worker;

/// What endpoints are spoken to in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UpstreamProtocol {
    /// HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, 3.3).
    Http2,
}

/// Where the attempts of a request go.
pub(super) struct TargetService {
    pub service: Arc<Service>,
    pub port: u16,
    pub policy: Arc<PortPolicy>,
    pub endpoints: Arc<Endpoints>,
    pub protocol: UpstreamProtocol,
}

/// What there is for a request that needs a connection.
pub(super) enum ConnectionSlot {
    /// A slot below the service's limit, if it has one.
    Taken(Option<ServicePortSlot>),
    /// A place in the queue for one.
    Queued(PlaceInQueue<ServicePortKey>),
}

/// A connection to an endpoint that was just opened.
pub(super) struct Opened {
    pub connection: UpstreamConnection,
    /// Bytes that were sent along.
    pub sent: usize,
}

impl TargetService {
    /// Finds out where a request goes; no destination: to the service that the client addresses. Errors:
    /// nowhere, and why.
    pub fn find(
        destination: Option<&HttpDestination>,
        (snapshot, workload): (&Snapshot, &Workload),
        original: SocketAddr,
        head: &RequestHead,
    ) -> Result<Self, (RequestFlag, String)> {
        let found = match destination {
            Some(destination) => destination.endpoints(snapshot, workload, original),
            None => destination_of(snapshot, workload, original),
        };
        match found {
            Destination::Service { service, port, policy, endpoints } => {
                let protocol = upstream_protocol(&service, port, &policy.pool.http, head);
                Ok(Self { service, port, policy, endpoints, protocol })
            }
            Destination::Reject(reject) => Err((flag_of(&reject), reject.to_string())),
            other @ (Destination::Passthrough | Destination::Workload(_)) => {
                Err((RequestFlag::NoCluster, format!("requests can't go {other}")))
            }
        }
    }

    /// Returns the key of the client's connections to an endpoint.
    pub fn upstream_key(&self, connection: &HttpConnection, endpoint: &Endpoint) -> UpstreamKey {
        UpstreamKey::new(&connection.pod, (&self.service, self.port), endpoint)
    }

    /// Returns how long its connections are of use.
    pub fn connection_use(&self) -> ConnectionUse {
        let pool = &self.policy.pool;
        ConnectionUse {
            idle_timeout: pool.http.idle_timeout.or(pool.idle_timeout),
            most_requests: pool.http.max_requests_per_connection,
        }
    }

    /// Takes a slot for a connection below the limit of the service's port, if it has one. Errors: all are
    /// taken, or others wait for one.
    pub fn try_take_connection(&self, worker: &Worker) -> Result<Option<ServicePortSlot>, AttemptError> {
        let Some(limit) = self.policy.pool.max_connections else { return Ok(None) };
        let connections = &limits(worker).connections;
        let slot = connections.try_take_slot_in_turn(self.key(), limit.get());
        slot.map(Some).ok_or(AttemptError::NoConnection(limit.get()))
    }

    /// The same, or a place in the queue for a slot. Errors: as many wait as may.
    pub fn take_connection(&self, worker: &Worker) -> Result<ConnectionSlot, AttemptError> {
        let pool = &self.policy.pool;
        let Some(limit) = pool.max_connections else { return Ok(ConnectionSlot::Taken(None)) };
        let most = pool.http.max_pending_requests.map_or(u32::MAX, NonZeroU32::get);
        match limits(worker).connections.take_slot_or_queue(self.key(), limit.get(), most) {
            SlotOrPlace::Slot(slot) => Ok(ConnectionSlot::Taken(Some(slot))),
            SlotOrPlace::Place(place) => Ok(ConnectionSlot::Queued(place)),
            SlotOrPlace::Full => Err(overflow(worker, RequestLimit::PendingRequests, most)),
        }
    }

    /// Counts a request below the limit of the service's port, if it has one. Errors: so many are under way.
    pub fn take_request(&self, worker: &Worker) -> Result<Option<ServicePortSlot>, AttemptError> {
        let limit = self.policy.pool.http.max_requests;
        if limit.is_none() && self.policy.retry_budget.is_none() {
            return Ok(None);
        }
        // A budget is a share of those that are counted.
        let most = limit.map_or(u32::MAX, NonZeroU32::get);
        let slot = limits(worker).requests.try_take_slot(self.key(), most);
        slot.map(Some).ok_or_else(|| overflow(worker, RequestLimit::Requests, most))
    }

    /// Counts a retry below the limit of the service's port, if it has one. Errors: which limit, and its
    /// number.
    pub fn take_retry(&self, worker: &Worker) -> Result<Option<ServicePortSlot>, (RequestLimit, u32)> {
        let (key, limits) = (self.key(), limits(worker));
        let (limit, most) = match (self.policy.retry_budget, self.policy.pool.http.max_retries) {
            (Some(budget), _) => {
                let (requests, (_, waiting)) =
                    (limits.requests.counts(&key).0, limits.connections.counts(&key));
                (RequestLimit::RetryBudget, budget.most(requests.saturating_add(waiting)))
            }
            (None, Some(most)) => (RequestLimit::Retries, most.get()),
            (None, None) => return Ok(None),
        };
        limits.retries.try_take_slot(key, most).map(Some).ok_or((limit, most))
    }

    fn key(&self) -> ServicePortKey {
        (Arc::clone(&self.service.key), self.port)
    }

    /// Returns the transport to an endpoint as the access log will name it, if it can be reached.
    pub fn expected_transport(
        &self,
        connection: &HttpConnection,
        workload: &Arc<Workload>,
        endpoint: &Endpoint,
    ) -> &'static str {
        let nothing = BytesMut::new();
        expected_transport_name(&self.client_context(connection, workload, &nothing), endpoint)
    }

    /// Opens a connection to an endpoint; `first` may go along with it. Errors: it can't be reached.
    pub async fn open(
        &self,
        connection: &HttpConnection,
        workload: &Arc<Workload>,
        endpoint: &Endpoint,
        first: &BytesMut,
    ) -> Result<Opened, AttemptError> {
        let pool = &self.policy.pool;
        let options = ConnectOptions { timeout: pool.connect_timeout, keepalive: pool.keepalive };
        let origin = self.client_context(connection, workload, first);
        match Box::pin(connect_to_endpoint(&origin, endpoint, options)).await {
            Ok(upstream) => {
                let sent = upstream.early_bytes_sent();
                Ok(Opened { connection: UpstreamConnection::new(upstream), sent })
            }
            Err(error) if origin.exposed.get() => Err(AttemptError::Reset(error.to_string())),
            Err(error) => Err(AttemptError::Connect(error)),
        }
    }

    fn client_context<'a>(
        &'a self,
        connection: &'a HttpConnection,
        workload: &'a Arc<Workload>,
        first: &'a BytesMut,
    ) -> ClientContext<'a> {
        let worker: &Rc<Worker> = &connection.worker;
        ClientContext {
            worker,
            pod: &connection.pod,
            workload,
            client: connection.client,
            service: Some(&self.service.hostname),
            early: EarlyData::Bytes(first),
            exposed: Cell::new(false),
        }
    }
}

fn limits(worker: &Worker) -> &ServiceLimits {
    &worker.shared.service_limits
}

/// Counts a request that a limit does not let through.
fn overflow(worker: &Worker, limit: RequestLimit, most: u32) -> AttemptError {
    worker.metrics.count_over_request_limit(limit);
    AttemptError::Overflow(limit, most)
}

/// Returns what the endpoints of a service's port are spoken to in: what the policy says, else what the port
/// declares, else what the client speaks. What may become a tunnel is not upgraded, since HTTP/2 has none.
fn upstream_protocol(service: &Service, port: u16, pool: &HttpPool, head: &RequestHead) -> UpstreamProtocol {
    let of_client =
        if head.version == Version::Http2 { UpstreamProtocol::Http2 } else { UpstreamProtocol::Http1 };
    if pool.uses_client_protocol {
        return of_client;
    }
    if pool.upgrades_to_http2 && head.upgrade.is_none() && !head.is_connect() {
        return UpstreamProtocol::Http2;
    }
    match service.port(port).map(|port| port.protocol) {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => UpstreamProtocol::Http2,
        Some(AppProtocol::Http11) => UpstreamProtocol::Http1,
        _ => of_client,
    }
}

fn flag_of(reject: &Reject) -> RequestFlag {
    match reject {
        Reject::NoEndpoint { .. } => RequestFlag::NoHealthyUpstream,
        Reject::NoSuchPort { .. }
        | Reject::NoSuchService { .. }
        | Reject::NoSuchSubset { .. }
        | Reject::Waypoint { .. }
        | Reject::MeshPort { .. } => RequestFlag::NoCluster,
    }
}
