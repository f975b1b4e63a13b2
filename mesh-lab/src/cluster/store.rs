//! The objects, each kept as it is written and as it is typed, and mirrored into the control plane's
//! directory.

use std::{
    collections::BTreeMap,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use mesh_api::{
    manifest::{self, Kind, ObjectKey},
    resource::{Object, Pod},
};
use serde_json::Value;
use tokio::sync::watch;

use crate::host::{HostError, files};

/// An object.
#[derive(Clone, Debug)]
pub struct Stored {
    /// Typed.
    pub object: Object,
    /// As written, completed with what the lab adds (uid, addresses, status).
    pub raw: Value,
    /// As its user applied it; absent for what the lab made itself.
    pub applied: Option<Value>,
}

/// All objects of a lab. Cheap to read; every change is one lock and one file.
#[derive(Debug)]
pub struct Store {
    objects: Mutex<BTreeMap<ObjectKey, Arc<Stored>>>,
    revision: watch::Sender<u64>,
    directory: PathBuf,
}

impl Store {
    /// An empty store that mirrors itself into `directory`.
    pub fn new(directory: PathBuf) -> Self {
        Self { objects: Mutex::default(), revision: watch::Sender::new(0), directory }
    }

    /// Told after every change.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// One object.
    pub fn find(&self, key: &ObjectKey) -> Option<Arc<Stored>> {
        self.lock().get(key).cloned()
    }

    /// All objects of a kind, by namespace and name.
    pub fn list(&self, kind: Kind) -> Vec<Arc<Stored>> {
        self.lock().values().filter(|stored| stored.object.kind() == kind).cloned().collect()
    }

    /// All objects of a namespace.
    pub fn in_namespace(&self, namespace: &str) -> Vec<Arc<Stored>> {
        self.lock()
            .iter()
            .filter(|(key, _)| key.namespace == namespace)
            .map(|(_, stored)| stored.clone())
            .collect()
    }

    /// Adds or replaces an object. Errors: it does not parse (then nothing changes), or it could not be
    /// mirrored.
    pub fn put(&self, raw: Value, applied: Option<Value>) -> Result<(), StoreError> {
        let mut objects = self.lock();
        self.insert(&mut objects, raw, applied)
    }

    /// Changes an object in place, if it is there and `change` does change it. `change` may refuse by not
    /// touching.
    pub fn edit(&self, key: &ObjectKey, change: impl FnOnce(&mut Value)) -> Result<(), StoreError> {
        let mut objects = self.lock();
        let Some(stored) = objects.get(key) else { return Ok(()) };
        let (mut raw, applied) = (stored.raw.clone(), stored.applied.clone());
        change(&mut raw);
        if raw == stored.raw { Ok(()) } else { self.insert(&mut objects, raw, applied) }
    }

    /// Removes an object, if it is there and has that `uid` (any, if none is given).
    pub fn remove(&self, key: &ObjectKey, uid: Option<&str>) -> Result<(), StoreError> {
        let mut objects = self.lock();
        let there = objects.get(key).is_some_and(|s| uid.is_none_or(|uid| s.object.metadata().uid == uid));
        if there {
            objects.remove(key);
            files::remove(&self.path(key))?;
            self.revision.send_modify(|revision| *revision += 1);
        }
        Ok(())
    }

    fn insert(
        &self,
        objects: &mut BTreeMap<ObjectKey, Arc<Stored>>,
        raw: Value,
        applied: Option<Value>,
    ) -> Result<(), StoreError> {
        let object = typed(&raw)?;
        let key = object.key();
        let path = self.path(&key);
        let most = longest_name(key.kind);
        if key.name.len() > most {
            return Err(StoreError::NameTooLong { kind: key.kind, length: key.name.len(), most });
        }
        if let Some(directory) = path.parent() {
            files::directory(directory)?;
        }
        files::replace(&path, &raw.to_string())?;
        objects.insert(key, Arc::new(Stored { object, raw, applied }));
        self.revision.send_modify(|revision| *revision += 1);
        Ok(())
    }

    fn path(&self, key: &ObjectKey) -> PathBuf {
        // No namespace begins with an underscore, so the directory of those without one cannot clash.
        let namespace = if key.namespace.is_empty() { "_cluster" } else { &key.namespace };
        self.directory.join(namespace).join(format!("{}-{}.json", key.kind, key.name))
    }

    /// No code that holds the lock panics half way through a change, so a poisoned one is whole.
    fn lock(&self) -> MutexGuard<'_, BTreeMap<ObjectKey, Arc<Stored>>> {
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Stored {
    /// The pod, if it is one.
    pub fn pod(&self) -> Option<&Pod> {
        match &self.object {
            Object::Pod(pod) => Some(pod),
            _ => None,
        }
    }
}

/// Why an object was not stored.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The lab made an object that the mesh does not read.
    #[error("the lab completed an object wrongly: {0}")]
    Malformed(String),
    /// It has a name that Kubernetes takes and a file can't have.
    #[error(
        "the name has {length} characters, and the lab keeps each {kind} in a file named after it, which leaves {most}"
    )]
    NameTooLong {
        /// Kind of the object.
        kind: Kind,
        /// Bytes of its name.
        length: usize,
        /// Bytes that it may have.
        most: usize,
    },
    /// It could not be mirrored.
    #[error(transparent)]
    Host(#[from] HostError),
}

/// Most bytes that the name of a `kind` may have: the name of its file has 255, of which some are for the
/// kind, the ending and the intermediate file's own.
fn longest_name(kind: Kind) -> usize {
    const LONGEST_FILE: usize = 255;
    const OTHERS: usize = ".-.json.new".len();
    LONGEST_FILE - OTHERS - kind.as_str().len()
}

fn typed(raw: &Value) -> Result<Object, StoreError> {
    let mut parsed = manifest::parse("object", &raw.to_string());
    match (parsed.objects.pop(), parsed.errors.first()) {
        (Some(located), None) => Ok(located.value),
        (_, Some(error)) => Err(StoreError::Malformed(error.to_string())),
        (None, None) => Err(StoreError::Malformed(raw.to_string())),
    }
}
