//! `delete`: objects out. Pods go when their processes have ended, everything else at once.

use mesh_api::{
    manifest::{Kind, ManifestError, ObjectKey},
    resource::Object,
};

use super::{Store, Stored, apply, deployments, now, store::StoreError};
use crate::api::{Change, Document, Outcome, Report};

/// Deletes what manifests name. Also returns the pods that are going, for who wants to wait for them.
pub fn delete(documents: &[Document], store: &Store) -> (Report, Vec<ObjectKey>) {
    let mut parsed = apply::parse(documents);
    // A namespace takes with it what is in it, so it goes last.
    parsed.objects.sort_by_key(|located| located.value.kind() == Kind::Namespace);
    let mut report = Report { errors: parsed.errors, warnings: parsed.warnings, changes: Vec::new() };
    let mut going = Vec::new();
    for located in parsed.objects {
        let key = located.value.key();
        let failed = |problem: String, fix: &str| ManifestError {
            file: located.file.to_string(),
            line: located.line,
            resource: Some(key.to_string()),
            field: None,
            problem,
            fix: fix.to_owned(),
        };
        match one(&key, store) {
            Ok(Some(pods)) => {
                report.changes.push(Change { resource: key.to_string(), outcome: Outcome::Deleted });
                going.extend(pods);
            }
            Ok(None) => {
                report.errors.push(failed("there is no such object".into(), "nothing is left to delete"));
            }
            Err(error) => report.errors.push(failed(error.to_string(), "see the daemon's log")),
        }
    }
    (report, going)
}

/// Deletes one object with what belongs to it. `None` if there is none, or else the pods that are going.
pub fn one(key: &ObjectKey, store: &Store) -> Result<Option<Vec<ObjectKey>>, StoreError> {
    let Some(stored) = store.find(key) else { return Ok(None) };
    let mut going = Vec::new();
    match &stored.object {
        Object::Pod(_) => going.push(mark(&stored, store)?),
        Object::Namespace(_) => {
            for member in store.in_namespace(&key.name) {
                match member.object.kind() {
                    Kind::Pod => going.push(mark(&member, store)?),
                    _ => store.remove(&member.object.key(), None)?,
                }
            }
            store.remove(key, None)?;
        }
        Object::Deployment(deployment) => {
            store.remove(key, None)?;
            for pod in deployments::pods_of(deployment, &store.list(Kind::Pod)) {
                going.push(mark(pod, store)?);
            }
        }
        _ => store.remove(key, None)?,
    }
    Ok(Some(going))
}

/// Marks a pod as being deleted; its node's kubelet does the rest.
pub fn mark(pod: &Stored, store: &Store) -> Result<ObjectKey, StoreError> {
    let key = pod.object.key();
    store.edit(&key, |raw| {
        if raw["metadata"]["deletionTimestamp"].is_null() {
            raw["metadata"]["deletionTimestamp"] = now().into();
        }
    })?;
    Ok(key)
}
