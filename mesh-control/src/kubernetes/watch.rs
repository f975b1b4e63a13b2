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
use mesh_api::kind::{KNOWN_KINDS, Kind, KnownKind, Treatment};
use tokio::task::{AbortHandle, JoinSet};
use tracing::{info, warn};

use super::objects::Objects;
use super::pauses;
use super::unread::Unread;

/// Kinds that every cluster has.
pub fn core() -> Vec<Kind> {
    Kind::with_treatment(Treatment::Followed).collect()
}

/// Fills `objects` for ever. Returns once it is known which kinds there are, so that [`Objects::complete`]
/// means all.
pub async fn start(client: &Client, objects: &Objects, unread: &Unread, tasks: &mut JoinSet<()>) {
    for kind in core() {
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

/// Follows which of Istio's and the Gateway API's kinds the cluster has, and which that the mesh does not
/// read.
struct Definitions {
    client: Client,
    objects: Objects,
    unread: Unread,
    /// By the names of the definitions.
    following: HashMap<String, AbortHandle>,
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
                    let gone = optional().map(KnownKind::crd_name).filter(|name| !listed.contains(name));
                    gone.for_each(|name| self.end(&name));
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
        let Some(known) = defined(definition) else { return };
        let task = if let Some(kind) = known.kind {
            self.objects.expect(kind);
            tokio::spawn(follow(self.client.clone(), kind, self.objects.clone()))
        } else {
            tokio::spawn(self.unread.clone().follow(self.client.clone(), known))
        };
        info!(definition, "the cluster has the kind");
        self.following.insert(definition.to_owned(), task.abort_handle());
    }

    fn end(&mut self, definition: &str) {
        if let Some(task) = self.following.remove(definition) {
            info!(definition, "the cluster has the kind no more");
            task.abort();
        }
        match defined(definition) {
            // Also what was recalled of a kind that went while no replica ran.
            Some(KnownKind { kind: Some(kind), .. }) => self.objects.forget(*kind),
            Some(known) => self.unread.forget(known),
            None => {}
        }
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        self.following.values().for_each(AbortHandle::abort);
    }
}

/// Kinds that a cluster may have, those that the mesh reads and those that it knows not to read.
fn optional() -> impl Iterator<Item = &'static KnownKind> {
    KNOWN_KINDS.iter().filter(|known| known.kind.map_or(known.treatment == Treatment::NotRead, is_optional))
}

fn is_optional(kind: Kind) -> bool {
    kind.is_policy() || kind.table_row().treatment == Treatment::Consulted
}

/// The one that a definition is of.
fn defined(definition: &str) -> Option<&'static KnownKind> {
    optional().find(|known| known.crd_name() == definition)
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
    if kind.table_row().treatment == Treatment::Followed {
        return preferred;
    }
    for api_version in kind.api_versions() {
        if let Ok((resource, _)) = pinned_kind(client, &gvk(kind.table_row(), api_version)).await {
            return resource;
        }
    }
    // A definition that was just made is served in a moment; the watch tries again until then.
    preferred
}

/// A kind as the API is asked for it, under one of its versions.
pub(super) fn api_resource(kind: Kind, api_version: &str) -> ApiResource {
    ApiResource::from_gvk_with_plural(&gvk(kind.table_row(), api_version), kind.table_row().plural)
}

/// Group, version and name of a kind.
pub(super) fn gvk(known: &KnownKind, api_version: &str) -> GroupVersionKind {
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    GroupVersionKind::gvk(group, version, known.name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn plurals_are_those_that_the_api_has() {
        for known in KNOWN_KINDS {
            let guessed = ApiResource::from_gvk(&gvk(known, known.api_versions[0]));
            assert_eq!((guessed.plural.as_str(), guessed.group.as_str()), (known.plural, known.group()));
        }
    }

    #[test]
    fn a_definition_is_of_the_kind_of_its_group() {
        let of = |definition| defined(definition).map(|known| (known.name, known.group()));
        assert_eq!(
            of("destinationrules.networking.istio.io"),
            Some(("DestinationRule", "networking.istio.io"))
        );
        for (definition, name) in [
            ("httproutes.gateway.networking.k8s.io", "HTTPRoute"),
            ("referencegrants.gateway.networking.k8s.io", "ReferenceGrant"),
        ] {
            assert_eq!(of(definition), Some((name, "gateway.networking.k8s.io")));
        }
        assert_eq!(of("gateways.networking.istio.io"), Some(("Gateway", "networking.istio.io")));
        let api = ("Gateway", "gateway.networking.k8s.io");
        assert_eq!(of("gateways.gateway.networking.k8s.io"), Some(api));
        for others in ["pods.", "deployments.apps", "trafficextensions.extensions.istio.io", "gateways"] {
            assert_eq!(of(others), None, "{others}");
        }
    }
}
