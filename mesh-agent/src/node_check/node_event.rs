//! Events on the Kubernetes node about what it lacks.
//!
//! The check runs again as long as something is missing. The first run makes an event, later ones count it
//! up. The kube client can do that only within one process, so here the event's name is made from its text,
//! and a run that finds it counts it up.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime;
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::{ObjectMeta, Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use super::CheckedRequirement;
use crate::connect_to_kubernetes;
use crate::truncate_event_note::truncate_event_note;

/// Timeout of everything. The check's result is its output and exit status; nobody should wait longer for an
/// event.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Namespace of events about objects without one.
const NAMESPACE: &str = "default";

/// Makes an event about what `node` lacks, or counts up the one that says so. A failure is printed on
/// standard error and changes nothing.
pub fn publish_missing(node: &str, missing: &[&CheckedRequirement]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let told = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let publishing = async { tokio::time::timeout(TIMEOUT, publish(node, missing)).await };
        match runtime.block_on(publishing) {
            Ok(published) => published.map_err(|error| error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        }
    });
    if let Err(error) = told {
        mesh_log::remark(format_args!("mesh-agent: no event on the node: {error}"));
    }
}

async fn publish(node: &str, missing: &[&CheckedRequirement]) -> Result<(), kube::Error> {
    let event = event(node, &describe_missing(missing));
    let name = event.metadata.name.clone().unwrap_or_default();
    let events: Api<Event> = Api::namespaced(connect_to_kubernetes::connect().await?, NAMESPACE);
    match events.create(&PostParams::default(), &event).await {
        Err(kube::Error::Api(status)) if status.is_already_exists() => count(&events, &name).await,
        made => made.map(drop),
    }
}

/// An agent may change events and not read them: an empty change returns the event.
async fn count(events: &Api<Event>, name: &str) -> Result<(), kube::Error> {
    let how = PatchParams::default();
    let there = events.patch(name, &how, &Patch::Merge(json!({}))).await?;
    events.patch(name, &how, &Patch::Merge(once_more(&there))).await.map(drop)
}

/// Returns the change that counts an event up.
fn once_more(event: &Event) -> Value {
    let count = event.series.as_ref().map_or(1, |series| series.count) + 1;
    json!({"series": {"count": count, "lastObservedTime": MicroTime(Timestamp::now())}})
}

fn event(node: &str, words: &str) -> Event {
    let note = truncate_event_note(words);
    let mut hash = DefaultHasher::new();
    note.hash(&mut hash);
    Event {
        metadata: ObjectMeta {
            name: Some(format!("{node}.mesh-agent.{:016x}", hash.finish())),
            namespace: Some(NAMESPACE.to_owned()),
            ..ObjectMeta::default()
        },
        type_: Some("Warning".to_owned()),
        reason: Some("MeshAgentCannotRun".to_owned()),
        note: Some(note),
        action: Some("Check".to_owned()),
        event_time: Some(MicroTime(Timestamp::now())),
        reporting_controller: Some("nodemesh.io/mesh-agent".to_owned()),
        reporting_instance: Some(node.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Node".to_owned()),
            name: Some(node.to_owned()),
            // Kubelets refer to their nodes so, and `kubectl describe` finds the event by it.
            uid: Some(node.to_owned()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

/// Returns what is missing, in one line.
pub fn describe_missing(missing: &[&CheckedRequirement]) -> String {
    let each = missing.iter().map(|need| format!("{}: {}", need.name, need.detail));
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_is_named_with_what_was_found() {
        let need = |name, detail: &str| CheckedRequirement {
            name,
            required: true,
            found: false,
            detail: detail.to_owned(),
            without: "nothing works",
        };
        let (first, second) = (need("kernel", "4.19 is too old"), need("BTF", "no file"));
        assert_eq!(describe_missing(&[&first, &second]), "kernel: 4.19 is too old; BTF: no file");
    }

    #[test]
    fn the_same_words_are_the_same_event_and_are_counted() {
        let name = |node: &str, words: &str| event(node, words).metadata.name.unwrap();
        assert_eq!(name("node1", "no BTF"), name("node1", "no BTF"));
        assert_ne!(name("node1", "no BTF"), name("node1", "no cgroup"));
        assert_ne!(name("node1", "no BTF"), name("node2", "no BTF"));
        let mut there = event("node1", "no BTF");
        for expected in 2..4 {
            let patch = once_more(&there);
            assert_eq!(patch["series"]["count"], expected);
            there.series = serde_json::from_value(patch["series"].clone()).unwrap();
        }
    }
}
