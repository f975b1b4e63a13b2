//! What a control plane sends: responses of delta xDS, taken over one after the other.

use std::collections::HashSet;

use mesh_api::plan::{Snapshot, Store, XdsResourceType};
use mesh_api::wire::type_url;
use mesh_api::wire::xds::DeltaDiscoveryResponse;
use prost::Message;

use crate::agree;

/// Responses, each behind its length. The store keeps what it says that it holds and nothing else, and what
/// it decides on it is what the policies say.
pub fn check(mut data: &[u8]) {
    let mut store = Store::default();
    let mut generation = 0;
    while let Ok(response) = DeltaDiscoveryResponse::decode_length_delimited(&mut data) {
        let names: HashSet<_> = response.resources.iter().map(|resource| resource.name.clone()).collect();
        let rejected =
            store.apply_response(&response.type_url, response.resources, response.removed_resources);
        for rejected in rejected {
            assert!(names.contains(&rejected.name), "what is rejected was sent");
            assert!(!rejected.reason.to_string().is_empty());
        }
        let snapshot = store.snapshot();
        assert!(snapshot.generation() >= generation);
        generation = snapshot.generation();
    }
    let snapshot = store.snapshot();
    // Every state is the last one of some input.
    agree::check(&store, &snapshot);
    assert_eq!(snapshot.generation(), generation.max(1), "nothing has changed since");
    check_copy(&store, &snapshot);
    check_removal(store);
}

/// A store that is sent all of it at once holds the same.
fn check_copy(store: &Store, snapshot: &Snapshot) {
    let mut copy = Store::default();
    for of in XdsResourceType::ALL {
        let rejected =
            copy.apply_response(of.type_url, store.contents().resources(&of).collect(), Vec::new());
        assert!(rejected.is_empty() || of.type_url == type_url::AUTHORIZATION, "{rejected:?}");
        assert_eq!(copy.resource_versions(&of), store.resource_versions(&of));
    }
    let copied = copy.snapshot();
    assert_eq!(copied.workload_count(), snapshot.workload_count());
    assert_eq!(copied.service_count(), snapshot.service_count());
    assert_eq!(copied.all_policies().len(), snapshot.all_policies().len());
    for workload in snapshot.workloads() {
        assert_eq!(copied.workload(&workload.uid), Some(workload));
    }
    let policies: HashSet<_> = copied.all_policies().map(|policy| format!("{policy:?}")).collect();
    assert!(snapshot.all_policies().all(|policy| policies.contains(&format!("{policy:?}"))));
    let services: HashSet<_> = copied.services().map(|service| format!("{service:?}")).collect();
    assert!(snapshot.services().all(|service| services.contains(&format!("{service:?}"))));
}

/// Whatever it lists can be taken away again, and then nothing is left.
fn check_removal(mut store: Store) {
    for of in XdsResourceType::ALL {
        let names = store.resource_versions(&of).into_keys().collect();
        assert_eq!(store.apply_response(of.type_url, Vec::new(), names), []);
        assert!(store.resource_versions(&of).is_empty());
    }
    let nothing = store.snapshot();
    assert_eq!((nothing.workload_count(), nothing.service_count(), nothing.all_policies().len()), (0, 0, 0));
    assert_eq!((nothing.addresses().count(), nothing.service_vip_ranges().count()), (0, 0));
}
