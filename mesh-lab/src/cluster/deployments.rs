//! Deployments: as many pods as asked for, made from the template; a changed template replaces them once the
//! new ones are ready.

use std::{
    collections::BTreeSet,
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
};

use mesh_api::{
    manifest::{self, Kind},
    resource::{Deployment, Object},
};
use serde_json::{Value, json};

use super::{Placement, Store, Stored, complete, delete, key, store::StoreError};

/// Label by which Kubernetes, too, tells the pods of one template from those of the next.
const HASH_LABEL: &str = "pod-template-hash";

/// Makes and removes pods until each deployment has what it asks for.
pub fn reconcile(store: &Store, placement: &Placement) -> Result<(), StoreError> {
    for stored in store.list(Kind::Deployment) {
        if let Object::Deployment(deployment) = &stored.object {
            one(deployment, &stored.raw, store, placement)?;
        }
    }
    Ok(())
}

/// The pods that a deployment made, of this template or an earlier one.
pub fn pods_of<'a>(deployment: &Deployment, pods: &'a [Arc<Stored>]) -> Vec<&'a Stored> {
    let owned = |stored: &&Stored| {
        let metadata = stored.object.metadata();
        let set = |hash: &String| format!("{}-{hash}", deployment.metadata.name);
        let Some(set) = metadata.labels.get(HASH_LABEL).map(set) else { return false };
        metadata.namespace == deployment.metadata.namespace
            && metadata.owner_references.iter().any(|owner| owner.kind == "ReplicaSet" && owner.name == set)
    };
    pods.iter().map(AsRef::as_ref).filter(owned).collect()
}

fn one(deployment: &Deployment, raw: &Value, store: &Store, placement: &Placement) -> Result<(), StoreError> {
    let hash = template_hash(&raw["spec"]["template"]);
    let all = store.list(Kind::Pod);
    let pods = pods_of(deployment, &all);
    let alive =
        |stored: &&Stored| stored.pod().is_some_and(|pod| !pod.is_terminating() && !pod.is_terminal());
    let is_current = |stored: &&Stored| stored.object.metadata().labels.get(HASH_LABEL) == Some(&hash);
    let (mut current, old): (Vec<&Stored>, Vec<&Stored>) =
        pods.iter().copied().filter(alive).partition(is_current);
    let wanted = deployment.spec.replicas as usize;

    let names: BTreeSet<&str> = pods.iter().map(|stored| stored.object.metadata().name.as_str()).collect();
    let set = format!("{}-{hash}", deployment.metadata.name);
    let free = (0..).map(|n| format!("{set}-{n}")).filter(|name| !names.contains(name.as_str()));
    for name in free.take(wanted.saturating_sub(current.len())) {
        create(&name, &set, &hash, deployment, &raw["spec"]["template"], store, placement)?;
    }
    // The surplus: those that serve nobody yet go first.
    current.sort_by_key(|stored| !is_ready(stored));
    for surplus in current.iter().take(current.len().saturating_sub(wanted)) {
        delete::mark(surplus, store)?;
    }
    let ready = current.iter().filter(|stored| is_ready(stored)).count();
    if ready >= wanted {
        for outdated in &old {
            delete::mark(outdated, store)?;
        }
    }
    report(deployment, current.len() + old.len(), current.len(), ready, store)
}

fn is_ready(stored: &Stored) -> bool {
    stored.pod().is_some_and(mesh_api::resource::Pod::is_ready)
}

fn create(
    name: &str,
    set: &str,
    hash: &str,
    deployment: &Deployment,
    template: &Value,
    store: &Store,
    placement: &Placement,
) -> Result<(), StoreError> {
    let mut raw = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": template["metadata"]["labels"],
            "annotations": template["metadata"].get("annotations").unwrap_or(&json!({})),
            "ownerReferences": [{
                "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": set, "controller": true,
                "uid": deployment.metadata.uid,
            }],
        },
        "spec": template["spec"],
    });
    raw["metadata"]["labels"][HASH_LABEL] = hash.into();
    complete::metadata(&mut raw, &key(Kind::Pod, &deployment.metadata.namespace, name), None);
    let parsed = manifest::parse("template", &raw.to_string());
    let Some(Object::Pod(pod)) = parsed.objects.first().map(|located| &located.value) else {
        let problem = parsed.errors.first().map(ToString::to_string).unwrap_or_default();
        tracing::error!(deployment = %deployment.metadata.full_name(), problem, "the template makes no pod");
        return Ok(());
    };
    match complete::pod(&mut raw, pod, placement, store) {
        Ok(()) => store.put(raw, None),
        Err(unplaced) => {
            tracing::warn!(pod = name, problem = unplaced.problem, "a pod could not be placed");
            Ok(())
        }
    }
}

fn report(
    deployment: &Deployment,
    replicas: usize,
    updated: usize,
    ready: usize,
    store: &Store,
) -> Result<(), StoreError> {
    let key = key(Kind::Deployment, &deployment.metadata.namespace, &deployment.metadata.name);
    store.edit(&key, |raw| {
        raw["status"] = json!({
            "replicas": replicas, "updatedReplicas": updated, "readyReplicas": ready, "availableReplicas": ready,
        });
    })
}

/// Eight hexadecimal digits that change with the template.
fn template_hash(template: &Value) -> String {
    let mut hasher = DefaultHasher::new();
    template.to_string().hash(&mut hasher);
    format!("{:08x}", hasher.finish() >> 32)
}
