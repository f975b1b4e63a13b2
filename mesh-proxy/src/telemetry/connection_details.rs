//! Who talks to whom, for a connection's record, the list of open connections and the access log.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::plan::Workload;

use super::traffic_labels::{CarriedBy, Reporter, TrafficLabels};

/// The two ends of a connection, the way between them, and the policy that it is under.
#[derive(Clone, Debug)]
pub struct ConnectionDetails {
    /// Labels of both ends; filled in as they become known.
    pub labels: TrafficLabels,
    /// The client's address as the application sees it.
    pub client: SocketAddr,
    /// The address that the client asked for.
    pub destination: SocketAddr,
    /// The address that the proxy connects to, once it is decided.
    pub upstream: Option<SocketAddr>,
    /// `mesh`, `hbone`, `plain` or `local`, once it is decided; `none` before an endpoint is tried.
    pub transport: &'static str,
    /// Policy that allowed the connection, if one had to.
    pub policy: Option<Arc<str>>,
}

impl ConnectionDetails {
    /// Creates the details of a connection of which only the addresses are known, with `plain` as transport.
    pub fn new(reporter: Reporter, client: SocketAddr, destination: SocketAddr) -> Self {
        let labels = TrafficLabels {
            reporter,
            source: None,
            destination: None,
            service: None,
            source_identity: None,
            destination_identity: None,
            response_flag: None,
            path: CarriedBy::Proxy,
        };
        Self { labels, client, destination, upstream: None, transport: "plain", policy: None }
    }

    /// Fills in the client's workload.
    pub fn set_source_workload(&mut self, workload: &Arc<Workload>) {
        self.labels.source = Some(Arc::clone(workload));
    }

    /// Fills in the server's workload.
    pub fn set_destination_workload(&mut self, workload: &Arc<Workload>) {
        self.labels.destination = Some(Arc::clone(workload));
    }
}
