//! `apply`: manifests in, objects stored; what is wrong is reported, and the good rest takes effect.

use mesh_api::{
    manifest::{self, Kind, Located, ManifestError, ObjectKey, ParsedManifest},
    resource::{Deployment, Object, Pod},
};
use serde_json::Value;

use super::{
    Placement, Store, Stored,
    complete::{self, Unplaced},
    key,
    store::StoreError,
};
use crate::api::{Change, Document, Outcome, Report};

/// Applies manifests to the store.
pub fn apply(documents: &[Document], store: &Store, placement: &Placement) -> Report {
    let mut parsed = parse(documents);
    // What others live in comes first, whatever the order of the files.
    parsed
        .objects
        .sort_by_key(|located| !matches!(located.value.kind(), Kind::Namespace | Kind::ServiceAccount));
    let mut report = Report { errors: parsed.errors, warnings: parsed.warnings, changes: Vec::new() };
    for located in parsed.objects {
        let key = located.value.key();
        match one(&located, &key, store, placement) {
            Ok(outcome) => report.changes.push(Change { resource: key.to_string(), outcome }),
            Err(fault) => report.errors.push(fault.at(&located, &key)),
        }
    }
    report
}

/// Reads all files as one set, so that an object given twice is noticed.
pub fn parse(documents: &[Document]) -> ParsedManifest {
    let mut parsed = ParsedManifest::default();
    for document in documents {
        parsed.merge(manifest::parse(&document.file, &document.text));
    }
    parsed
}

/// Why a good manifest cannot take effect here and now.
#[derive(Debug)]
enum Fault {
    Unplaced(Unplaced),
    Terminating,
    PodSpecChanged,
    ForeignNode,
    Store(StoreError),
}

impl From<Unplaced> for Fault {
    fn from(unplaced: Unplaced) -> Self {
        Self::Unplaced(unplaced)
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Fault {
    fn at(self, located: &Located<Object>, key: &ObjectKey) -> ManifestError {
        let (field, problem, fix) = match self {
            Self::Unplaced(unplaced) => (Some(unplaced.field), unplaced.problem, unplaced.fix),
            Self::Terminating => {
                (None, "an object of that name is being deleted".into(), "wait until it is gone".into())
            }
            Self::PodSpecChanged => (
                Some("spec"),
                "the spec of a running pod cannot be changed".into(),
                "delete the pod first".into(),
            ),
            Self::ForeignNode => (
                Some("metadata.name"),
                "the lab has no node of that name, and makes its nodes itself".into(),
                "label one of the lab's own, or start the lab with more".into(),
            ),
            Self::Store(error @ StoreError::NameTooLong { most, .. }) => (
                Some("metadata.name"),
                error.to_string(),
                format!("give it a name of at most {most} characters"),
            ),
            Self::Store(error) => (None, error.to_string(), "see the daemon's log".into()),
        };
        ManifestError {
            file: located.file.to_string(),
            line: located.line,
            resource: Some(key.to_string()),
            field: field.map(str::to_owned),
            problem,
            fix,
        }
    }
}

fn one(
    located: &Located<Object>,
    key: &ObjectKey,
    store: &Store,
    placement: &Placement,
) -> Result<Outcome, Fault> {
    let old = store.find(key);
    let old = old.as_deref();
    if old.is_some_and(is_terminating) {
        return Err(Fault::Terminating);
    }
    if old.and_then(|old| old.applied.as_ref()) == Some(&located.raw) {
        return Ok(Outcome::Unchanged);
    }
    ensure_namespace(key, store)?;
    let mut raw = located.raw.clone();
    complete::metadata(&mut raw, key, old);
    match (&located.value, old) {
        (Object::Pod(pod), None) => complete::pod(&mut raw, pod, placement, store)?,
        (Object::Pod(_), Some(old)) => raw = relabelled_pod(&raw, old)?,
        (Object::Service(service), old) => complete::service(&mut raw, service, old, placement, store)?,
        (Object::Deployment(deployment), _) => check_template(deployment, placement, store)?,
        (Object::Node(_), Some(old)) => raw = relabelled_node(&raw, old),
        (Object::Node(_), None) => return Err(Fault::ForeignNode),
        _ => {}
    }
    if let (Some(old), true) = (old, raw["status"].is_null()) {
        raw["status"] = old.raw["status"].clone();
    }
    store.put(without_null_status(raw), Some(located.raw.clone()))?;
    Ok(if old.is_some() { Outcome::Configured } else { Outcome::Created })
}

fn is_terminating(stored: &Stored) -> bool {
    stored.object.metadata().deletion_timestamp.is_some()
}

/// A namespace that nobody wrote down is made, without labels: what the lab is given runs.
fn ensure_namespace(object: &ObjectKey, store: &Store) -> Result<(), StoreError> {
    let namespace = &object.namespace;
    if namespace.is_empty() || store.find(&key(Kind::Namespace, "", namespace)).is_some() {
        return Ok(());
    }
    store.put(complete::namespace(namespace), None)
}

/// The pod as it is, with the labels and annotations of `new`; nothing else of a running pod can change.
fn relabelled_pod(new: &Value, old: &Stored) -> Result<Value, Fault> {
    if old.applied.as_ref().is_none_or(|applied| applied["spec"] != new["spec"]) {
        return Err(Fault::PodSpecChanged);
    }
    let mut raw = old.raw.clone();
    for field in ["labels", "annotations"] {
        raw["metadata"][field] = match &new["metadata"][field] {
            Value::Null => Value::Object(serde_json::Map::new()),
            given => given.clone(),
        };
    }
    Ok(raw)
}

/// The node as it is, with the labels of `new` added.
fn relabelled_node(new: &Value, old: &Stored) -> Value {
    let mut raw = old.raw.clone();
    for (label, value) in new["metadata"]["labels"].as_object().into_iter().flatten() {
        raw["metadata"]["labels"][label] = value.clone();
    }
    raw
}

/// A template whose pods could not be placed is refused now, where its author sees it.
fn check_template(deployment: &Deployment, placement: &Placement, store: &Store) -> Result<(), Unplaced> {
    let template = &deployment.spec.template;
    let pod = Pod {
        metadata: template.metadata.clone(),
        spec: template.spec.clone(),
        status: mesh_api::resource::pod::PodStatus::default(),
    };
    placement.node(&pod, store).map(drop).map_err(|unplaced| Unplaced {
        field: if unplaced.field == "spec.nodeName" { "spec.template.spec.nodeName" } else { unplaced.field },
        ..unplaced
    })
}

fn without_null_status(mut raw: Value) -> Value {
    if let Some(map) = raw.as_object_mut().filter(|map| map.get("status").is_some_and(Value::is_null)) {
        map.remove("status");
    }
    raw
}
