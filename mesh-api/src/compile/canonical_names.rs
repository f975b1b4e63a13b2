//! Names that telemetry knows a pod by: those of its owner and of its canonical service.

use crate::resource::{Metadata, Pod};

/// Name of what the pod was made for: its Deployment, `CronJob` or other controller; its own if it has none.
pub(super) fn workload_name(pod: &Pod) -> &str {
    let metadata = &pod.metadata;
    let Some(owner) = metadata.owner_references.iter().find(|owner| owner.controller) else {
        return &metadata.name;
    };
    let above = match owner.kind.as_str() {
        "ReplicaSet" => without_template_hash(&owner.name, metadata),
        "Job" => without_schedule(&owner.name),
        _ => None,
    };
    above.unwrap_or(&owner.name)
}

/// Name of the pod's canonical service, by the labels that Istio looks at.
pub(super) fn canonical_name(pod: &Pod) -> &str {
    first(&pod.metadata, &["service.istio.io/canonical-name", "app.kubernetes.io/name", "app"])
        .unwrap_or_else(|| workload_name(pod))
}

/// Revision of the pod's canonical service.
pub(super) fn canonical_revision(pod: &Pod) -> &str {
    first(&pod.metadata, &["service.istio.io/canonical-revision", "app.kubernetes.io/version", "version"])
        .unwrap_or("latest")
}

fn first<'a>(metadata: &'a Metadata, labels: &[&str]) -> Option<&'a str> {
    let mut values = labels.iter().filter_map(|label| metadata.labels.get(*label));
    values.find(|value| !value.is_empty()).map(String::as_str)
}

/// A Deployment's `ReplicaSet` is named after it and the hash that its pods are labelled with.
fn without_template_hash<'a>(name: &'a str, pod: &Metadata) -> Option<&'a str> {
    let hash = pod.labels.get("pod-template-hash")?;
    name.strip_suffix(hash.as_str())?.strip_suffix('-')
}

/// A `CronJob`'s Job is named after it and the time (minutes or, formerly, seconds since 1970).
fn without_schedule(name: &str) -> Option<&str> {
    let (name, time) = name.rsplit_once('-')?;
    ((8..=10).contains(&time.len()) && time.bytes().all(|b| b.is_ascii_digit())).then_some(name)
}
