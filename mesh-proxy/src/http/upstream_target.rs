//! Where a request goes: a service's endpoints, and connections to them.

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use bytes::BytesMut;
use mesh_api::plan::http_routes::HttpDestination;
use mesh_api::plan::outbound::{Destination, Reject, destination_of};
use mesh_api::plan::{AppProtocol, Endpoint, Endpoints, PortPolicy, Service, Snapshot, Workload};

use super::h1::Version;
use super::http_connection_context::HttpConnection;
use super::send_request::AttemptError;
use super::upstream_connection::{ServicePortSlot, UpstreamConnection};
use super::upstream_connections::UpstreamKey;
use crate::connect_to_endpoint::{
    ClientContext, ConnectOptions, connect_to_endpoint, expected_transport_name,
};
use crate::telemetry::RequestFlag;
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

/// A connection to an endpoint that was just opened.
pub(super) struct Opened {
    pub connection: UpstreamConnection,
    /// Bytes that were sent along.
    pub sent: usize,
}

impl TargetService {
    /// Finds out where a request goes, which came in that version; no destination: to the service that the
    /// client addresses. Errors: nowhere, and why.
    pub fn find(
        destination: Option<&HttpDestination>,
        (snapshot, workload): (&Snapshot, &Workload),
        original: SocketAddr,
        version: Version,
    ) -> Result<Self, (RequestFlag, String)> {
        let found = match destination {
            Some(destination) => destination.endpoints(snapshot, workload, original),
            None => destination_of(snapshot, workload, original),
        };
        match found {
            Destination::Service { service, port, policy, endpoints } => {
                let protocol = upstream_protocol(&service, port, version);
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

    /// Takes a slot below the limit of the service's port, if it has one. Errors: all are taken.
    pub fn take_slot(&self, worker: &Worker) -> Result<Option<ServicePortSlot>, AttemptError> {
        let Some(limit) = self.policy.pool.max_connections else { return Ok(None) };
        let key = (Arc::clone(&self.service.key), self.port);
        let slot = worker.shared.service_limits.try_take_slot(key, limit.get());
        slot.map(Some).ok_or(AttemptError::Overflow(limit.get()))
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

/// Returns what the endpoints of a service's port are spoken to in: what the port declares, else what the
/// client speaks.
fn upstream_protocol(service: &Service, port: u16, version: Version) -> UpstreamProtocol {
    match service.port(port).map(|port| port.protocol) {
        Some(AppProtocol::Http2 | AppProtocol::Grpc) => UpstreamProtocol::Http2,
        Some(AppProtocol::Http11) => UpstreamProtocol::Http1,
        _ if version == Version::Http2 => UpstreamProtocol::Http2,
        _ => UpstreamProtocol::Http1,
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
