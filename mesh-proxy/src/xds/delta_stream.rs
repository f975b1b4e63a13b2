//! One discovery stream: requests, responses and their acknowledgements (docs/wire.md, Requests and
//! responses).

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use arc_swap::ArcSwap;
use mesh_api::plan::{DiscoveryType, RejectedResource, Snapshot, Store};
use mesh_api::wire::xds::{CONTINUES, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node, Status};
use tokio::sync::{mpsc, watch};

use crate::inheritance::xds_journal::XdsJournal;

/// Most requests that wait to be sent: the first ones, and an answer to each response that came meanwhile.
const QUEUE: usize = 16;

/// Takes responses into the store, and publishes the resulting snapshot.
pub(super) struct SnapshotPublisher {
    store: Arc<Mutex<Store>>,
    /// The configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Follows the configuration in force.
    pub updates: watch::Sender<Arc<Snapshot>>,
    /// Whether there has been a first response of every required type.
    pub ready: watch::Sender<bool>,
    /// Required types without a whole response yet.
    missing: HashSet<&'static str>,
    journal: XdsJournal,
    /// See [`XdsConfig::release_memory`](super::XdsConfig::release_memory).
    release_memory: fn(),
    /// Responses taken since the start.
    pub responses: u64,
}

impl SnapshotPublisher {
    /// Creates one with an empty snapshot.
    pub fn new(store: Arc<Mutex<Store>>, journal: XdsJournal, release_memory: fn()) -> Self {
        let empty = Arc::new(Snapshot::default());
        Self {
            store,
            snapshot: Arc::new(ArcSwap::new(Arc::clone(&empty))),
            updates: watch::Sender::new(empty),
            ready: watch::Sender::new(false),
            missing: required(&DiscoveryType::ALL),
            journal,
            release_memory,
            responses: 0,
        }
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) -> Vec<RejectedResource> {
        self.responses += 1;
        let continues = response.system_version_info.ends_with(CONTINUES);
        let entry = self.journal.encode_response(&response);
        let type_url = response.type_url;
        if DiscoveryType::from_type_url(&type_url).is_none() {
            tracing::warn!(type_url, "the control plane sent resources of a type that was not asked for");
            return Vec::new();
        }
        let rejected = self.store().apply(&type_url, response.resources, response.removed_resources);
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
        self.journal.append_response(entry, complete, whole);
        rejected
    }

    fn publish(&self) {
        let snapshot = Arc::new(self.store().snapshot());
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

    fn store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Our end of a stream.
pub(super) struct DeltaStream {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
}

impl DeltaStream {
    /// Opens a stream with its first requests: everything of each type, less what is held already.
    pub fn open(node: &Node, held: &SnapshotPublisher) -> (Self, mpsc::Receiver<DeltaDiscoveryRequest>) {
        let (requests, receiver) = mpsc::channel(QUEUE);
        for discovery_type in DiscoveryType::ALL {
            let first = DeltaDiscoveryRequest {
                node: Some(node.clone()),
                type_url: discovery_type.type_url.to_owned(),
                initial_resource_versions: held.store().resource_versions(&discovery_type),
                ..DeltaDiscoveryRequest::default()
            };
            // There is room: the queue is longer than the list of types.
            let _ = requests.try_send(first);
        }
        (Self { requests }, receiver)
    }

    /// Takes a response and acknowledges or rejects it. Returns whether the stream is still open.
    pub async fn apply_and_ack(
        &self,
        publisher: &mut SnapshotPublisher,
        response: DeltaDiscoveryResponse,
    ) -> bool {
        let (type_url, response_nonce) = (response.type_url.clone(), response.nonce.clone());
        let rejected = publisher.take(response);
        for rejected in &rejected {
            tracing::warn!(r#type = type_url, name = rejected.name, reason = %rejected.reason, "resource rejected");
        }
        let answer = DeltaDiscoveryRequest {
            type_url,
            response_nonce,
            error_detail: complaint(&rejected),
            ..DeltaDiscoveryRequest::default()
        };
        self.requests.send(answer).await.is_ok()
    }
}

fn required(types: &[DiscoveryType]) -> HashSet<&'static str> {
    types.iter().filter(|it| it.required).map(|it| it.type_url).collect()
}

/// Returns `name: reason; name: reason` as a status; none if nothing was rejected.
fn complaint(rejected: &[RejectedResource]) -> Option<Status> {
    let texts: Vec<_> = rejected.iter().map(ToString::to_string).collect();
    (!texts.is_empty()).then(|| Status { message: texts.join("; "), ..Status::default() })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inheritance::Inheritance;

    fn whole(of: DiscoveryType) -> DeltaDiscoveryResponse {
        DeltaDiscoveryResponse { type_url: of.type_url.to_owned(), ..DeltaDiscoveryResponse::default() }
    }

    #[test]
    fn only_types_that_are_required_are_waited_for() {
        let mut publisher =
            SnapshotPublisher::new(Arc::default(), XdsJournal::new(Inheritance::without_successor()), || ());
        publisher.take(whole(DiscoveryType::ADDRESS));
        assert!(!*publisher.ready.borrow(), "policies are required");
        let mut optional = DiscoveryType::AUTHORIZATION;
        optional.required = false;
        publisher.missing = required(&[DiscoveryType::ADDRESS, optional]);
        publisher.take(whole(DiscoveryType::ADDRESS));
        assert!(*publisher.ready.borrow());
    }
}
