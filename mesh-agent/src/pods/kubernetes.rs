//! Pods from the Kubernetes API: those bound to this node, and the labels of all namespaces.
//!
//! While the API server is away what was known last stays.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures_util::{Stream, StreamExt, pin_mut};
use k8s_openapi::api::core::v1::{Namespace, Pod};
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::watcher::{self, Config, Event, watcher};
use kube::{Api, Client, ResourceExt};
use mesh_api::manifest::parse_json_object;
use mesh_api::resource::enrolment::is_enrolled;
use mesh_api::resource::{Labels, Metadata, Object};
use serde::Serialize;
use serde_json::json;
use tokio::sync::{oneshot, watch};

use super::{NodePod, NodePods};
use crate::connect_to_kubernetes::watch_backoff;
use crate::istio_annotation::{ObservedAnnotation, ObservedAnnotations};

/// Watches over the pods of a node.
pub struct PodWatches {
    /// The node's pods.
    pub pods: watch::Receiver<Arc<NodePods>>,
    /// The namespaces whose label says that their pods should be in the mesh.
    pub namespaces: watch::Receiver<Arc<BTreeSet<String>>>,
    /// The annotations of its pods about being in a mesh.
    pub annotated: watch::Receiver<Arc<ObservedAnnotations>>,
    /// Tells that everything was listed once; before, none of these count. An agent that believed an empty
    /// list would let go the pods that its predecessor enrolled.
    pub complete: oneshot::Receiver<()>,
}

/// Follows the pods of `node`, until the runtime ends.
pub fn watch_pods(client: Client, node: String, trust_domain: String) -> PodWatches {
    let (sender, pods) = watch::channel(Arc::default());
    let (enrolled, namespaces) = watch::channel(Arc::default());
    let (annotations, annotated) = watch::channel(Arc::default());
    let (complete, completed) = oneshot::channel();
    let complete = Some(complete);
    let mut view = View { node, trust_domain, sender, enrolled, annotations, complete, ..View::default() };
    let told = PodWatches { pods, namespaces, annotated, complete: completed };
    tokio::spawn(async move {
        let on_node = Config::default().fields(&format!("spec.nodeName={}", view.node));
        // As JSON, which is what the reader of manifests takes.
        let pods = Api::<DynamicObject>::all_with(client.clone(), &ApiResource::erase::<Pod>(&()));
        let pods = watcher(pods, on_node).backoff(watch_backoff());
        let namespaces = Api::<PartialObjectMeta<Namespace>>::all(client);
        let namespaces = watcher(namespaces, Config::default()).backoff(watch_backoff());
        view.follow(pods, namespaces).await;
    });
    told
}

/// What the watches have read so far.
#[derive(Default)]
struct View {
    node: String,
    trust_domain: String,
    pods: Kept<(mesh_api::resource::Pod, ObservedAnnotation)>,
    namespaces: Kept<Metadata>,
    sender: watch::Sender<Arc<NodePods>>,
    enrolled: watch::Sender<Arc<BTreeSet<String>>>,
    annotations: watch::Sender<Arc<ObservedAnnotations>>,
    complete: Option<oneshot::Sender<()>>,
}

/// The objects of one kind.
struct Kept<T> {
    objects: BTreeMap<String, T>,
    /// The list that is being received.
    list: BTreeMap<String, T>,
    complete: bool,
}

impl<T> Default for Kept<T> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), list: BTreeMap::new(), complete: false }
    }
}

impl View {
    async fn follow(
        &mut self,
        pods: impl Stream<Item = Result<Event<DynamicObject>, watcher::Error>>,
        namespaces: impl Stream<Item = Result<Event<PartialObjectMeta<Namespace>>, watcher::Error>>,
    ) {
        pin_mut!(pods, namespaces);
        loop {
            tokio::select! {
                event = pods.next() => match event {
                    Some(Ok(event)) => {
                        self.pods.apply(event, full_name, |it| Some((read(it)?, ObservedAnnotation::from_pod(it))));
                    }
                    Some(Err(error)) => tracing::warn!(%error, "pods not watched; trying again"),
                    None => return,
                },
                event = namespaces.next() => match event {
                    Some(Ok(event)) => self.namespaces.apply(event, full_name, |it| Some(metadata(it))),
                    Some(Err(error)) => tracing::warn!(%error, "namespaces not watched; trying again"),
                    None => return,
                },
            }
            self.tell();
        }
    }

