//! One pod's life: sandbox, enrolment, init containers, containers, end.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::future::join_all;
use mesh_api::{
    admin,
    resource::{Pod, pod::Container},
};
use tokio::sync::watch;

use super::{
    Node, asked_to_stop,
    container::{self, Supervised},
    environment, http,
    sandbox::Sandbox,
    status::Board,
};
use crate::{api::PodEntry, cluster::Stored};

/// How long a pod waits to be enrolled before it starts all the same.
const ENROLMENT: Duration = Duration::from_secs(10);
/// Between two looks at whether it is.
const LOOK: Duration = Duration::from_millis(20);
/// Between two attempts to make a sandbox.
const RETRY: Duration = Duration::from_secs(2);

/// Runs a pod until it has ended or `stopped` says that it is to. Leaves no process, link or cgroup.
pub async fn run(node: &Node, stored: &Stored, stopped: watch::Receiver<bool>) {
    let Some(pod) = stored.pod() else { return };
    let board = Arc::new(Board::new(node.store.clone(), pod));
    let Some(sandbox) = sandbox(node, pod, &board, &stopped).await else { return };
    node.set_entries(&pod.metadata.uid, entries(node, pod, &sandbox));
    tokio::select! {
        () = settle(node, pod, &board) => containers(node, pod, &sandbox, &board, &stopped).await,
        () = asked_to_stop(&stopped) => {}
    }
    node.remove_entries(&pod.metadata.uid);
    if let Err(error) = sandbox.destroy().await {
        tracing::error!(pod = %pod.metadata.full_name(), %error, "a pod left something behind");
    }
}

/// Makes the sandbox, again and again if need be. `None` if the pod was deleted before it came to be.
async fn sandbox(node: &Node, pod: &Pod, board: &Board, stopped: &watch::Receiver<bool>) -> Option<Sandbox> {
    while !*stopped.borrow() {
        match Sandbox::create(node, pod).await {
            Ok(sandbox) => return Some(sandbox),
            Err(error) => {
                tracing::warn!(pod = %pod.metadata.full_name(), %error, "no sandbox");
                board.update(|state| state.wait_all("FailedCreatePodSandBox", &error.to_string()));
            }
        }
        let _ = tokio::time::timeout(RETRY, asked_to_stop(stopped)).await;
    }
    None
}

fn entries(node: &Node, pod: &Pod, sandbox: &Sandbox) -> Vec<(String, PodEntry)> {
    let containers = pod.spec.containers.iter().chain(&pod.spec.init_containers);
    let entry = |container: &Container| PodEntry {
        pid: sandbox.pid(),
        cgroup: sandbox.container_cgroup(&container.name),
        environment: environment::of(pod, container, node),
        workdir: environment::workdir(container),
    };
    containers.map(|container| (container.name.clone(), entry(container))).collect()
}

async fn containers(
    node: &Node,
    pod: &Pod,
    sandbox: &Sandbox,
    board: &Arc<Board>,
    stopped: &watch::Receiver<bool>,
) {
    let supervised =
        |container| Supervised { node, pod, container, sandbox, board, stopped: stopped.clone() };
    for container in &pod.spec.init_containers {
        let ended = container::run_to_success(supervised(container)).await;
        if !ended {
            return;
        }
    }
    board.update(super::status::State::initialized);
    join_all(pod.spec.containers.iter().map(|container| container::run(supervised(container)))).await;
}

/// Waits until the node's agent has dealt with the pod, so that its first connection is the mesh's already.
async fn settle(node: &Node, pod: &Pod, board: &Board) {
    if !node.has_agent {
        return;
    }
    let deadline = Instant::now() + ENROLMENT;
    let missing = loop {
        let missing = match enrolment(node, &pod.metadata.uid).await {
            Ok(Some(status)) if status.state.is_final() => return,
            Ok(Some(_)) => "the agent has not found the pod's network namespace".to_owned(),
            Ok(None) => "the agent does not list the pod".to_owned(),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            break missing;
        }
        tokio::time::sleep(LOOK).await;
    };
    let message =
        format!("started without waiting further for the mesh after {} s: {missing}", ENROLMENT.as_secs());
    tracing::warn!(pod = %pod.metadata.full_name(), message);
    board.update(|state| state.not_settled(message));
}

async fn enrolment(node: &Node, uid: &str) -> Result<Option<admin::PodStatus>, String> {
    let pods: Vec<admin::PodStatus> = http::get_json(&node.paths.admin(), "/pods").await?;
    Ok(pods.into_iter().find(|status| status.uid == uid))
}
