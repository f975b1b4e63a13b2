//! Kubernetes events about pods that are not enrolled.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use tokio::sync::mpsc;

use crate::enrol::ReportNotEnrolledFn;
use crate::pods::NodePod;
use crate::truncate_event_note::truncate_event_note;

/// Makes an event for each reason why a pod is not enrolled: one for each reason, however often that is tried
/// again.
pub fn spawn_not_enrolled_reporter(client: Client, node: &str) -> ReportNotEnrolledFn {
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

fn not_enrolled(reason: &str) -> Event {
    Event {
        type_: EventType::Warning,
        reason: "NotEnrolled".to_owned(),
        note: Some(truncate_event_note(reason)),
        action: "Enrol".to_owned(),
        secondary: None,
    }
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