    fn tell(&mut self) {
        if !self.pods.complete || !self.namespaces.complete {
            return;
        }
        // Pods before namespaces: where a pod is told its own state counts, so it is never one step behind.
        replace(&self.annotations, self.annotated_pods());
        replace(&self.sender, self.node_pods());
        replace(&self.enrolled, self.enrolled_namespaces());
        if let Some(complete) = self.complete.take() {
            // Nobody waits any more when the agent stops.
            let _stopping = complete.send(());
        }
    }

    fn enrolled_namespaces(&self) -> BTreeSet<String> {
        let none = Labels::default();
        let objects = self.namespaces.objects.iter();
        let enrolled =
            objects.filter(|(_, namespace)| is_enrolled(&namespace.labels, &none, false).is_selected());
        enrolled.map(|(name, _)| name.clone()).collect()
    }

    fn annotated_pods(&self) -> ObservedAnnotations {
        let objects = self.pods.objects.values();
        objects.map(|(pod, annotated)| (pod.metadata.uid.as_str().into(), annotated.clone())).collect()
    }

    fn node_pods(&self) -> NodePods {
        let none = Metadata::default();
        let mut all = NodePods::new();
        for (pod, _) in self.pods.objects.values().filter(|(pod, _)| !pod.is_terminal()) {
            let namespace = self.namespaces.objects.get(&pod.metadata.namespace).unwrap_or(&none);
            match NodePod::new(pod, namespace, &self.trust_domain) {
                Ok(pod) => drop(all.insert(Arc::clone(&pod.uid), pod)),
                Err(error) => tracing::warn!(pod = %pod.metadata.full_name(), %error, "pod left out"),
            }
        }
        all
    }
}

fn replace<T: PartialEq>(sender: &watch::Sender<Arc<T>>, new: T) {
    sender.send_if_modified(|current| {
        let changed = **current != new;
        if changed {
            *current = Arc::new(new);
        }
        changed
    });
}

impl<T> Kept<T> {
    fn apply<K>(&mut self, event: Event<K>, name: impl Fn(&K) -> String, read: impl Fn(&K) -> Option<T>) {
        match event {
            Event::Init => self.list.clear(),
            Event::InitApply(object) => self.list.extend(read(&object).map(|it| (name(&object), it))),
            Event::InitDone => {
                self.objects = std::mem::take(&mut self.list);
                self.complete = true;
            }
            // An object that can't be read stays as it was.
            Event::Apply(object) => self.objects.extend(read(&object).map(|it| (name(&object), it))),
            Event::Delete(object) => drop(self.objects.remove(&name(&object))),
        }
    }
}

fn full_name(object: &impl ResourceExt) -> String {
    match object.namespace() {
        Some(namespace) => format!("{namespace}/{}", object.name_any()),
        None => object.name_any(),
    }
}

/// Returns the labels and annotations of a namespace.
fn metadata(namespace: &impl ResourceExt) -> Metadata {
    let copy = |map: &BTreeMap<String, String>| {
        map.iter().map(|(key, value)| (key.clone(), value.clone())).collect()
    };
    let (labels, annotations) = (copy(namespace.labels()), copy(namespace.annotations()));
    Metadata { labels: Arc::new(labels), annotations, ..Metadata::default() }
}

