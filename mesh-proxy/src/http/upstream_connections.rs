//! Idle connections to endpoints, kept for the next request. None is shared between pods: a connection on
//! which one pod's requests went never carries another's.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::EndpointKey;

use super::upstream_connection::UpstreamConnection;

/// How long a connection waits for a request. Servers close theirs after five seconds and more; one that is
/// closed while a request is on its way to it would cost that request.
const IDLE_TIME: Duration = Duration::from_secs(4);
/// Most idle connections from one pod to one endpoint. A new one costs a stream, and no round trip.
const MAX_IDLE: usize = 64;

/// The idle connections of one worker.
#[derive(Default)]
pub struct UpstreamConnections(RefCell<HashMap<Key, Vec<Idle>>>);

/// Client pod's uid and endpoint.
type Key = (Arc<str>, EndpointKey);

struct Idle {
    connection: UpstreamConnection,
    since: Instant,
}

impl UpstreamConnections {
    /// Takes the connection that was used last; none if there is none that can take a request.
    pub(super) async fn take(&self, pod: &Arc<str>, endpoint: &EndpointKey) -> Option<UpstreamConnection> {
        let key = (Arc::clone(pod), endpoint.clone());
        loop {
            let Idle { mut connection, since } = self.0.borrow_mut().get_mut(&key)?.pop()?;
            if since.elapsed() < IDLE_TIME && connection.is_usable().await {
                return Some(connection);
            }
            connection.close_in_order();
        }
    }

    /// Keeps a connection whose last response is complete.
    pub(super) fn keep(&self, pod: &Arc<str>, endpoint: EndpointKey, mut connection: UpstreamConnection) {
        connection.is_reused = true;
        if !connection.input.is_empty() {
            // What follows a response belongs to none.
            return connection.close_in_order();
        }
        // An idle connection holds no buffer.
        connection.input = bytes::BytesMut::new();
        let mut all = self.0.borrow_mut();
        let idle = all.entry((Arc::clone(pod), endpoint)).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since: Instant::now() });
        } else {
            connection.close_in_order();
        }
    }

    /// Closes a connection that counts against the limit of a service's port, so that another endpoint can
    /// have one. Returns whether there was one.
    pub(super) fn close_one_of(&self, service_port: &(Arc<str>, u16)) -> bool {
        let mut all = self.0.borrow_mut();
        let found = all.values_mut().find_map(|idle| {
            let index = idle.iter().position(|idle| idle.connection.counts_for(service_port))?;
            Some(idle.remove(index))
        });
        found.is_some()
    }

    /// Closes connections that have waited too long.
    pub fn close_idle(&self) {
        self.0.borrow_mut().retain(|_, idle| {
            let expired: Vec<_> = idle.extract_if(.., |idle| idle.since.elapsed() >= IDLE_TIME).collect();
            expired.into_iter().for_each(|idle| idle.connection.close_in_order());
            !idle.is_empty()
        });
    }

    /// Returns the number of idle connections.
    pub fn len(&self) -> usize {
        self.0.borrow().values().map(Vec::len).sum()
    }

    /// Whether there is no idle connection.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}
