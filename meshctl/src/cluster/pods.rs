//! What a pod's status says of it, in one line.

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod};

/// The agent pods' init container that looks whether the node has what the agent needs.
const CHECK: &str = "check";

/// Whether its condition `Ready` is true.
pub fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.iter().filter_map(|status| status.conditions.as_ref()).flatten();
    conditions.into_iter().any(|it| it.type_ == "Ready" && it.status == "True")
}

/// Why its program does not run, if it does not.
pub fn trouble(pod: &Pod) -> Option<String> {
    let Some(status) = &pod.status else { return Some("has no status yet".to_owned()) };
    let of = |list: &Option<Vec<ContainerStatus>>| list.iter().flatten().find_map(stuck);
    if let Some(stuck) = of(&status.init_container_statuses).or_else(|| of(&status.container_statuses)) {
        return Some(stuck);
    }
    match status.phase.as_deref() {
        Some("Running") => None,
        Some("Pending") if pod.spec.as_ref().is_none_or(|spec| spec.node_name.is_none()) => {
            Some(unscheduled(pod).unwrap_or_else(|| "is not scheduled yet".to_owned()))
        }
        phase => {
            let reason = status.reason.as_ref().or(status.message.as_ref());
            let reason = reason.map(|reason| format!(": {reason}")).unwrap_or_default();
            Some(format!("is {}{reason}", phase.unwrap_or("in no phase yet")))
        }
    }
}

/// What an agent's node lacks, if the check that runs before the agent has failed there.
pub fn refused(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.init_container_statuses.as_ref()?;
    let check = containers.iter().find(|container| container.name == CHECK)?;
    [&check.state, &check.last_state].into_iter().find_map(|state| {
        let ended = state.as_ref()?.terminated.as_ref()?;
        (ended.exit_code != 0).then(|| last_words(state.as_ref()))?
    })
}

fn unscheduled(pod: &Pod) -> Option<String> {
    let conditions = pod.status.as_ref()?.conditions.as_ref()?;
    let scheduled = conditions.iter().find(|it| it.type_ == "PodScheduled" && it.status == "False")?;
    Some(format!("is not scheduled: {}", scheduled.message.as_deref()?))
}

/// What holds a container up: it waits for something else than its turn, or it ended with an error.
fn stuck(of: &ContainerStatus) -> Option<String> {
    let waiting = of.state.as_ref().and_then(|state| state.waiting.as_ref());
    let reason = waiting.and_then(|waiting| waiting.reason.as_deref());
    if let Some(reason) = reason.filter(|reason| !matches!(*reason, "PodInitializing" | "ContainerCreating"))
    {
        let said = waiting.and_then(|waiting| waiting.message.clone());
        return Some(line(&of.name, reason, last_words(of.last_state.as_ref()).or(said)));
    }
    let ended = of.state.as_ref()?.terminated.as_ref().filter(|ended| ended.exit_code != 0)?;
    let reason = ended.reason.as_deref().unwrap_or("Error");
    Some(line(&of.name, reason, last_words(of.state.as_ref())))
}

/// What a container that ended left as its termination message.
fn last_words(state: Option<&ContainerState>) -> Option<String> {
    let ended = state?.terminated.as_ref()?;
    let words = ended.message.as_deref().map(str::trim).filter(|words| !words.is_empty());
    Some(words.map_or_else(|| format!("exit status {}", ended.exit_code), ToOwned::to_owned))
}

fn line(container: &str, reason: &str, detail: Option<String>) -> String {
    let detail = detail.map(|detail| format!(": {detail}")).unwrap_or_default();
    format!("container {container} is in {reason}{detail}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn pod(status: &Value) -> Pod {
        let pod = json!({
            "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
            "spec": {"nodeName": "node1", "containers": []}, "status": status,
        });
        serde_json::from_value(pod).unwrap()
    }

    fn container(name: &str, state: &Value, last: &Value) -> Value {
        json!({
            "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 1,
            "state": state, "lastState": last,
        })
    }

    #[test]
    fn a_running_pod_has_no_trouble_and_is_ready_when_its_condition_says_so() {
        let mut running = pod(&json!({"phase": "Running"}));
        assert_eq!(trouble(&running), None);
        assert!(!is_ready(&running));
        running = pod(&json!({"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}));
        assert!(is_ready(&running));
    }

    #[test]
    fn what_a_check_said_before_it_ended_is_told() {
        let ended = json!({"terminated": {"exitCode": 1, "message": "no cgroup v2\n"}});
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s"}});
        let init = container("check", &waits, &ended);
        let stuck = pod(&json!({"phase": "Pending", "initContainerStatuses": [init]}));
        assert_eq!(trouble(&stuck).unwrap(), "container check is in CrashLoopBackOff: no cgroup v2");
    }

    #[test]
    fn a_pod_on_its_way_says_its_phase() {
        let creating = container("agent", &json!({"waiting": {"reason": "ContainerCreating"}}), &json!({}));
        let coming = pod(&json!({"phase": "Pending", "containerStatuses": [creating]}));
        assert_eq!(trouble(&coming).unwrap(), "is Pending");
        let evicted = pod(&json!({"phase": "Failed", "reason": "Evicted"}));
        assert_eq!(trouble(&evicted).unwrap(), "is Failed: Evicted");
    }

    #[test]
    fn an_image_that_is_not_there_is_told_with_the_runtimes_words() {
        let waits = json!({"waiting": {"reason": "ErrImageNeverPull", "message": "image is not present"}});
        let stuck = pod(&json!({
            "phase": "Pending", "containerStatuses": [container("agent", &waits, &json!({}))],
        }));
        assert_eq!(trouble(&stuck).unwrap(), "container agent is in ErrImageNeverPull: image is not present");
    }

    #[test]
    fn what_a_node_lacks_is_what_its_check_ended_with() {
        let check = |state: Value, last: Value| {
            pod(&json!({"phase": "Pending", "initContainerStatuses": [
                {"name": "check", "image": "", "imageID": "", "ready": false, "restartCount": 1, "state": state, "lastState": last},
            ]}))
        };
        let ended = |code: i32| json!({"terminated": {"exitCode": code, "message": "cgroup v2: none"}});
        assert_eq!(refused(&check(ended(1), json!({}))).as_deref(), Some("cgroup v2: none"));
        let waits = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        assert_eq!(refused(&check(waits, ended(1))).as_deref(), Some("cgroup v2: none"));
        assert_eq!(refused(&check(ended(0), json!({}))), None);
        assert_eq!(refused(&pod(&json!({"phase": "Pending"}))), None);
    }
}
