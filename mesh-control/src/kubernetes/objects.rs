//! The objects of the cluster, as the watches tell them, read by the same rules as manifests.
//!
//! A resource that is broken now stays in force as it last was: a slip in a policy must not switch the policy
//! off.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use mesh_api::compile::ObjectChange;
use mesh_api::kind::{Kind, ObjectKey, find_kind};
use mesh_api::manifest::{Located, ManifestError, ParsedManifest, parse_json_object};
use mesh_api::resource::{Object, SharedLabels};
use serde_json::{Value, json};
use tokio::sync::Notify;

use crate::findings::Loaded;

/// Errors name no place: there is no file, and the API server has no lines.
const ORIGIN: &str = "";

/// Namespace and name; the namespace is empty for kinds that have none.
pub type Name = (String, String);

/// All objects, shared by the watches and their readers.
#[derive(Clone, Default)]
pub struct Objects(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Default)]
struct State {
    kinds: BTreeMap<Kind, Kept>,
    /// What has changed since it was last taken.
    touched: BTreeSet<ObjectKey>,
    /// What was taken and is not published yet.
    under_way: BTreeSet<ObjectKey>,
    /// Objects of which something is to be said.
    flawed: BTreeSet<ObjectKey>,
    labels: SharedLabels,
}

/// The objects of one kind.
#[derive(Default)]
struct Kept {
    entries: BTreeMap<Name, Entry>,
    /// Seen since the list under way began.
    listed: Option<BTreeSet<Name>>,
    complete: bool,
}

/// One object.
#[derive(Default)]
struct Entry {
    /// As it is, or as it was when it could last be read.
    good: Option<Arc<Located<Object>>>,
    errors: Vec<ManifestError>,
    warnings: Vec<ManifestError>,
    version: Version,
}

/// Which state of a resource this is, and what is said of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Version {
    /// `apiVersion` under which it was read, which the cluster serves.
    pub api: String,
    /// `metadata.uid`.
    pub uid: String,
    /// `metadata.resourceVersion`.
    pub resource: String,
    /// `metadata.generation`.
    pub generation: i64,
    /// `status.conditions`, other controllers' too.
    pub conditions: Vec<Value>,
    /// `spec.parentRefs`, of a route of the Gateway API.
    pub parent_refs: Vec<Value>,
    /// `status.parents` of one, other controllers' too.
    pub parents: Vec<Value>,
}

/// What became of a resource that people wrote for the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Which.
    pub key: ObjectKey,
    /// Its state.
    pub version: Version,
    /// Why it was rejected; empty if it was not.
    pub errors: Vec<ManifestError>,
}

impl Objects {
    /// Objects of `kinds` are to come; until all of them are listed the cluster is not known.
    pub fn expecting(kinds: &[Kind]) -> Self {
        let objects = Self::default();
        for kind in kinds {
            objects.expect(*kind);
        }
        objects
    }

    /// From now on the kind counts as not known until it is listed.
    pub fn expect(&self, kind: Kind) {
        self.state().kinds.entry(kind).or_default();
    }

    /// The kind is gone from the cluster, and its objects with it.
    pub fn forget(&self, kind: Kind) {
        let mut state = self.state();
        let kept = state.kinds.remove(&kind).unwrap_or_default();
        kept.entries.into_keys().for_each(|name| state.touch(kind, &name, false));
        drop(state);
        self.0.changed.notify_one();
    }

    /// A list of a kind begins.
    pub fn begin_list(&self, kind: Kind) {
        self.state().kinds.entry(kind).or_default().listed = Some(BTreeSet::new());
    }

