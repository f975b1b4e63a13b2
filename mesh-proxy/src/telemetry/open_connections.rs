//! The list of open connections, for the admin interface.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mesh_api::admin::ConnectionStatus;
use mesh_api::plan::Workload;

use super::connection_details::ConnectionDetails;

/// An open connection.
#[derive(Clone, Debug)]
pub struct OpenConnection {
    /// Its two ends.
    pub details: ConnectionDetails,
    /// When it was accepted.
    pub since: Instant,
}

/// The open connections of one worker.
#[derive(Debug, Default)]
pub(super) struct OpenConnections {
    connections: Mutex<HashMap<u64, OpenConnection>>,
    next: AtomicU64,
}

impl OpenConnections {
    pub(super) fn add(&self, connection: OpenConnection) -> u64 {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).insert(id, connection);
        id
    }

    pub(super) fn remove(&self, id: u64) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.remove(&id);
        // After a burst the memory is freed too.
        if connections.capacity() > 1024 && connections.len() < connections.capacity() / 8 {
            connections.shrink_to_fit();
        }
    }

    pub(super) fn len(&self) -> usize {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Lists the open connections. The worker waits only while a few of them are copied, not while text is
    /// made of them.
    pub(super) fn list_statuses(&self) -> Vec<ConnectionStatus> {
        /// Connections that are copied at a time.
        const FEW: usize = 128;
        let lock = || self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<u64> = lock().keys().copied().collect();
        let copies = |few: &[u64]| -> Vec<OpenConnection> {
            let open = lock();
            few.iter().filter_map(|id| open.get(id).cloned()).collect()
        };
        all.chunks(FEW).flat_map(copies).map(|open| status(&open)).collect()
    }
}

fn status(open: &OpenConnection) -> ConnectionStatus {
    let name = |workload: &Option<Arc<Workload>>| {
        workload.as_ref().map(|workload| format!("{}/{}", workload.namespace, workload.name))
    };
    let OpenConnection { details, since } = open;
    let labels = &details.labels;
    ConnectionStatus {
        direction: labels.reporter.direction().to_owned(),
        source: details.client.to_string(),
        source_workload: name(&labels.source),
        source_identity: labels.source_identity.as_ref().map(ToString::to_string),
        destination: details.destination.to_string(),
        destination_workload: name(&labels.destination),
        destination_service: labels.service.as_ref().map(|service| service.hostname.to_string()),
        upstream: details.upstream.unwrap_or(details.destination).to_string(),
        transport: details.transport.to_owned(),
        policy: details.policy.as_ref().map(ToString::to_string),
        age_seconds: since.elapsed().as_secs(),
    }
}
