//! The destinations of a route, and the endpoints that each stands for.

use std::net::SocketAddr;
use std::sync::Arc;

use http::StatusCode;

use super::HeaderEdits;
use crate::plan::outbound::{self, Destination, Reject};
use crate::plan::snapshot::Snapshot;
use crate::plan::workload::Workload;

/// A share of a route's requests.
#[derive(Debug, PartialEq, Eq)]
pub struct HttpDestination {
    /// Namespace and host name of the service; none if the host is no service's.
    pub service: Option<(Arc<str>, Arc<str>)>,
    /// The host as it was written.
    pub host: Arc<str>,
    /// Subset of the service; none: all endpoints.
    pub subset: Option<Arc<str>>,
    /// Port of the service; none: its only one, else the one that the client connects to.
    pub port: Option<u16>,
    /// Share in the sum of the route's weights.
    pub weight: u32,
    /// Changes of a request's headers.
    pub request_edits: HeaderEdits,
    /// Changes of a response's headers.
    pub response_edits: HeaderEdits,
    /// Requests that fall on it get this status, and go nowhere; none: they go to the service.
    pub status: Option<StatusCode>,
}

impl HttpDestination {
    /// Returns where requests go that `source` sends to the address `original`: a service with its eligible
    /// endpoints, or a rejection.
    pub fn endpoints(&self, snapshot: &Snapshot, source: &Workload, original: SocketAddr) -> Destination {
        let found = self.service.as_ref();
        let Some(service) = found.and_then(|(namespace, name)| snapshot.service_by_name(namespace, name))
        else {
            return Destination::Reject(Reject::NoSuchService { host: Arc::clone(&self.host) });
        };
        let port = match (self.port, &*service.ports) {
            (Some(port), _) => port,
            (None, [only]) => only.port,
            (None, _) => original.port(),
        };
        let original = SocketAddr::new(original.ip().to_canonical(), port);
        outbound::to_service_subset(snapshot, source, &service, original, self.subset.as_deref())
    }
}
