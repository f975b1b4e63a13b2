//! Who is connected, and how far each has come.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use mesh_api::admin::ConnectedAgent;

use crate::metrics::Metrics;

/// All streams that are open.
pub struct Agents {
    next: AtomicU64,
    open: Mutex<HashMap<u64, Arc<Agent>>>,
    metrics: Arc<Metrics>,
}

/// One agent's stream.
pub struct Agent {
    /// Node that it authenticated as.
    pub node: Arc<str>,
    /// Its end of the connection.
    pub address: SocketAddr,
    since: Instant,
    unacknowledged: AtomicUsize,
    last_nack: Mutex<Option<String>>,
}

/// Keeps an agent listed as long as its stream lives.
pub struct Registration {
    /// The agent.
    pub agent: Arc<Agent>,
    agents: Arc<Agents>,
    key: u64,
}

impl Agents {
    /// Nobody yet.
    pub fn new(metrics: Arc<Metrics>) -> Self {
        Self { next: AtomicU64::new(0), open: Mutex::default(), metrics }
    }

    /// Lists an agent until the registration is dropped.
    pub fn register(self: &Arc<Self>, node: Arc<str>, address: SocketAddr) -> Registration {
        let key = self.next.fetch_add(1, Ordering::Relaxed);
        let agent = Arc::new(Agent {
            node,
            address,
            since: Instant::now(),
            unacknowledged: AtomicUsize::new(0),
            last_nack: Mutex::default(),
        });
        self.open.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&agent));
        self.metrics.agents.inc();
        Registration { agent, agents: Arc::clone(self), key }
    }

    /// Everybody, for the admin endpoint; by node.
    pub fn links(&self) -> Vec<ConnectedAgent> {
        let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let mut links: Vec<_> = open.values().map(|agent| agent.link()).collect();
        links.sort_by(|a, b| (&a.node, &a.address).cmp(&(&b.node, &b.address)));
        links
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.agents.open.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.key);
        self.agents.metrics.agents.dec();
    }
}

impl Agent {
    /// Notes how many resources were sent and not answered yet.
    pub fn note_unacknowledged(&self, count: usize) {
        self.unacknowledged.store(count, Ordering::Relaxed);
    }

    /// Notes what the agent rejected, in its words, which are shown on a terminal.
    pub fn note_nack(&self, text: &str) {
        *self.last_nack.lock().unwrap_or_else(PoisonError::into_inner) = Some(mesh_log::escaped(text));
    }

    fn link(&self) -> ConnectedAgent {
        ConnectedAgent {
            node: self.node.to_string(),
            address: SocketAddr::new(self.address.ip().to_canonical(), self.address.port()).to_string(),
            connected_seconds: self.since.elapsed().as_secs(),
            unacknowledged: self.unacknowledged.load(Ordering::Relaxed),
            last_nack: self.last_nack.lock().unwrap_or_else(PoisonError::into_inner).clone(),
        }
    }
}
