//! Objects that somebody wrote for a mesh and this one does not read: each is told so by an event, and how
//! many there are of a kind is shown.
//!
//! An event and no condition: these kinds may be another controller's, and their status is its own. Only
//! names are kept, and only of kinds that the cluster has.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::{StreamExt as _, pin_mut};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Client;
use kube::api::{Api, ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::discovery::pinned_kind;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, watcher};
use mesh_api::admin::UnreadKind;
use mesh_api::kind::KnownKind;
use tokio::sync::{Notify, watch};
use tracing::warn;

use super::notice::{Notice, fingerprint};
use super::objects::Name;
use super::watch::gvk;
use super::{Cluster, pauses};

/// Events for objects of one kind; who has more of them has understood.
const MOST_OF_A_KIND: usize = 100;

/// Events of one round; the rest waits for the next.
const MOST_AT_ONCE: usize = 20;

/// Between two rounds, and before what could not be told is tried again.
const PAUSE: Duration = Duration::from_secs(5);

/// Between two looks for the version of a kind, which may be one that nobody knew.
const LONGEST_PAUSE: Duration = Duration::from_mins(1);

/// Objects that are named where a kind is shown.
const EXAMPLES: usize = 3;

/// The objects, shared by the watches and who tells of them.
#[derive(Clone, Default)]
pub struct Unread(Arc<Shared>);

#[derive(Default)]
struct Shared {
    kinds: Mutex<BTreeMap<&'static KnownKind, BTreeMap<Name, Seen>>>,
    changed: Notify,
}

/// One object, as far as it matters.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Seen {
    api_version: String,
    uid: String,
    generation: i64,
}

impl Unread {
    /// Kinds of which there are objects.
    pub fn kinds(&self) -> Vec<UnreadKind> {
        let kinds = self.state();
        let held = kinds.iter().filter(|(_, objects)| !objects.is_empty());
        held.map(|(kind, objects)| UnreadKind {
            kind: kind.name.to_owned(),
            group: kind.group().to_owned(),
            objects: objects.len(),
            examples: objects.keys().take(EXAMPLES).map(full_name).collect(),
        })
        .collect()
    }

