//! Answers the command line.

use std::{sync::Arc, time::Duration};

use mesh_api::manifest::{Kind, ManifestError, ObjectKey};
use serde::Serialize;
use serde_json::Value;
use tokio::{
    io::{AsyncBufReadExt, AsyncWriteExt, BufReader},
    net::{UnixListener, UnixStream},
    time::{sleep, timeout},
};

use super::{Daemon, LabNode};
use crate::{
    api::{
        Action, Answer, Change, LabStatus, NodeStatus, Outcome, PodEntry, ProgramStatus, Refusal, Report,
        Request,
    },
    cluster::{self, key},
    mesh::Program,
};

/// How long a deletion waits for pods to end. Longer than any pod's own grace period that a lab should use.
const DELETION: Duration = Duration::from_mins(1);

/// Serves for good.
pub async fn serve(daemon: Arc<Daemon>, socket: UnixListener) {
    loop {
        match socket.accept().await {
            Ok((stream, _)) => {
                let daemon = daemon.clone();
                tokio::spawn(async move {
                    if let Err(error) = converse(&daemon, stream).await {
                        tracing::debug!(%error, "a client left early");
                    }
                });
            }
            Err(error) => {
                tracing::error!(%error, "cannot accept");
                sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn converse(daemon: &Daemon, stream: UnixStream) -> std::io::Result<()> {
    let (reader, mut writer) = stream.into_split();
    let mut lines = BufReader::new(reader).lines();
    while let Some(line) = lines.next_line().await? {
        let result = match serde_json::from_str(&line) {
            Ok(request) => daemon.answer(request).await,
            Err(error) => Err(Refusal::new(format!("not a request: {error}"))),
        };
        let answer = result.map_or_else(Answer::Refused, Answer::Done);
        let mut text = serde_json::to_string(&answer)?;
        text.push('\n');
        writer.write_all(text.as_bytes()).await?;
    }
    Ok(())
}

impl Daemon {
    async fn answer(&self, request: Request) -> Result<Value, Refusal> {
        match request {
            Request::Apply { documents } => {
                let report = cluster::apply(&documents, &self.store, &self.placement);
                // Whoever asks next whether everything is ready must not be told of what was before.
                cluster::run_controllers_once(&self.store, &self.placement);
                json(&report)
            }
            Request::Delete { documents } => {
                let (report, going) = cluster::delete(&documents, &self.store);
                json(&self.gone(report, going).await)
            }
            Request::DeleteObject { kind, namespace, name } => {
                json(&self.delete_object(&key(kind, &namespace, &name)).await?)
            }
            Request::List { kind, namespace } => json(&self.list(kind, namespace.as_deref())),
            Request::Enter { namespace, pod, container } => {
                json(&self.enter(&namespace, &pod, container.as_deref())?)
            }
            Request::Agent { node, action } => {
                let found = self.node(&node)?.agent.as_ref();
                json(&act(found.ok_or_else(no_mesh)?, action).await?)
            }
            Request::Control { action } => {
                json(&act(self.control.as_ref().ok_or_else(no_mesh)?, action).await?)
            }
            Request::Status => json(&self.status().await?),
        }
    }

    async fn delete_object(&self, key: &ObjectKey) -> Result<Report, Refusal> {
        let going = cluster::delete_one(key, &self.store).map_err(refuse)?;
        let going = going.ok_or_else(|| Refusal::new(format!("there is no {key}")))?;
        let change = Change { resource: key.to_string(), outcome: Outcome::Deleted };
        Ok(self.gone(Report { changes: vec![change], ..Report::default() }, going).await)
    }

    /// Waits until the pods of a deletion are gone.
    async fn gone(&self, mut report: Report, going: Vec<ObjectKey>) -> Report {
        let mut changes = self.store.changes();
        let there = || going.iter().filter(|key| self.store.find(key).is_some());
        let wait = async {
            while there().next().is_some() {
                if changes.changed().await.is_err() {
                    return;
                }
            }
        };
        if timeout(DELETION, wait).await.is_err() {
            report.errors.extend(there().map(|key| ManifestError {
                file: "delete".to_owned(),
                line: 1,
                resource: Some(key.to_string()),
                field: None,
                problem: format!("still there after {} s", DELETION.as_secs()),
                fix: "see the daemon's log".to_owned(),
            }));
        }
        report
    }

    fn list(&self, kind: Kind, namespace: Option<&str>) -> Vec<Value> {
        let wanted =
            |object: &ObjectKey| namespace.is_none_or(|ns| !kind.is_namespaced() || object.namespace == ns);
        let stored = self.store.list(kind).into_iter().filter(|stored| wanted(&stored.object.key()));
        stored.map(|stored| stored.raw.clone()).collect()
    }

    fn enter(&self, namespace: &str, pod: &str, container: Option<&str>) -> Result<PodEntry, Refusal> {
        let stored = self.store.find(&key(Kind::Pod, namespace, pod));
        let stored = stored.ok_or_else(|| Refusal::new(format!("there is no pod {namespace}/{pod}")))?;
        let Some(found) = stored.pod() else { return Err(Refusal::new("not a pod")) };
        let containers = found.spec.containers.iter().chain(&found.spec.init_containers);
        if let Some(wanted) = container.filter(|wanted| !containers.clone().any(|c| c.name == **wanted)) {
            return Err(Refusal::new(format!("the pod {namespace}/{pod} has no container {wanted:?}")));
        }
        let entry = self.node(&found.spec.node_name)?.node.entry(&found.metadata.uid, container);
        let entry = entry.filter(|entry| entry.cgroup.exists());
        entry.ok_or_else(|| Refusal::new(format!("the pod {namespace}/{pod} does not run")))
    }

    fn node(&self, name: &str) -> Result<&LabNode, Refusal> {
        let found = self.nodes.iter().find(|node| node.node.name == name);
        found.ok_or_else(|| Refusal::new(format!("the lab has no node {name:?}")))
    }

    async fn status(&self) -> Result<LabStatus, Refusal> {
        let mut nodes = Vec::new();
        let pods = self.store.list(Kind::Pod);
        for LabNode { node, agent } in &self.nodes {
            let here =
                pods.iter().filter_map(|stored| stored.pod()).filter(|pod| pod.spec.node_name == node.name);
            nodes.push(NodeStatus {
                name: node.name.clone(),
                addresses: node.number.addresses().into(),
                pod_networks: node.number.pod_networks().into(),
                pods: here.clone().count(),
                ready_pods: here.filter(|pod| pod.is_ready()).count(),
                agent: status_of(agent.as_deref()).await?,
            });
        }
        Ok(LabStatus {
            name: self.layout.name().to_string(),
            state: self.layout.state().to_owned(),
            daemon: std::process::id(),
            control: status_of(self.control.as_deref()).await?,
            nodes,
        })
    }
}

async fn act(program: &Program, action: Action) -> Result<ProgramStatus, Refusal> {
    program.act(action).await.map_err(refuse)
}

async fn status_of(program: Option<&Program>) -> Result<Option<ProgramStatus>, Refusal> {
    match program {
        Some(program) => program.status().await.map(Some).map_err(refuse),
        None => Ok(None),
    }
}

fn no_mesh() -> Refusal {
    Refusal::new("the lab was started with --no-mesh")
}

fn refuse(error: impl std::error::Error) -> Refusal {
    Refusal::new(error.to_string())
}

fn json<T: Serialize>(value: &T) -> Result<Value, Refusal> {
    serde_json::to_value(value).map_err(refuse)
}
