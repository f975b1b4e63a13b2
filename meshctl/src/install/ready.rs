//! Waits until control plane and agents serve, and says how far they are.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use k8s_openapi::api::apps::v1::{DaemonSet, Deployment};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;

use crate::cluster::{COMPONENT_AGENT, COMPONENT_CONTROL, Cluster, refused, trouble};

/// Between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// How far a roll-out is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Progress {
    what: &'static str,
    /// Of the present version, and available.
    done: i32,
    wanted: i32,
    /// Whether the owner has seen what was asked of it.
    observed: bool,
}

/// Waits. An error that says what holds it up if not everything is ready in time.
pub async fn wait(cluster: &Cluster, timeout: Duration) -> Result<()> {
    let end = Instant::now() + timeout;
    let mut told = String::new();
    loop {
        let all = look(cluster).await?;
        let line = all.iter().map(Progress::to_string).collect::<Vec<_>>().join(", ");
        if line != told {
            remark!("{line}");
            told = line;
        }
        if all.iter().all(Progress::is_done) {
            return Ok(());
        }
        let refused = refusals(cluster).await;
        if !refused.is_empty() {
            bail!(
                "these nodes can't run the agent, and waiting changes nothing:{refused}\nRun `meshctl install` again with \
                 what they need, or keep agents off them by agent.nodeSelector"
            );
        }
        if Instant::now() > end {
            let troubles = troubles(cluster).await;
            bail!(
                "not ready after {}: {told}{troubles}\nIt goes on; `meshctl check` says what is wrong",
                humantime::format_duration(timeout)
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}

async fn look(cluster: &Cluster) -> Result<Vec<Progress>> {
    let control = cluster.deployment().await?.map(|it| of_deployment(&it));
    let agents = cluster.daemon_set().await?.map(|it| of_daemon_set(&it));
    Ok(control.into_iter().chain(agents).collect())
}

fn of_deployment(it: &Deployment) -> Progress {
    let wanted = it.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
    let status = it.status.clone().unwrap_or_default();
    let updated = status.updated_replicas.unwrap_or(0);
    let observed = status.observed_generation >= it.metadata.generation;
    // Replicas of the version before count until they are gone.
    let old = status.replicas.unwrap_or(0) - updated;
    let done = status.available_replicas.unwrap_or(0).min(updated) - old.max(0);
    Progress { what: "control plane", done: done.max(0), wanted, observed }
}

fn of_daemon_set(it: &DaemonSet) -> Progress {
    let status = it.status.clone().unwrap_or_default();
    let updated = status.updated_number_scheduled.unwrap_or(0);
    let done = status.number_available.unwrap_or(0).min(updated);
    let observed = status.observed_generation >= it.metadata.generation;
    Progress { what: "agents", done, wanted: status.desired_number_scheduled, observed }
}

impl Progress {
    fn is_done(&self) -> bool {
        self.observed && self.done >= self.wanted
    }
}

impl std::fmt::Display for Progress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {} of {} ready", self.what, self.done, self.wanted)
    }
}

/// What nodes lack where the agent's check of them has failed, each on a line.
async fn refusals(cluster: &Cluster) -> String {
    let Ok(Some(set)) = cluster.daemon_set().await else { return String::new() };
    let pods = cluster.pods(COMPONENT_AGENT).await.unwrap_or_default();
    let mut lines = String::new();
    for pod in pods.iter().filter(|pod| is_of_this_version(pod, &set)) {
        if let (Some(node), Some(words)) =
            (pod.spec.as_ref().and_then(|it| it.node_name.as_ref()), refused(pod))
        {
            lines.extend(["\n  ", node, ": ", &words]);
        }
    }
    lines
}

/// Whether a pod was made of what the `DaemonSet` says now. Pods of the version before may fail for what was
/// changed.
fn is_of_this_version(pod: &Pod, set: &DaemonSet) -> bool {
    let wanted = set.metadata.generation.map(|it| it.to_string());
    pod.labels().get("pod-template-generation") == wanted.as_ref()
}

/// What the mesh's pods that don't run say, each on a line.
async fn troubles(cluster: &Cluster) -> String {
    let mut lines = String::new();
    for component in [COMPONENT_CONTROL, COMPONENT_AGENT] {
        for pod in cluster.pods(component).await.unwrap_or_default() {
            if let Some(trouble) = trouble(&pod) {
                lines.extend(["\n  pod ", &pod.name_any(), ": ", &trouble]);
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_deployment_is_done_when_no_replica_of_the_version_before_is_left() {
        let of = |status: serde_json::Value| {
            let text = json!({
                "metadata": {"generation": 2},
                "spec": {"replicas": 2, "selector": {}, "template": {}}, "status": status,
            });
            of_deployment(&serde_json::from_value(text).unwrap())
        };
        let stale =
            of(json!({"observedGeneration": 1, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}));
        assert!(!stale.is_done());
        let rolling =
            of(json!({"observedGeneration": 2, "replicas": 3, "updatedReplicas": 2, "availableReplicas": 3}));
        assert!(!rolling.is_done(), "{rolling}");
        let done =
            of(json!({"observedGeneration": 2, "replicas": 2, "updatedReplicas": 2, "availableReplicas": 2}));
        assert!(done.is_done());
    }

    #[test]
    fn only_pods_of_this_version_say_what_their_nodes_lack() {
        let set: DaemonSet = serde_json::from_value(json!({
            "metadata": {"generation": 2}, "spec": {"selector": {}, "template": {}},
        }))
        .unwrap();
        let of = |generation: &str| -> Pod {
            let labels = json!({"pod-template-generation": generation});
            serde_json::from_value(json!({"metadata": {"labels": labels}})).unwrap()
        };
        assert!(is_of_this_version(&of("2"), &set));
        assert!(!is_of_this_version(&of("1"), &set));
    }

    #[test]
    fn agents_are_done_when_every_node_has_one_of_this_version() {
        let of = |updated: i32| {
            let text = json!({
                "metadata": {"generation": 1}, "spec": {"selector": {}, "template": {}},
                "status": {
                    "observedGeneration": 1, "desiredNumberScheduled": 2, "currentNumberScheduled": 2,
                    "numberMisscheduled": 0, "numberReady": 2, "numberAvailable": 2,
                    "updatedNumberScheduled": updated,
                },
            });
            of_daemon_set(&serde_json::from_value(text).unwrap())
        };
        assert!(!of(1).is_done());
        assert!(of(2).is_done());
    }
}