    /// The list is complete: what was not in it is gone.
    pub fn end_list(&self, kind: Kind) {
        let mut state = self.state();
        if let Some(kept) = state.kinds.get_mut(&kind) {
            let listed = kept.listed.take().unwrap_or_default();
            let gone: Vec<_> = kept.entries.extract_if(.., |name, _| !listed.contains(name)).collect();
            kept.complete = true;
            gone.iter().for_each(|(name, _)| state.touch(kind, name, false));
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// An object is there, or changed.
    pub fn put(&self, kind: Kind, raw: Value) {
        let (name, ParsedManifest { objects, errors, warnings, .. }, version) = read(kind, raw);
        let flawed = !errors.is_empty() || !warnings.is_empty();
        let mut state = self.state();
        let good = objects.into_iter().next().map(|mut object| {
            object.value.forget_programs(&mut state.labels);
            Arc::new(object)
        });
        let entry = Entry { good, errors, warnings, version };
        let kept = state.kinds.entry(kind).or_default();
        if let Some(listed) = &mut kept.listed {
            listed.insert(name.clone());
        }
        let before = kept.entries.remove(&name);
        kept.entries.insert(name.clone(), entry.or_as_it_was(before));
        state.touch(kind, &name, flawed);
        drop(state);
        self.0.changed.notify_one();
    }

    /// An object is gone.
    pub fn remove(&self, kind: Kind, name: &Name) {
        let mut state = self.state();
        if state.kinds.get_mut(&kind).is_some_and(|kept| kept.entries.remove(name).is_some()) {
            state.touch(kind, name, false);
        }
        drop(state);
        self.0.changed.notify_one();
    }

    /// A policy as it was before this replica started. It counts while the watches tell that it is there and
    /// broken.
    pub fn recall(&self, raw: Value) {
        let text = |field: &str| raw[field].as_str().unwrap_or_default();
        let known = find_kind(text("apiVersion"), text("kind"));
        if let Some(kind) = known.and_then(|known| known.kind).filter(|kind| kind.is_policy()) {
            self.put(kind, raw);
        }
    }

    /// Policies that are broken now, as they last were.
    pub fn kept(&self) -> Vec<Value> {
        let state = self.state();
        let own = state.kinds.iter().filter(|(kind, _)| kind.is_policy());
        let broken = own.flat_map(|(_, kept)| kept.entries.values()).filter(|entry| !entry.errors.is_empty());
        broken.filter_map(|entry| Some(entry.good.as_ref()?.raw.clone())).collect()
    }

    /// Returns when something has changed.
    pub async fn changed(&self) {
        self.0.changed.notified().await;
    }

    /// Returns when every expected kind was listed once.
    pub async fn complete(&self) {
        while !self.is_complete() {
            self.changed().await;
        }
        // Whoever follows the changes next must not miss the last one.
        self.0.changed.notify_one();
    }

    /// What has changed since the last time, as it is in force now, and what is wrong. There is one reader.
    pub fn load(&self) -> Loaded {
        let mut state = self.state();
        let touched = std::mem::take(&mut state.touched);
        state.under_way.extend(touched.iter().filter(|key| key.kind.is_policy()).cloned());
        let object = |key: &ObjectKey| state.entry(key).and_then(|entry| entry.good.clone());
        let changes = touched.into_iter().map(|key| ObjectChange { object: object(&key), key }).collect();
        let flawed = || state.flawed.iter().filter_map(|key| state.entry(key));
        let held: usize = state.kinds.values().map(|kept| kept.entries.len()).sum();
        Loaded {
            changes,
            objects: held - flawed().filter(|entry| entry.good.is_none()).count(),
            errors: flawed().flat_map(|entry| entry.errors.clone()).collect(),
            warnings: flawed().flat_map(|entry| entry.warnings.clone()).collect(),
        }
    }

    /// What was loaded is published, so that what is said of it is known.
    pub fn settle(&self) {
        self.state().under_way.clear();
    }

    /// What became of each of the mesh's own resources, but for those of which it is not known yet.
    pub fn outcomes(&self) -> Vec<Outcome> {
        let state = self.state();
        let own = state.kinds.iter().filter(|(kind, _)| kind.is_policy());
        let all = own.flat_map(|(kind, kept)| {
            kept.entries.iter().map(|((namespace, name), entry)| Outcome {
                key: ObjectKey { kind: *kind, namespace: namespace.clone(), name: name.clone() },
                version: entry.version.clone(),
                errors: entry.errors.clone(),
            })
        });
        all.filter(|it| !state.touched.contains(&it.key) && !state.under_way.contains(&it.key)).collect()
    }

    /// Whether an object is there.
    pub fn has(&self, key: &ObjectKey) -> bool {
        let name = (key.namespace.clone(), key.name.clone());
        self.state().kinds.get(&key.kind).is_some_and(|kept| kept.entries.contains_key(&name))
    }

    /// `metadata.uid` of an object, if it is there and could be read.
    pub fn uid(&self, key: &ObjectKey) -> Option<String> {
        let state = self.state();
        Some(state.entry(key)?.good.as_ref()?.value.metadata().uid.clone())
    }

    /// The node that a pod is bound to.
    pub fn node_of(&self, namespace: &str, pod: &str) -> Option<String> {
        let state = self.state();
        let entry = state.kinds.get(&Kind::Pod)?.entries.get(&(namespace.to_owned(), pod.to_owned()))?;
        match &entry.good.as_ref()?.value {
            Object::Pod(pod) if !pod.spec.node_name.is_empty() => Some(pod.spec.node_name.clone()),
            _ => None,
        }
    }

    /// Names of all namespaces.
    pub fn namespaces(&self) -> Vec<String> {
        let state = self.state();
        let namespaces = state.kinds.get(&Kind::Namespace).into_iter().flat_map(|kept| kept.entries.keys());
        namespaces.map(|(_, name)| name.clone()).collect()
    }

    fn is_complete(&self) -> bool {
        self.state().kinds.values().all(|kept| kept.complete)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn touch(&mut self, kind: Kind, (namespace, name): &Name, flawed: bool) {
        let key = ObjectKey { kind, namespace: namespace.clone(), name: name.clone() };
        if flawed {
            self.flawed.insert(key.clone());
        } else {
            self.flawed.remove(&key);
        }
        self.touched.insert(key);
    }

    fn entry(&self, key: &ObjectKey) -> Option<&Entry> {
        self.kinds.get(&key.kind)?.entries.get(&(key.namespace.clone(), key.name.clone()))
    }
}

impl Entry {
    fn or_as_it_was(mut self, before: Option<Self>) -> Self {
        if self.good.is_none() {
            self.good = before.and_then(|before| before.good);
        }
        self
    }
}

fn read(kind: Kind, mut raw: Value) -> (Name, ParsedManifest, Version) {
    let text = |pointer| raw.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    let name = (text("/metadata/namespace"), text("/metadata/name"));
    if let Some(object) = raw.as_object_mut() {
        // Lists leave them out.
        object.entry("apiVersion").or_insert_with(|| json!(kind.api_versions()[0]));
        object.entry("kind").or_insert_with(|| json!(kind.as_str()));
    }
    let version = if kind.is_policy() { version(&raw) } else { Version::default() };
    if let Some(object) = raw.as_object_mut().filter(|_| kind.is_policy()) {
        // Ours and other controllers' words about it, not its author's.
        object.remove("status");
    }
    if let Some(metadata) = raw.pointer_mut("/metadata").and_then(Value::as_object_mut) {
        metadata.remove("managedFields");
    }
    let mut parsed = parse_json_object(ORIGIN, raw);
    if !kind.is_policy() {
        // Nobody reads it, and it is the larger part of the memory.
        parsed.objects.iter_mut().for_each(|object| object.raw = Value::Null);
    }
    (name, parsed, version)
}

fn version(raw: &Value) -> Version {
    let list = |pointer| raw.pointer(pointer).and_then(Value::as_array).cloned().unwrap_or_default();
    let text = |pointer| raw.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned();
    Version {
        api: text("/apiVersion"),
        uid: text("/metadata/uid"),
        resource: text("/metadata/resourceVersion"),
        generation: raw.pointer("/metadata/generation").and_then(Value::as_i64).unwrap_or_default(),
        conditions: list("/status/conditions"),
        parent_refs: list("/spec/parentRefs"),
        parents: list("/status/parents"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn policy(name: &str, action: &str) -> Value {
        json!({
            "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
            "metadata": {"name": name, "namespace": "shop", "generation": 3, "managedFields": []},
            "spec": {"action": action},
            "status": {"conditions": []},
        })
    }

    fn pod(name: &str) -> Value {
        json!({
            "metadata": {"name": name, "namespace": "shop", "uid": name},
            "spec": {"nodeName": "node1", "containers": [{"name": "c", "image": "x"}]},
        })
    }

    /// Names of what is in force. What changed is told once, and is that which changed.
    fn in_force(objects: &Objects) -> Vec<String> {
        let state = objects.state();
        let entries = state.kinds.values().flat_map(|kept| &kept.entries);
        let good: Vec<_> =
            entries.filter(|(_, entry)| entry.good.is_some()).map(|((_, name), _)| name.clone()).collect();
        let told = state.touched.len();
        drop(state);
        assert_eq!(objects.load().changes.len(), told);
        assert!(objects.load().changes.is_empty());
        good
    }

    #[test]
    fn a_broken_resource_stays_in_force_as_it_last_was_and_says_why() {
        let objects = Objects::default();
        objects.put(Kind::AuthorizationPolicy, policy("open", "ALLOW"));
        objects.put(Kind::AuthorizationPolicy, policy("open", "PERHAPS"));
        objects.put(Kind::AuthorizationPolicy, policy("new", "PERHAPS"));
        assert_eq!(in_force(&objects), ["open"], "the one that was good");
        assert!(objects.outcomes().is_empty(), "nothing is published yet");
        objects.settle();
        let outcomes = objects.outcomes();
        assert_eq!(outcomes.len(), 2);
        assert!(outcomes.iter().all(|outcome| outcome.errors.len() == 1 && outcome.version.generation == 3));
        objects.put(Kind::AuthorizationPolicy, policy("open", "ALLOW"));
        objects.load();
        objects.settle();
        assert!(objects.outcomes()[1].errors.is_empty());
        objects.remove(Kind::AuthorizationPolicy, &("shop".into(), "open".into()));
        assert!(in_force(&objects).is_empty());
    }

    #[tokio::test]
    async fn a_list_replaces_what_was_there_and_completes_the_kind() {
        let objects = Objects::expecting(&[Kind::Pod]);
        objects.put(Kind::Pod, pod("old"));
        objects.begin_list(Kind::Pod);
        objects.put(Kind::Pod, pod("new"));
        assert_eq!(in_force(&objects), ["new", "old"], "until the list is complete");
        assert!(!objects.is_complete());
        objects.end_list(Kind::Pod);
        objects.complete().await;
        assert_eq!(in_force(&objects), ["new"]);
        assert_eq!(objects.node_of("shop", "new").as_deref(), Some("node1"));
        assert_eq!(objects.node_of("shop", "old"), None);
    }

    #[test]
    fn a_kind_that_is_gone_takes_its_objects_along() {
        let objects = Objects::expecting(&[Kind::AuthorizationPolicy]);
        objects.put(Kind::AuthorizationPolicy, policy("open", "ALLOW"));
        objects.forget(Kind::AuthorizationPolicy);
        assert!(in_force(&objects).is_empty() && objects.is_complete());
    }
}
