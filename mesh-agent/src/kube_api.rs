//! The Kubernetes API besides pods: events about pods that are not enrolled, and whether the mesh is being
//! uninstalled.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use backon::ExponentialBuilder;
use futures_util::{StreamExt, pin_mut};
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt;
use kube::runtime::events::{Event as ClusterEvent, EventType, Recorder, Reporter};
use kube::runtime::watcher::{Config, Event, ExponentialBackoff, watcher};
use kube::{Api, Client, ResourceExt};
use tokio::sync::{mpsc, watch};

use crate::enrol::ReportNotEnrolledFn;
use crate::pods::NodePod;

/// Name of the agents' `DaemonSet`, in the agent's own namespace.
const DAEMON_SET: &str = "mesh-agent";

/// Most bytes of an event's note; the API server refuses more than 1 KiB.
const LONGEST_NOTE: usize = 1000;

/// Connects as the pod's service account, or as `KUBECONFIG` says outside of a cluster. Errors: there is
/// neither.
pub async fn connect() -> Result<Client, kube::Error> {
    // The control plane's client uses the same provider.
    let _installed_already = rustls::crypto::aws_lc_rs::default_provider().install_default();
    Client::try_default().await
}

/// Returns the pauses before a lost watch is tried again. They are short, since a pod that starts meanwhile
/// is not in the mesh, and have jitter, so that not all nodes ask the API server at once.
pub fn watch_backoff() -> ExponentialBackoff {
    let (first, longest) = (Duration::from_millis(250), Duration::from_secs(5));
    ExponentialBuilder::new()
        .with_min_delay(first)
        .with_max_delay(longest)
        .with_jitter()
        .without_max_times()
        .into()
}

/// Makes an event for each reason why a pod is not enrolled: one for each reason, however often that is tried
/// again.
pub fn pod_event_reporter(client: Client, node: &str) -> ReportNotEnrolledFn {
    let reporter = Reporter { controller: "nodemesh.io/mesh-agent".into(), instance: Some(node.to_owned()) };
    let events = Recorder::new(client, reporter);
    let (sender, mut reports) = mpsc::unbounded_channel::<(NodePod, String)>();
    tokio::spawn(async move {
        let mut said: HashMap<Arc<str>, String> = HashMap::new();
        while let Some((pod, reason)) = reports.recv().await {
            if said.get(&pod.uid) == Some(&reason) {
                continue;
            }
            match events.publish(&not_enrolled(&reason), &reference(&pod)).await {
                Ok(()) => drop(said.insert(Arc::clone(&pod.uid), reason)),
                Err(error) => tracing::warn!(pod = %pod.name, %error, "event not written"),
            }
        }
    });
    Box::new(move |pod, reason| {
        // Nobody reads any more when the agent stops.
        let _stopping = sender.send((pod.clone(), reason.to_owned()));
    })
}

fn not_enrolled(reason: &str) -> ClusterEvent {
    ClusterEvent {
        type_: EventType::Warning,
        reason: "NotEnrolled".to_owned(),
        note: Some(truncate_note(reason)),
        action: "Enrol".to_owned(),
        secondary: None,
    }
}

/// Cuts a text to the length that the API server takes.
pub fn truncate_note(text: &str) -> String {
    text.chars().take(LONGEST_NOTE).collect()
}

fn reference(pod: &NodePod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        namespace: Some(pod.namespace.to_string()),
        name: Some(pod.name.to_string()),
        uid: Some(pod.uid.to_string()),
        ..ObjectReference::default()
    }
}

/// Follows whether the agents' `DaemonSet` is there. It is watched all the time, since an uninstallation also
/// takes away the permission to ask.
pub fn watch_own_daemon_set(client: Client, namespace: &str) -> watch::Receiver<bool> {
    let (sender, installed) = watch::channel(true);
    let api: Api<PartialObjectMeta<DaemonSet>> = Api::namespaced(client, namespace);
    let own = Config::default().fields(&format!("metadata.name={DAEMON_SET}"));
    tokio::spawn(async move {
        let events = watcher(api, own).backoff(watch_backoff());
        pin_mut!(events);
        let mut listed = false;
        while let Some(event) = events.next().await {
            let there = match event {
                Ok(Event::Init) => {
                    listed = false;
                    continue;
                }
                Ok(Event::InitApply(set)) => {
                    listed = true;
                    stays(&set)
                }
                Ok(Event::InitDone) if listed => continue,
                Ok(Event::InitDone | Event::Delete(_)) => false,
                Ok(Event::Apply(set)) => stays(&set),
                Err(error) => {
                    tracing::debug!(%error, "own DaemonSet not watched; trying again");
                    continue;
                }
            };
            sender.send_replace(there);
        }
    });
    installed
}

fn stays(set: &impl ResourceExt) -> bool {
    set.meta().deletion_timestamp.is_none()
}
