//! What became of each policy, written on it: a condition, and an event when it was rejected.
//!
//! The resource itself says what was written last, so nothing is remembered here and nothing is written twice.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use mesh_api::manifest::ObjectKey;
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::warn;

use super::Cluster;
use super::objects::{Objects, Outcome, Version};
use crate::config::Configuration;

/// Type of the condition.
const ACCEPTED: &str = "nodemesh.io/Accepted";

/// What could not be written is tried again after this.
const RETRY: Duration = Duration::from_secs(10);

/// Writes of one round; the rest waits for the next, so that a thousand broken policies are no storm.
const MOST_AT_ONCE: usize = 50;

/// Longer messages help nobody, and the API server has a limit for events (1 KiB).
const LONGEST: usize = 1000;

/// Writes what changes for ever, while this replica leads.
pub async fn write(
    cluster: Cluster,
    objects: Objects,
    mut leads: watch::Receiver<bool>,
    mut configuration: watch::Receiver<Arc<Configuration>>,
) {
    let reporter =
        Reporter { controller: "nodemesh.io/mesh-control".into(), instance: Some(cluster.pod.clone()) };
    let events = Recorder::new(cluster.client.clone(), reporter);
    let mut written: HashMap<ObjectKey, Version> = HashMap::new();
    loop {
        if leads.wait_for(|leads| *leads).await.is_err() {
            return;
        }
        let due: Vec<_> = objects
            .outcomes()
            .into_iter()
            // The watch may be a moment behind what was just written.
            .filter(|outcome| is_due(outcome) && written.get(&outcome.key) != Some(&outcome.version))
            .take(MOST_AT_ONCE)
            .collect();
        for outcome in due {
            match tell(&cluster, &events, &outcome).await {
                Ok(()) => drop(written.insert(outcome.key, outcome.version)),
                Err(error) => warn!(resource = %outcome.key, %error, "status not written; trying again"),
            }
        }
        written.retain(|key, _| objects.has(key));
        tokio::select! {
            changed = configuration.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

/// Whether the resource does not say yet what became of it.
fn is_due(outcome: &Outcome) -> bool {
    let (status, reason, message) = judgement(outcome);
    !outcome.version.conditions.iter().any(|condition| {
        condition["type"] == ACCEPTED
            && condition["status"] == status
            && condition["reason"] == reason
            && condition["message"] == message
            && condition["observedGeneration"] == outcome.version.generation
    })
}

async fn tell(cluster: &Cluster, events: &Recorder, outcome: &Outcome) -> Result<(), kube::Error> {
    let key = &outcome.key;
    let (group, version) = outcome.version.api.split_once('/').unwrap_or_default();
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, key.kind.as_str()));
    let api: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), &key.namespace, &resource);
    let patch = json!({
        // Refused if somebody else wrote meanwhile: then the watch brings the new state, and it is done anew.
        "metadata": {"resourceVersion": outcome.version.resource},
        "status": {"conditions": conditions(outcome, Timestamp::now())},
    });
    api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(&patch)).await?;
    let (status, reason, message) = judgement(outcome);
    if status == "True" {
        return Ok(());
    }
    let event = Event {
        type_: EventType::Warning,
        reason: "Rejected".to_owned(),
        note: Some(message),
        action: reason.to_owned(),
        secondary: None,
    };
    let regarding = ObjectReference {
        api_version: Some(outcome.version.api.clone()),
        kind: Some(key.kind.as_str().to_owned()),
        namespace: Some(key.namespace.clone()),
        name: Some(key.name.clone()),
        uid: Some(outcome.version.uid.clone()),
        ..ObjectReference::default()
    };
    events.publish(&event, &regarding).await
}

/// The conditions with ours put right; other controllers' stay.
fn conditions(outcome: &Outcome, now: Timestamp) -> Vec<Value> {
    let (status, reason, message) = judgement(outcome);
    let ours = |condition: &&Value| condition["type"] == ACCEPTED;
    let before = outcome.version.conditions.iter().find(ours);
    let since = before
        .filter(|condition| condition["status"] == status)
        .and_then(|condition| condition["lastTransitionTime"].as_str())
        .map_or_else(|| format!("{now:.0}"), str::to_owned);
    let mut all: Vec<Value> =
        outcome.version.conditions.iter().filter(|condition| !ours(condition)).cloned().collect();
    all.push(json!({
        "type": ACCEPTED,
        "status": status,
        "reason": reason,
        "message": message,
        "lastTransitionTime": since,
        "observedGeneration": outcome.version.generation,
    }));
    all
}

/// Status, reason and message of the condition.
fn judgement(outcome: &Outcome) -> (&'static str, &'static str, String) {
    if outcome.errors.is_empty() {
        return ("True", "Accepted", "in force".to_owned());
    }
    let each = outcome.errors.iter().map(|error| {
        let field = error.field.as_deref().unwrap_or("resource");
        format!("{field}: {}; fix: {}", error.problem, error.fix)
    });
    let all = each.collect::<Vec<_>>().join(" | ");
    ("False", "Invalid", all.chars().take(LONGEST).collect())
}

#[cfg(test)]
mod tests {
    use mesh_api::manifest::{Kind, ManifestError};

    use super::*;

    fn outcome(errors: Vec<ManifestError>, conditions: Vec<Value>) -> Outcome {
        let key =
            ObjectKey { kind: Kind::AuthorizationPolicy, namespace: "shop".into(), name: "open".into() };
        let version = Version {
            api: "security.istio.io/v1".into(),
            uid: "u".into(),
            resource: "7".into(),
            generation: 2,
            conditions,
        };
        Outcome { key, version, errors }
    }

    fn mistake() -> ManifestError {
        ManifestError {
            file: "kubernetes".into(),
            line: 1,
            resource: None,
            field: Some("spec.action".into()),
            problem: "unknown action".into(),
            fix: "write ALLOW".into(),
        }
    }

    #[test]
    fn a_condition_is_written_once_and_others_stay() {
        let others = json!({"type": "Reconciled", "status": "True"});
        let first = outcome(vec![mistake()], vec![others.clone()]);
        assert!(is_due(&first));
        let written = conditions(&first, Timestamp::UNIX_EPOCH);
        assert_eq!(written[0], others);
        assert_eq!(written[1]["message"], "spec.action: unknown action; fix: write ALLOW");
        assert_eq!(written[1]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert!(!is_due(&outcome(vec![mistake()], written.clone())));
        let mended = outcome(Vec::new(), written);
        assert!(is_due(&mended));
        assert_eq!(conditions(&mended, Timestamp::UNIX_EPOCH).len(), 2);
    }
}
