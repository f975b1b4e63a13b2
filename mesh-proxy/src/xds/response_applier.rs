//! Takes the control plane's responses into the store, and publishes the snapshots that they make.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use mesh_api::plan::{RejectedResource, Snapshot, Store, XdsResourceType};
use mesh_api::wire::xds::{CONTINUES, DeltaDiscoveryResponse};
use tokio::sync::watch;

use crate::inheritance::xds_journal::XdsJournal;

/// Takes responses into the store, and publishes the resulting snapshot.
pub(super) struct ResponseApplier {
    store: Arc<Mutex<Store>>,
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Follows the configuration in force.
    pub updates: watch::Sender<Arc<Snapshot>>,
    /// Whether there is a configuration: every required type has had its first response, or what the proxy
    /// before was told is in force.
    pub ready: watch::Sender<bool>,
    /// Required types without a whole response yet.
    missing: HashSet<&'static str>,
    journal: XdsJournal,
    /// See [`XdsConfig::release_memory`](super::XdsConfig::release_memory).
    release_memory: fn(),
    /// Responses taken since the start.
    pub responses: u64,
}

impl ResponseApplier {
    /// Creates one with an empty snapshot.
    pub fn new(store: Arc<Mutex<Store>>, journal: XdsJournal, release_memory: fn()) -> Self {
        let empty = Arc::new(Snapshot::default());
        Self {
            store,
            snapshot: Arc::new(ArcSwap::new(Arc::clone(&empty))),
            updates: watch::Sender::new(empty),
            ready: watch::Sender::new(false),
            missing: required(&XdsResourceType::ALL),
            journal,
            release_memory,
            responses: 0,
        }
    }

    /// Takes a response into the store, publishes the snapshot if it is complete with it, and has the
    /// journal say so. Returns the resources that are rejected.
    pub fn apply_response(&mut self, response: DeltaDiscoveryResponse) -> Vec<RejectedResource> {
        self.responses += 1;
        let continues = response.system_version_info.ends_with(CONTINUES);
        let entry = self.journal.encode_response(&response);
        let type_url = response.type_url;
        if XdsResourceType::from_type_url(&type_url).is_none() {
            tracing::warn!(type_url, "the control plane sent resources of a type that was not asked for");
            return Vec::new();
        }
        let rejected =
            self.lock_store().apply_response(&type_url, response.resources, response.removed_resources);
        if !continues {
            self.missing.remove(type_url.as_str());
        }
        // Nothing counts before all required types are complete.
        let complete = !continues && self.missing.is_empty();
        if complete {
            self.publish();
        }
        let store = Arc::clone(&self.store);
        let whole = || store.lock().unwrap_or_else(PoisonError::into_inner).contents();
        self.journal.append_or_rewrite(entry, complete, whole);
        rejected
    }

    fn publish(&self) {
        let snapshot = Arc::new(self.lock_store().snapshot());
        let was_ready = self.ready.send_replace(true);
        if !was_ready {
            // Taking in the whole of a mesh needs many times the memory that it takes to hold it.
            (self.release_memory)();
        }
        if was_ready && snapshot.generation() == self.snapshot.load().generation() {
            return;
        }
        self.snapshot.store(Arc::clone(&snapshot));
        tracing::debug!(generation = snapshot.generation(), "configuration in force");
        self.updates.send_replace(snapshot);
    }

    /// Locks the store of what has come.
    pub fn lock_store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn required(types: &[XdsResourceType]) -> HashSet<&'static str> {
    types.iter().filter(|it| it.required).map(|it| it.type_url).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inheritance::BequestSender;

    fn whole(of: XdsResourceType) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse { type_url: of.type_url.to_owned(), ..DeltaDiscoveryResponse::default() }
    }

    #[test]
    fn only_types_that_are_required_are_waited_for() {
        let mut publisher =
            ResponseApplier::new(Arc::default(), XdsJournal::new(BequestSender::without_successor()), || ());
        publisher.apply_response(whole(XdsResourceType::ADDRESS));
        assert!(!*publisher.ready.borrow(), "policies are required");
        let mut optional = XdsResourceType::AUTHORIZATION;
        optional.required = false;
        publisher.missing = required(&[XdsResourceType::ADDRESS, optional]);
        publisher.apply_response(whole(XdsResourceType::ADDRESS));
        assert!(*publisher.ready.borrow());
    }
}
