//! Following the kinds that the mesh reads: list, watch, and list again when the watch was lost, with a pause that
//! grows. The API server being away changes nothing: what was known last stays.

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

/// Kinds that every cluster has.
pub const CORE: [Kind; 5] = [Kind::Namespace, Kind::Node, Kind::Pod, Kind::Service, Kind::EndpointSlice];

/// Kinds that a cluster may have, each with the name of its definition.
const OPTIONAL: [(Kind, &str); 3] = [
    (Kind::AuthorizationPolicy, "authorizationpolicies.security.istio.io"),
    (Kind::PeerAuthentication, "peerauthentications.security.istio.io"),
    (Kind::DestinationRule, "destinationrules.networking.istio.io"),
];

/// Fills `objects` for ever. Returns once it is known which kinds there are, so that [`Objects::complete`] means all.
pub async fn start(client: &Client, objects: &Objects, tasks: &mut JoinSet<()>) {
    for kind in CORE {
        tasks.spawn(follow(client.clone(), kind, objects.clone()));
    }
    let (known, definitions_known) = tokio::sync::oneshot::channel();
    let definitions = Definitions {
        client: client.clone(),
        objects: objects.clone(),
        following: HashMap::new(),
        known: Some(known),
    };
    tasks.spawn(definitions.follow());
    // An error means that the task was ended, and all else with it.
    let _ended = definitions_known.await;
}

/// Follows which of Istio's kinds the cluster has.
struct Definitions {
    client: Client,
    objects: Objects,
    following: HashMap<Kind, AbortHandle>,
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
                    listed.extend(kind_of(&definition));
                    self.begin(kind_of(&definition));
                }
                Ok(Event::InitDone) => {
                    let gone = OPTIONAL.iter().map(|(kind, _)| *kind).filter(|kind| !listed.contains(kind));
                    gone.for_each(|kind| self.end(kind));
                    if let Some(known) = self.known.take() {
                        // Nobody waits any more when the control plane stops.
                        let _stopping = known.send(());
                    }
                }
                Ok(Event::Apply(definition)) => self.begin(kind_of(&definition)),
                Ok(Event::Delete(definition)) => {
                    if let Some(kind) = kind_of(&definition) {
                        self.end(kind);
                    }
                }
                Err(error) => warn!(%error, "custom resource definitions not watched; trying again"),
            }
        }
    }

    fn begin(&mut self, kind: Option<Kind>) {
        let Some(kind) = kind.filter(|kind| !self.following.contains_key(kind)) else { return };
        info!(%kind, "the cluster has the kind");
        self.objects.expect(kind);
        let task = tokio::spawn(follow(self.client.clone(), kind, self.objects.clone()));
        self.following.insert(kind, task.abort_handle());
    }

    fn end(&mut self, kind: Kind) {
        if let Some(task) = self.following.remove(&kind) {
            info!(%kind, "the cluster has the kind no more");
            task.abort();
        }
        // Also what was recalled of a kind that went while no replica ran.
        self.objects.forget(kind);
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        self.following.values().for_each(AbortHandle::abort);
    }
}

fn kind_of(definition: &PartialObjectMeta<CustomResourceDefinition>) -> Option<Kind> {
    let name = definition.name_any();
    OPTIONAL.iter().find(|(_, known)| *known == name).map(|(kind, _)| *kind)
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
