//! Who talks to whom: the same for a connection, for the list of those that are open, and for its lines.

use std::net::SocketAddr;
use std::sync::Arc;

use mesh_api::plan::Workload;

use super::labels::{Labels, Reporter, Via};

/// The two ends of a connection, the way between them, and the policy that it is under.
#[derive(Clone, Debug)]
pub struct Parties {
    /// Who they are; filled in as it becomes known.
    pub labels: Labels,
    /// The client's address as the application sees it.
    pub client: SocketAddr,
    /// Address that the client asked for.
    pub destination: SocketAddr,
    /// Address that the proxy connected to, once it did.
    pub upstream: Option<SocketAddr>,
    /// `mesh`, `hbone`, `plain` or `local`, once it is decided; `none` before an endpoint is tried.
    pub transport: &'static str,
    /// Policy that allowed it, if one had to.
    pub policy: Option<Arc<str>>,
}

impl Parties {
    /// Two ends of which no more is known than their addresses.
    pub fn new(reporter: Reporter, client: SocketAddr, destination: SocketAddr) -> Self {
        let labels = Labels {
            reporter,
            source: None,
            destination: None,
            service: None,
            source_identity: None,
            destination_identity: None,
            response_flag: None,
            path: Via::Proxy,
        };
        Self { labels, client, destination, upstream: None, transport: "plain", policy: None }
    }

    /// Fills in the client's workload.
    pub fn source(&mut self, workload: &Arc<Workload>) {
        self.labels.source = Some(Arc::clone(workload));
    }

    /// Fills in the server's workload.
    pub fn destination(&mut self, workload: &Arc<Workload>) {
        self.labels.destination = Some(Arc::clone(workload));
    }
}