    /// Follows one kind for ever.
    pub async fn follow(self, client: Client, kind: &'static KnownKind) {
        let resource = served(&client, kind).await;
        let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource);
        let events = watcher(api, Config::default()).backoff(pauses());
        pin_mut!(events);
        let mut listed = BTreeSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => listed.clear(),
                Ok(watcher::Event::InitApply(object)) => {
                    listed.insert(name_of(&object.metadata));
                    self.put(kind, &object.metadata, &resource.api_version);
                }
                Ok(watcher::Event::InitDone) => self.keep(kind, &listed),
                Ok(watcher::Event::Apply(object)) => self.put(kind, &object.metadata, &resource.api_version),
                Ok(watcher::Event::Delete(object)) => self.remove(kind, &name_of(&object.metadata)),
                Err(error) => warn!(kind = kind.crd_name(), %error, "not watched; trying again"),
            }
            self.0.changed.notify_one();
        }
    }

    /// The kind is gone from the cluster, and its objects with it.
    pub fn forget(&self, kind: &'static KnownKind) {
        self.state().remove(kind);
    }

    fn put(&self, kind: &'static KnownKind, metadata: &ObjectMeta, api_version: &str) {
        let seen = Seen {
            api_version: api_version.to_owned(),
            uid: metadata.uid.clone().unwrap_or_default(),
            generation: metadata.generation.unwrap_or_default(),
        };
        self.state().entry(kind).or_default().insert(name_of(metadata), seen);
    }

    fn keep(&self, kind: &'static KnownKind, listed: &BTreeSet<Name>) {
        self.state().entry(kind).or_default().retain(|name, _| listed.contains(name));
    }

    fn remove(&self, kind: &'static KnownKind, name: &Name) {
        self.state().entry(kind).or_default().remove(name);
    }

    fn state(&self) -> MutexGuard<'_, BTreeMap<&'static KnownKind, BTreeMap<Name, Seen>>> {
        self.0.kinds.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Objects that have not been told yet in the state that they are in.
    fn due(&self, told: &HashMap<String, Seen>) -> Vec<(&'static KnownKind, Name, Seen)> {
        let kinds = self.state();
        let all = kinds.iter().flat_map(|(kind, objects)| {
            objects.iter().take(MOST_OF_A_KIND).map(|(name, seen)| (*kind, name.clone(), seen.clone()))
        });
        all.filter(|(_, _, seen)| told.get(&seen.uid) != Some(seen)).take(MOST_AT_ONCE).collect()
    }

    /// Tells each object for ever, while this replica leads.
    pub async fn tell(self, cluster: Cluster, mut leads: watch::Receiver<bool>) {
        let mut told: HashMap<String, Seen> = HashMap::new();
        loop {
            if leads.wait_for(|leads| *leads).await.is_err() {
                return;
            }
            let due = self.due(&told);
            let waits = due.is_empty();
            for (kind, name, seen) in due {
                match create(&cluster, kind, &name, &seen).await {
                    Ok(()) => drop(told.insert(seen.uid.clone(), seen)),
                    // The next ones are tried all the same: it may be this one alone that is refused.
                    Err(error) => {
                        warn!(kind = kind.crd_name(), name = full_name(&name), %error, "not told; trying again");
                    }
                }
            }
            if waits {
                let there: BTreeSet<String> =
                    self.state().values().flat_map(BTreeMap::values).map(|seen| seen.uid.clone()).collect();
                told.retain(|uid, _| there.contains(uid));
                self.0.changed.notified().await;
            } else {
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

async fn create(cluster: &Cluster, kind: &KnownKind, name: &Name, seen: &Seen) -> Result<(), kube::Error> {
    let kind = kind.name;
    let note =
        format!("nodemesh reads no {kind}: it changes nothing about the connections of pods in the mesh");
    let notice = Notice {
        api_version: &seen.api_version,
        kind,
        name,
        uid: &seen.uid,
        reason: "NotRead",
        action: "Ignored",
        note: &note,
        state: fingerprint(seen),
    };
    notice.create(cluster).await
}

/// The version under which the cluster serves a kind. A definition that was just made is served in a moment.
async fn served(client: &Client, kind: &KnownKind) -> ApiResource {
    let mut pause = Duration::from_millis(500);
    loop {
        for api_version in kind.api_versions {
            if let Ok((resource, _)) = pinned_kind(client, &gvk(kind, api_version)).await {
                return resource;
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}

fn name_of(metadata: &ObjectMeta) -> Name {
    (metadata.namespace.clone().unwrap_or_default(), metadata.name.clone().unwrap_or_default())
}

fn full_name((namespace, name): &Name) -> String {
    format!("{namespace}/{name}")
}

#[cfg(test)]
mod tests {
    use mesh_api::kind::find_kind;

    use super::*;

    fn unread_kind() -> &'static KnownKind {
        find_kind("networking.istio.io/v1", "Sidecar").unwrap()
    }

    fn put(unread: &Unread, name: &str, generation: i64) {
        let metadata = ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some("shop".to_owned()),
            uid: Some(name.to_owned()),
            generation: Some(generation),
            ..ObjectMeta::default()
        };
        unread.put(unread_kind(), &metadata, "networking.istio.io/v1");
    }

    fn tell(unread: &Unread, told: &mut HashMap<String, Seen>) -> Vec<String> {
        let due = unread.due(told);
        due.iter().for_each(|(_, _, seen)| drop(told.insert(seen.uid.clone(), seen.clone())));
        due.into_iter().map(|(_, (_, name), _)| name).collect()
    }

    #[test]
    fn each_object_is_told_once_for_each_change() {
        let (unread, mut told) = (Unread::default(), HashMap::new());
        put(&unread, "web", 1);
        assert_eq!(tell(&unread, &mut told), ["web"]);
        put(&unread, "web", 1);
        assert!(tell(&unread, &mut told).is_empty(), "only its status changed");
        put(&unread, "web", 2);
        assert_eq!(tell(&unread, &mut told), ["web"]);
        unread.keep(unread_kind(), &BTreeSet::new());
        assert!(unread.kinds().is_empty());
    }

    #[test]
    fn many_are_counted_and_some_are_told() {
        let (unread, mut told) = (Unread::default(), HashMap::new());
        (0..1000).for_each(|number| put(&unread, &format!("web-{number}"), 1));
        let rounds = std::iter::from_fn(|| Some(tell(&unread, &mut told).len()).filter(|count| *count > 0));
        let rounds: Vec<_> = rounds.collect();
        assert!(rounds.iter().all(|count| *count <= MOST_AT_ONCE), "{rounds:?}");
        assert_eq!(rounds.iter().sum::<usize>(), MOST_OF_A_KIND);
        let kind = unread.kinds().remove(0);
        assert_eq!((kind.kind.as_str(), kind.group.as_str()), ("Sidecar", "networking.istio.io"));
        assert_eq!((kind.objects, kind.examples.len()), (1000, EXAMPLES));
    }
}
