//! Telling people who look at the node in Kubernetes what it lacks.

use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder, Reporter};

use super::Need;
use crate::cluster;

/// The answer of the check is in its output and exit status; nobody waits longer for more.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Makes an event of what is missing on `node`. A failure is told on standard error and changes nothing.
pub fn tell(node: &str, missing: &[&Need]) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let told = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        let publishing = async { tokio::time::timeout(TIMEOUT, publish(node, missing)).await };
        match runtime.block_on(publishing) {
            Ok(published) => published.map_err(|error| error.to_string()),
            Err(_) => Err("the API server does not answer".to_owned()),
        }
    });
    if let Err(error) = told {
        mesh_log::remark(format_args!("mesh-agent: no event on the node: {error}"));
    }
}

async fn publish(node: &str, missing: &[&Need]) -> Result<(), kube::Error> {
    let reporter = Reporter { controller: "nodemesh.io/mesh-agent".into(), instance: Some(node.to_owned()) };
    let event = Event {
        type_: EventType::Warning,
        reason: "MeshAgentCannotRun".to_owned(),
        note: Some(cluster::note(&in_words(missing))),
        action: "Check".to_owned(),
        secondary: None,
    };
    let regarding = ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Node".to_owned()),
        name: Some(node.to_owned()),
        // As kubelets refer to their nodes, by which `kubectl describe` finds the event.
        uid: Some(node.to_owned()),
        ..ObjectReference::default()
    };
    Recorder::new(cluster::connect().await?, reporter).publish(&event, &regarding).await
}

fn in_words(missing: &[&Need]) -> String {
    let each = missing.iter().map(|need| format!("{}: {}", need.name, need.detail));
    each.collect::<Vec<_>>().join("; ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_need_is_named_with_what_was_found() {
        let need = |name, detail: &str| Need {
            name,
            required: true,
            found: false,
            detail: detail.to_owned(),
            without: "nothing works",
        };
        let (first, second) = (need("kernel", "4.19 is too old"), need("BTF", "no file"));
        assert_eq!(in_words(&[&first, &second]), "kernel: 4.19 is too old; BTF: no file");
    }
}
