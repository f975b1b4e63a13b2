//! Talking to a lab's daemon.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::PathBuf,
    time::{Duration, Instant},
};

use mesh_api::manifest::Kind;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::{
    api::{Action, Answer, Document, LabStatus, PodEntry, ProgramStatus, Refusal, Report, Request},
    layout::Layout,
};

/// Between two looks at what is not ready yet.
const LOOK: Duration = Duration::from_millis(20);

/// A lab's daemon, asked over its socket. Each question is a connection of its own, and blocks.
#[derive(Clone, Debug)]
pub struct Client {
    lab: String,
    socket: PathBuf,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// There is no such lab.
    #[error("the lab {0} is not up; `mesh-lab --name {0} up` brings it up")]
    NotUp(String),
    /// Its daemon has gone.
    #[error("the daemon of the lab {0} does not run any more; `mesh-lab --name {0} down` cleans up after it")]
    Crashed(String),
    /// The connection broke.
    #[error("the daemon did not answer: {0}")]
    Connection(#[from] io::Error),
    /// The answer makes no sense: this program and the daemon are of different versions.
    #[error("the daemon's answer cannot be read: {0}")]
    Answer(#[from] serde_json::Error),
    /// The daemon said no.
    #[error(transparent)]
    Refused(#[from] Refusal),
}

impl Client {
    /// A client of that lab.
    pub fn new(layout: &Layout) -> Self {
        Self { lab: layout.name().to_string(), socket: layout.socket() }
    }

    /// Applies manifests.
    pub fn apply(&self, documents: Vec<Document>) -> Result<Report, ClientError> {
        self.call(&Request::Apply { documents })
    }

    /// Deletes the objects of manifests; returns when they are gone.
    pub fn delete(&self, documents: Vec<Document>) -> Result<Report, ClientError> {
        self.call(&Request::Delete { documents })
    }

    /// Deletes one object; returns when it is gone.
    pub fn delete_object(&self, kind: Kind, namespace: &str, name: &str) -> Result<Report, ClientError> {
        self.call(&Request::DeleteObject { kind, namespace: namespace.to_owned(), name: name.to_owned() })
    }

    /// All objects of a kind, in one namespace or all.
    pub fn list(&self, kind: Kind, namespace: Option<&str>) -> Result<Vec<Value>, ClientError> {
        self.call(&Request::List { kind, namespace: namespace.map(str::to_owned) })
    }

    /// How to enter a pod.
    pub fn enter(
        &self,
        namespace: &str,
        pod: &str,
        container: Option<&str>,
    ) -> Result<PodEntry, ClientError> {
        self.call(&Request::Enter {
            namespace: namespace.to_owned(),
            pod: pod.to_owned(),
            container: container.map(str::to_owned),
        })
    }

    /// Does something to a node's agent.
    pub fn agent(&self, node: &str, action: Action) -> Result<ProgramStatus, ClientError> {
        self.call(&Request::Agent { node: node.to_owned(), action })
    }

    /// Does something to the control plane.
    pub fn control(&self, action: Action) -> Result<ProgramStatus, ClientError> {
        self.call(&Request::Control { action })
    }

    /// How the lab is.
    pub fn status(&self) -> Result<LabStatus, ClientError> {
        self.call(&Request::Status)
    }

    /// Waits until every deployment has its pods and every pod is ready or has done its work; on the deadline
    /// tells which are not, and why.
    pub fn wait_ready(&self, namespace: Option<&str>, deadline: Duration) -> Result<(), WaitError> {
        let end = Instant::now() + deadline;
        loop {
            let unready = self.unready(namespace)?;
            if unready.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                return Err(WaitError::NotReady { seconds: deadline.as_secs(), unready });
            }
            std::thread::sleep(LOOK);
        }
    }

    fn unready(&self, namespace: Option<&str>) -> Result<Vec<String>, ClientError> {
        let deployments = self.list(Kind::Deployment, namespace)?;
        let pods = self.list(Kind::Pod, namespace)?;
        Ok(deployments
            .iter()
            .filter_map(unready_deployment)
            .chain(pods.iter().filter_map(unready_pod))
            .collect())
    }

    fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, ClientError> {
        let mut stream = UnixStream::connect(&self.socket).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => ClientError::NotUp(self.lab.clone()),
            io::ErrorKind::ConnectionRefused => ClientError::Crashed(self.lab.clone()),
            _ => ClientError::Connection(error),
        })?;
        let mut line = serde_json::to_string(request)?;
        line.push('\n');
        stream.write_all(line.as_bytes())?;
        let mut answer = String::new();
        BufReader::new(stream).read_line(&mut answer)?;
        if answer.is_empty() {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
        match serde_json::from_str(&answer)? {
            Answer::Done(value) => Ok(serde_json::from_value(value)?),
            Answer::Refused(refusal) => Err(refusal.into()),
        }
    }
}

/// Why not everything is ready.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Some things are not.
    #[error("not ready after {seconds} s:\n  {}", unready.join("\n  "))]
    NotReady {
        /// How long was waited.
        seconds: u64,
        /// Each with its reason.
        unready: Vec<String>,
    },
    /// The daemon did not answer.
    #[error(transparent)]
    Client(#[from] ClientError),
}

fn unready_deployment(deployment: &Value) -> Option<String> {
    let wanted = deployment["spec"]["replicas"].as_u64().unwrap_or(1);
    let status = &deployment["status"];
    let ready = status["readyReplicas"].as_u64().unwrap_or(0);
    let all = status["replicas"].as_u64().unwrap_or(0);
    (ready != wanted || all != wanted)
        .then(|| format!("Deployment {}: {ready} of {wanted} pods are ready", full_name(deployment)))
}

fn unready_pod(pod: &Value) -> Option<String> {
    let status = &pod["status"];
    let ready = status["conditions"].as_array().into_iter().flatten().find(|c| c["type"] == "Ready");
    if status["phase"] == "Succeeded" || ready.is_some_and(|c| c["status"] == "True") {
        return None;
    }
    let why = ready.and_then(|c| c["message"].as_str()).unwrap_or("not started");
    Some(format!("Pod {}: {why}", full_name(pod)))
}

fn full_name(object: &Value) -> String {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    format!("{}/{}", text("namespace"), text("name"))
}
