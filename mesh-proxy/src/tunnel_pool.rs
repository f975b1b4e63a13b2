//! Connections between nodes, shared by streams: each worker has a set of them per source pod and
//! destination.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::future::Future;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use mesh_api::identity::SpiffeId;

use super::tunnel::Tunnel;
use crate::certs::{VerifiedPeer, WorkloadCertificate};

/// Idle timeout of a connection without streams (docs/wire.md, Connections).
const IDLE: Duration = Duration::from_mins(5);

/// Streams share connections by this key: who connects (and from which address, since the other end's policy
/// may look at it), and to where.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct TunnelKey {
    /// Uid of the source pod, which its identity and addresses go with.
    pub source: Arc<str>,
    /// Address of the destination's mesh port.
    pub destination: SocketAddr,
    /// Uid of the destination workload, so that an address which another one has now is not taken for its.
    pub workload: Arc<str>,
}

/// One worker's connections to pods of other nodes.
#[derive(Default)]
pub struct TunnelPool {
    destinations: RefCell<HashMap<TunnelKey, Rc<Destination>>>,
}

#[derive(Default)]
struct Destination {
    connections: RefCell<Vec<Rc<PooledTunnel>>>,
    /// Held while a connection is made, so that a burst of streams makes one and not one each.
    opening: Mutex<()>,
}

/// A connection to a pod of another node.
pub struct PooledTunnel {
    /// Opens streams on it.
    pub connection: Tunnel,
    peer: VerifiedPeer,
    identity: Arc<WorkloadCertificate>,
    closed: Rc<Cell<bool>>,
    used: Cell<Instant>,
}

/// Marks a pooled connection as closed.
pub struct ClosedFlag(Rc<Cell<bool>>);

impl ClosedFlag {
    /// Marks it; call this when the connection is over.
    pub fn mark_closed(self) {
        self.0.set(true);
    }
}

impl PooledTunnel {
    /// Puts no new streams on the connection, after one failed there. Open streams go on.
    pub fn retire(&self) {
        self.closed.set(true);
    }

    /// Whether new streams may use the connection: it is open, was made with the certificate `identity`, and
    /// its peer's identity is still valid. So peers check a renewed certificate of ours.
    fn counts(&self, identity: &Arc<WorkloadCertificate>) -> bool {
        !self.closed.get() && Arc::ptr_eq(&self.identity, identity) && self.peer.is_valid()
    }
}

impl TunnelPool {
    /// Returns a connection with room for a stream to one of the `expected` identities, or makes one with
    /// `open`. Errors: those of `open`.
    pub async fn get_or_open<E, F>(
        &self,
        key: TunnelKey,
        identity: &Arc<WorkloadCertificate>,
        expected: &[SpiffeId],
        open: impl FnOnce(ClosedFlag) -> F,
    ) -> Result<Rc<PooledTunnel>, E>
    where
        F: Future<Output = Result<(Tunnel, VerifiedPeer), E>>,
    {
        let destination = Rc::clone(self.destinations.borrow_mut().entry(key).or_default());
        if let Some(pooled) = destination.usable(identity, expected) {
            return Ok(pooled);
        }
        let _one_at_a_time = destination.opening.lock().await;
        if let Some(pooled) = destination.usable(identity, expected) {
            return Ok(pooled);
        }
        let closed = Rc::new(Cell::new(false));
        let (connection, peer) = open(ClosedFlag(Rc::clone(&closed))).await?;
        let identity = Arc::clone(identity);
        let pooled =
            Rc::new(PooledTunnel { connection, peer, identity, closed, used: Cell::new(Instant::now()) });
        destination.connections.borrow_mut().push(Rc::clone(&pooled));
        Ok(pooled)
    }

    /// Drops connections that are over, or have been idle for five minutes.
    pub fn drop_closed_and_idle(&self, now: Instant) {
        self.destinations.borrow_mut().retain(|_, destination| {
            destination.connections.borrow_mut().retain(|pooled| {
                let streams = pooled.connection.stream_count();
                if streams > 0 {
                    pooled.used.set(now);
                }
                !pooled.closed.get() && now.duration_since(pooled.used.get()) < IDLE
            });
            !destination.connections.borrow().is_empty() || destination.opening.try_lock().is_err()
        });
    }

    /// Returns the number of open connections.
    pub fn len(&self) -> usize {
        self.destinations.borrow().values().map(|destination| destination.connections.borrow().len()).sum()
    }

    /// Whether no connection is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl Destination {
    fn usable(&self, identity: &Arc<WorkloadCertificate>, expected: &[SpiffeId]) -> Option<Rc<PooledTunnel>> {
        let mut connections = self.connections.borrow_mut();
        // A connection that takes no new streams lives on as long as its streams hold it.
        connections.retain(|pooled| pooled.counts(identity));
        let fits =
            |pooled: &&Rc<PooledTunnel>| pooled.connection.has_room() && expected.contains(pooled.peer.id());
        let pooled = connections.iter().find(fits)?;
        pooled.used.set(Instant::now());
        Some(Rc::clone(pooled))
    }
}

#[cfg(test)]
mod tests;
