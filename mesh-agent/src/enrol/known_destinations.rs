//! Keeps the destinations that the kernel knows in line with the configuration.

use std::sync::Arc;

use mesh_api::plan::Snapshot;
use mesh_common::maps::MAX_DESTINATIONS;
use tokio::time::Instant;

use super::enroller::{EnrollerSetup, TIDY_EVERY};

/// What the kernel was last told of destinations.
#[derive(Default)]
pub struct KnownDestinations {
    /// The configuration whose destinations the kernel knows, once it knows any.
    learnt: Option<Arc<Snapshot>>,
    /// When the kernel last could not be told, for instance for lack of room.
    not_learnt: Option<Instant>,
}

impl KnownDestinations {
    /// Whether the kernel could not be told of everything the last time.
    pub fn is_incomplete(&self) -> bool {
        self.not_learnt.is_some()
    }

    /// Tells the kernel of destinations that came or went since the last time. The first time, and after a
    /// failure, all that it knows is read first, which takes a while in a large mesh.
    pub fn learn(&mut self, setup: &mut EnrollerSetup, snapshot: &Arc<Snapshot>) {
        // Trying again costs reading all that the kernel knows: not for each change.
        if self.not_learnt.is_some_and(|since| since.elapsed() < TIDY_EVERY) {
            return;
        }
        let node = &*setup.node;
        let result = match &self.learnt {
            Some(learnt) => {
                let touched = snapshot.reachable_ports_changed_since(learnt).into_iter();
                let changes = touched
                    .map(|ip| (ip, learnt.reachable_ports(ip, node), snapshot.reachable_ports(ip, node)));
                setup.destination_maps.apply_changes(changes.filter(|(_, was, is)| was != is).collect())
            }
            None => {
                let all =
                    snapshot.addresses().filter_map(|ip| Some((ip, snapshot.reachable_ports(ip, node)?)));
                setup.destination_maps.replace_all(all)
            }
        };
        setup.metrics.destinations_incomplete.set(i64::from(result.is_err()));
        self.learnt = result.is_ok().then(|| Arc::clone(snapshot));
        self.not_learnt = result.is_err().then(Instant::now);
        if let Err(error) = result {
            let addresses = snapshot.addresses().count();
            tracing::error!(%error, addresses, most = MAX_DESTINATIONS,
                            "not every destination of the mesh is known to the kernel: connections to the rest pass it by");
        }
        setup.metrics.generation.set(i64::try_from(snapshot.generation()).unwrap_or(i64::MAX));
    }
}
