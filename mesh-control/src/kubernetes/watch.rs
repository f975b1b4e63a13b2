//! Following the kinds that the mesh reads: list, watch, and list again when the watch was lost, with a pause
//! that grows. The API server being away changes nothing: what was known last stays.

use std::collections::HashMap;

use futures_util::{Stream, StreamExt as _, pin_mut};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind};
use kube::core::PartialObjectMeta;
use kube::discovery::pinned_kind;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Client, ResourceExt as _};
use mesh_api::manifest::Kind;
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use super::objects::Objects;
use super::pauses;
use super::unread::{FOREIGN, Foreign, Unread};

/// Kinds that every cluster has.
pub const CORE: [Kind; 5] = [Kind::Namespace, Kind::Node, Kind::Pod, Kind::Service, Kind::EndpointSlice];

/// Kinds that a cluster may have, each with the name of its definition.
const OPTIONAL: [(Kind, &str); 3] = [
    (Kind::AuthorizationPolicy, "authorizationpolicies.security.istio.io"),
    (Kind::PeerAuthentication, "peerauthentications.security.istio.io"),
    (Kind::DestinationRule, "destinationrules.networking.istio.io"),
];

/// Fills `objects` for ever. Returns once it is known which kinds there are, so that [`Objects::complete`]
/// means all.
pub async fn start(client: &Client, objects: &Objects, unread: &Unread, tasks: &mut JoinSet<()>) {
    for kind in CORE {
        tasks.spawn(follow(client.clone(), kind, objects.clone()));
    }
    let (known, definitions_known) = tokio::sync::oneshot::channel();
    let definitions = Definitions {
        client: client.clone(),
        objects: objects.clone(),
        unread: unread.clone(),
        following: HashMap::new(),
        known: Some(known),
    };
    tasks.spawn(definitions.follow());
    // An error means that the task was ended, and all else with it.
    let _ended = definitions_known.await;
}

/// Follows which of Istio's kinds the cluster has, and which that the mesh does not read.
struct Definitions {
    client: Client,
    objects: Objects,
    unread: Unread,
    /// By the names of the definitions.
    following: HashMap<&'static str, AbortHandle>,
    known: Option<tokio::sync::oneshot::Sender<()>>,
}

impl Definitions {
    async fn follow(mut self) {
        // Their names are enough.
        let api: Api<PartialObjectMeta<CustomResourceDefinition>> = Api::all(self.client.clone());
        let events = watcher(api, Config::default()).backoff(pauses());
        pin_mut!(events);
        let mut listed = Vec::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(Event::Init) => listed.clear(),
                Ok(Event::InitApply(definition)) => {
                    let name = definition.name_any();
                    self.begin(&name);
                    listed.push(name);
                }
                Ok(Event::InitDone) => {
                    let gone = names().filter(|name| !listed.iter().any(|listed| listed == name));
                    gone.for_each(|name| self.end(name));
                    if let Some(known) = self.known.take() {
                        // Nobody waits any more when the control plane stops.
                        let _stopping = known.send(());
                    }
                }
                Ok(Event::Apply(definition)) => self.begin(&definition.name_any()),
                Ok(Event::Delete(definition)) => self.end(&definition.name_any()),
                Err(error) => warn!(%error, "custom resource definitions not watched; trying again"),
            }
        }
    }

    fn begin(&mut self, definition: &str) {
        if self.following.contains_key(definition) {
            return;
        }
        let (name, task) = if let Some((kind, name)) = read(definition) {
            self.objects.expect(kind);
            (name, tokio::spawn(follow(self.client.clone(), kind, self.objects.clone())))
        } else if let Some(kind) = foreign(definition) {
            (kind.definition, tokio::spawn(self.unread.clone().follow(self.client.clone(), kind)))
        } else {
            return;
        };
        info!(definition, "the cluster has the kind");
        self.following.insert(name, task.abort_handle());
    }

    fn end(&mut self, definition: &str) {
        if let Some(task) = self.following.remove(definition) {
            info!(definition, "the cluster has the kind no more");
            task.abort();
        }
        if let Some((kind, _)) = read(definition) {
            // Also what was recalled of a kind that went while no replica ran.
            self.objects.forget(kind);
        } else if let Some(kind) = foreign(definition) {
            self.unread.forget(kind);
        }
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        self.following.values().for_each(AbortHandle::abort);
    }
}

/// Names of all definitions that matter.
fn names() -> impl Iterator<Item = &'static str> {
    OPTIONAL.iter().map(|(_, name)| *name).chain(FOREIGN.iter().map(|kind| kind.definition))
}

/// The kind that a definition is of, if the mesh reads it.
fn read(definition: &str) -> Option<(Kind, &'static str)> {
    OPTIONAL.into_iter().find(|(_, name)| *name == definition)
}

/// The kind that a definition is of, if the mesh knows not to read it.
fn foreign(definition: &str) -> Option<&'static Foreign> {
    FOREIGN.iter().find(|kind| kind.definition == definition)
}

/// Follows one kind for ever.
async fn follow(client: Client, kind: Kind, objects: Objects) {
    let resource = served(&client, kind).await;
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    apply(kind, &objects, watcher(api, Config::default()).backoff(pauses())).await;
}

async fn apply(
    kind: Kind,
    objects: &Objects,
    events: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
) {
    pin_mut!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => objects.begin_list(kind),
            Ok(Event::InitApply(object) | Event::Apply(object)) => match serde_json::to_value(&object) {
                Ok(raw) => objects.put(kind, raw),
                Err(error) => warn!(%kind, name = object.name_any(), %error, "object not understood"),
            },
            Ok(Event::InitDone) => objects.end_list(kind),
            Ok(Event::Delete(object)) => {
                objects.remove(kind, &(object.namespace().unwrap_or_default(), object.name_any()));
            }
            Err(error) => warn!(%kind, %error, "not watched; trying again, what was known last stays"),
        }
    }
}

/// The version under which the cluster serves a kind: the preferred one that it has.
async fn served(client: &Client, kind: Kind) -> ApiResource {
    let preferred = api_resource(kind, kind.api_versions()[0]);
    if CORE.contains(&kind) {
        return preferred;
    }
    for version in kind.api_versions() {
        let (group, version) = version.split_once('/').unwrap_or(("", version));
        if let Ok((resource, _)) =
            pinned_kind(client, &GroupVersionKind::gvk(group, version, kind.as_str())).await
        {
            return resource;
        }
    }
    // A definition that was just made is served in a moment; the watch tries again until then.
    preferred
}

fn api_resource(kind: Kind, api_version: &str) -> ApiResource {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_of_the_definitions() {
        for (kind, definition) in OPTIONAL {
            let resource = api_resource(kind, kind.api_versions()[0]);
            assert_eq!(format!("{}.{}", resource.plural, resource.group), definition);
        }
        assert_eq!(api_resource(Kind::EndpointSlice, "discovery.k8s.io/v1").plural, "endpointslices");
    }
}