/// Reads a pod by the same rules as manifests.
fn read(pod: &(impl ResourceExt + Serialize)) -> Option<mesh_api::resource::Pod> {
    let name = full_name(pod);
    let mut raw = serde_json::to_value(pod).ok()?;
    let object = raw.as_object_mut()?;
    object.insert("apiVersion".to_owned(), json!("v1"));
    object.insert("kind".to_owned(), json!("Pod"));
    let parsed = parse_json_object("kubernetes", raw);
    for error in parsed.errors {
        tracing::warn!(pod = name, %error, "pod not understood");
    }
    match parsed.objects.into_iter().next()?.value {
        Object::Pod(pod) => Some(*pod),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

    use super::*;

    fn pod(name: &str) -> DynamicObject {
        let pod = json!({
            "metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")},
            "spec": {"nodeName": "node1"},
            "status": {"podIP": "10.244.1.5"},
        });
        serde_json::from_value(pod).unwrap()
    }

    fn namespace(value: &str) -> PartialObjectMeta<Namespace> {
        let labels = BTreeMap::from([("nodemesh.io/dataplane".to_owned(), value.to_owned())]);
        let metadata =
            ObjectMeta { name: Some("shop".to_owned()), labels: Some(labels), ..ObjectMeta::default() };
        PartialObjectMeta { metadata, ..PartialObjectMeta::default() }
    }

    fn view() -> (View, watch::Receiver<Arc<NodePods>>, oneshot::Receiver<()>) {
        let (sender, receiver) = watch::channel(Arc::default());
        let (complete, completed) = oneshot::channel();
        let view = View {
            trust_domain: "cluster.local".into(),
            sender,
            complete: Some(complete),
            ..View::default()
        };
        (view, receiver, completed)
    }

    #[tokio::test]
    async fn pods_are_told_once_both_lists_are_complete() {
        let (mut view, told, mut completed) = view();
        let pods = [Event::Init, Event::InitApply(pod("web-1")), Event::InitDone];
        Box::pin(view.follow(stream::iter(pods.map(Ok)), stream::pending())).await;
        assert!(told.borrow().is_empty() && completed.try_recv().is_err(), "namespaces are not known yet");
        let namespaces = [Event::Init, Event::InitApply(namespace("enabled")), Event::InitDone];
        Box::pin(view.follow(stream::pending(), stream::iter(namespaces.map(Ok)))).await;
        assert!(completed.try_recv().is_ok());
        let pods = told.borrow().clone();
        assert!(pods["uid-web-1"].should_be_enrolled());
        assert!(view.enrolled.borrow().contains("shop"));
        assert_eq!(pods["uid-web-1"].identity.to_string(), "spiffe://cluster.local/ns/shop/sa/default");
    }

    #[tokio::test]
    async fn a_new_list_replaces_what_was_known_and_labels_count_at_once() {
        let (mut view, told, _completed) = view();
        let pods = [Event::Init, Event::InitApply(pod("web-1")), Event::InitDone, Event::Apply(pod("web-2"))];
        let namespaces = [Event::Init, Event::InitApply(namespace("enabled")), Event::InitDone];
        Box::pin(view.follow(stream::pending(), stream::iter(namespaces.map(Ok)))).await;
        Box::pin(view.follow(stream::iter(pods.map(Ok)), stream::pending())).await;
        assert_eq!(told.borrow().len(), 2);
        let again = [Event::Init, Event::InitApply(pod("web-2")), Event::InitDone];
        Box::pin(view.follow(stream::iter(again.map(Ok)), stream::pending())).await;
        assert_eq!(told.borrow().keys().map(|uid| &**uid).collect::<Vec<_>>(), ["uid-web-2"]);
        let label = [Event::Apply(namespace("disabled"))];
        Box::pin(view.follow(stream::pending(), stream::iter(label.map(Ok)))).await;
        assert!(!told.borrow()["uid-web-2"].should_be_enrolled());
        assert!(view.enrolled.borrow().is_empty());
        let gone = [Event::Delete(pod("web-2"))];
        Box::pin(view.follow(stream::iter(gone.map(Ok)), stream::pending())).await;
        assert!(told.borrow().is_empty());
    }
}
