//! The configuration that the proxy before was told, for use while the control plane can't be reached.

use std::fs::File;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use mesh_api::plan::{Snapshot, WaypointHandling};
use tokio::sync::{Notify, oneshot, watch};

use crate::inheritance::xds_journal;

/// How long the control plane is waited for first: what it sends is newer, and nobody else can have written
/// it.
const PATIENCE: Duration = Duration::from_millis(500);

/// How long it is waited for where another proxy serves meanwhile, so that waiting loses nothing. Whoever
/// supervises that proxy does not wait much longer for its end.
const PATIENCE_BESIDE: Duration = Duration::from_secs(10);

/// The configuration that the proxy before was told.
pub struct InheritedConfiguration {
    /// Its journal.
    pub file: File,
    /// Whether that proxy, or another, serves until this one does.
    pub beside: bool,
}

/// Where the inherited configuration is put into force.
pub(super) struct InheritedFallbackApplier {
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    pub updates: watch::Sender<Arc<Snapshot>>,
    pub ready: watch::Sender<bool>,
    /// Notified when the control plane could not be reached.
    pub unreachable: Arc<Notify>,
    /// How waypoints are treated, which is this proxy's own setting.
    pub waypoints: WaypointHandling,
}

impl InheritedFallbackApplier {
    /// Puts the inherited configuration into force when the control plane can't be reached or takes long,
    /// unless that has told something by then.
    pub async fn apply_if_unreachable(self, inherited: oneshot::Receiver<InheritedConfiguration>) {
        let Ok(InheritedConfiguration { file, beside }) = inherited.await else { return };
        let patience = if beside { PATIENCE_BESIDE } else { PATIENCE };
        let mut ready = self.ready.subscribe();
        tokio::select! {
            _ = ready.wait_for(|ready| *ready) => return,
            () = self.unreachable.notified(), if !beside => {}
            () = tokio::time::sleep(patience) => {}
        }
        match tokio::task::spawn_blocking(move || xds_journal::replay_into_store(&file)).await {
            Ok(Some(store)) => {
                let mut store = store.with_waypoint_handling(self.waypoints);
                self.put_in_force(Arc::new(store.snapshot_as_generation_0()));
            }
            Ok(None) | Err(_) => tracing::warn!("what the proxy before this one was told can't be read"),
        }
    }

    /// The control plane is told nothing of it: it lists everything anew, which replaces this as a whole.
    fn put_in_force(&self, snapshot: Arc<Snapshot>) {
        self.ready.send_if_modified(|ready| {
            if *ready {
                return false;
            }
            let workloads = snapshot.workload_count();
            tracing::warn!(
                workloads,
                "the control plane can't be reached: what the proxy before this one was told is in force"
            );
            self.snapshot.store(Arc::clone(&snapshot));
            self.updates.send_replace(snapshot);
            *ready = true;
            true
        });
    }
}
