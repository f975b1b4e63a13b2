//! Keeps the destinations in the kernel's maps, with the ports that have endpoints, in line with the
//! configuration.

use std::sync::Arc;
use std::time::Duration;

use mesh_api::plan::Snapshot;
use mesh_common::maps::MAX_DESTINATIONS;
use mesh_proxy::telemetry::AgentMetrics;
use tokio::time::Instant;

use crate::sys::ebpf::DestinationMaps;

/// Pause before the kernel is told again of what it could not take.
const RETRY_AFTER: Duration = Duration::from_secs(10);

/// The destinations that the kernel knows.
pub struct KernelDestinations {
    maps: DestinationMaps,
    node: Arc<str>,
    metrics: Arc<AgentMetrics>,
    /// The configuration whose destinations the kernel knows, once it knows any.
    learnt: Option<Arc<Snapshot>>,
    /// When the kernel last could not be told, for instance for lack of room.
    not_learnt: Option<Instant>,
}

impl KernelDestinations {
    /// Creates the destinations as seen from `node`, whose name decides which local endpoints count.
    pub fn new(maps: DestinationMaps, node: Arc<str>, metrics: Arc<AgentMetrics>) -> Self {
        Self { maps, node, metrics, learnt: None, not_learnt: None }
    }

    /// Whether the kernel could not be told of everything the last time.
    pub fn is_incomplete(&self) -> bool {
        self.not_learnt.is_some()
    }

    /// Tells the kernel of destinations that came or went since the last time. The first time, and after a
    /// failure, all that it knows is read first, which takes a while in a large mesh.
    pub fn update_from_snapshot(&mut self, snapshot: &Arc<Snapshot>) {
        // Trying again costs reading all that the kernel knows: not for each change.
        if self.not_learnt.is_some_and(|since| since.elapsed() < RETRY_AFTER) {
            return;
        }
        let node = &*self.node;
        let result = match &self.learnt {
            Some(learnt) => {
                let touched = snapshot.addresses_with_changed_ports_since(learnt).into_iter();
                let changes = touched.map(|ip| {
                    (ip, learnt.known_served_ports(ip, node), snapshot.known_served_ports(ip, node))
                });
                self.maps.apply_changes(changes.filter(|(_, was, is)| was != is).collect())
            }
            None => {
                let all =
                    snapshot.addresses().filter_map(|ip| Some((ip, snapshot.known_served_ports(ip, node)?)));
                self.maps.replace_all(all)
            }
        };
        self.metrics.destinations_incomplete.set(i64::from(result.is_err()));
        self.learnt = result.is_ok().then(|| Arc::clone(snapshot));
        self.not_learnt = result.is_err().then(Instant::now);
        if let Err(error) = result {
            let addresses = snapshot.addresses().count();
            tracing::error!(%error, addresses, most = MAX_DESTINATIONS,
                            "not every destination of the mesh is known to the kernel: connections to the rest pass it by");
        }
        self.metrics.generation.set(i64::try_from(snapshot.generation()).unwrap_or(i64::MAX));
    }
}
