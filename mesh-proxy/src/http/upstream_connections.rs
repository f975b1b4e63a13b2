//! Idle connections to endpoints, kept for the next request. None is shared between pods: a connection on
//! which one pod's requests went never carries another's.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::{Endpoint, EndpointKey, Service, TunnelProtocol};

use super::upstream_connection::UpstreamConnection;
use crate::local_pod::LocalPod;

/// How long a connection waits for a request. Servers close theirs after five seconds and more; one that is
/// closed while a request is on its way to it would cost that request.
const IDLE_TIME: Duration = Duration::from_secs(4);
/// How often connections that have waited too long are looked for, while there are requests.
const SWEEP_EVERY: Duration = Duration::from_secs(1);
/// Most idle connections of one pod to one endpoint. A new one costs a stream, and no round trip.
const MAX_IDLE_EACH: usize = 64;
/// Most idle connections of a worker.
const MAX_IDLE: usize = 4096;

/// The idle connections of one worker.
#[derive(Default)]
pub struct UpstreamConnections {
    idle: RefCell<HashMap<UpstreamKey, Vec<Idle>>>,
    /// Number of all.
    count: Cell<usize>,
    swept: Cell<Option<Instant>>,
}

/// For whom a connection was made, and where it leads.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct UpstreamKey {
    /// The client pod's uid.
    pod: Arc<str>,
    /// Key of the service, which the server's node is told, and its port.
    service: (Arc<str>, u16),
    endpoint: EndpointKey,
    /// Whether it is reached over mutual TLS.
    is_encrypted: bool,
}

impl UpstreamKey {
    /// Creates the key of a pod's connections to an endpoint of a service's port.
    pub fn new(pod: &LocalPod, (service, port): (&Service, u16), endpoint: &Endpoint) -> Self {
        Self {
            pod: Arc::clone(&pod.uid),
            service: (Arc::clone(&service.key), port),
            endpoint: endpoint.key(),
            is_encrypted: endpoint.tunnel_protocol == TunnelProtocol::Hbone,
        }
    }
}

struct Idle {
    connection: UpstreamConnection,
    since: Instant,
}

impl UpstreamConnections {
    /// Takes the connection that was used last; none if there is none that can take a request.
    pub(super) async fn take(&self, key: &UpstreamKey) -> Option<UpstreamConnection> {
        loop {
            let Idle { mut connection, since } = self.idle.borrow_mut().get_mut(key)?.pop()?;
            self.count.set(self.count.get() - 1);
            if since.elapsed() < IDLE_TIME && connection.is_usable().await {
                return Some(connection);
            }
            connection.close_in_order();
        }
    }

    /// Keeps a connection whose last response is complete.
    pub(super) fn keep(&self, key: UpstreamKey, mut connection: UpstreamConnection) {
        connection.is_reused = true;
        connection.release_slot();
        if !connection.input.is_empty() {
            // What follows a response belongs to none.
            return connection.close_in_order();
        }
        // An idle connection holds no buffer.
        connection.input = bytes::BytesMut::new();
        if self.swept.get().is_none_or(|swept| swept.elapsed() > SWEEP_EVERY) {
            self.close_idle();
        }
        let mut all = self.idle.borrow_mut();
        let idle = all.entry(key).or_default();
        if idle.len() < MAX_IDLE_EACH && self.count.get() < MAX_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
            self.count.set(self.count.get() + 1);
        } else {
            connection.close_in_order();
        }
    }

    /// Closes connections that have waited too long.
    pub fn close_idle(&self) {
        self.swept.set(Some(Instant::now()));
        self.idle.borrow_mut().retain(|_, idle| {
            let expired: Vec<_> = idle.extract_if(.., |idle| idle.since.elapsed() >= IDLE_TIME).collect();
            self.count.set(self.count.get() - expired.len());
            expired.into_iter().for_each(|idle| idle.connection.close_in_order());
            !idle.is_empty()
        });
    }

    /// Returns the number of idle connections.
    pub fn len(&self) -> usize {
        self.count.get()
    }

    /// Whether there is no idle connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
