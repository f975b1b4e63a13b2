//! What the command line and tests ask a lab's daemon for: one JSON object per line, one answer per line.

use std::{net::IpAddr, path::PathBuf};

use mesh_api::manifest::{Kind, ManifestError};
use serde::{Deserialize, Serialize};

/// A question.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// Apply manifests; answered with a [`Report`].
    Apply {
        /// The manifests.
        documents: Vec<Document>,
    },
    /// Delete the objects of manifests and wait until they are gone; answered with a [`Report`].
    Delete {
        /// The manifests.
        documents: Vec<Document>,
    },
    /// Delete one object and wait until it is gone; answered with a [`Report`].
    DeleteObject {
        /// Its kind.
        kind: Kind,
        /// Its namespace; empty for kinds that have none.
        namespace: String,
        /// Its name.
        name: String,
    },
    /// All objects of a kind, as Kubernetes would show them; answered with a list of them.
    List {
        /// The kind.
        kind: Kind,
        /// Namespace; all if absent.
        namespace: Option<String>,
    },
    /// How to enter a pod; answered with a [`PodEntry`].
    Enter {
        /// The pod's namespace.
        namespace: String,
        /// The pod.
        pod: String,
        /// The container; the first if absent.
        container: Option<String>,
    },
    /// Do something to a node's agent; answered with a [`ProgramStatus`].
    Agent {
        /// The node.
        node: String,
        /// What to do.
        action: Action,
    },
    /// Do something to the control plane; answered with a [`ProgramStatus`].
    Control {
        /// What to do.
        action: Action,
    },
    /// How the lab is; answered with a [`LabStatus`].
    Status,
}

/// A file of manifests.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Document {
    /// Name, for messages.
    pub file: String,
    /// Content: YAML or JSON, any number of documents.
    pub text: String,
}

/// What came of `apply` or `delete`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// What was done.
    pub changes: Vec<Change>,
    /// What was left out, and why.
    pub errors: Vec<ManifestError>,
    /// What has no effect, or less than its author may think.
    pub warnings: Vec<ManifestError>,
}

/// One object's change.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Change {
    /// `Kind namespace/name`.
    pub resource: String,
    /// What happened to it.
    pub outcome: Outcome,
}

/// What happened to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// It is new.
    Created,
    /// It was there and is different now.
    Configured,
    /// It was there like this.
    Unchanged,
    /// It is gone, or going.
    Deleted,
}

impl Outcome {
    /// The word for it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Configured => "configured",
            Self::Unchanged => "unchanged",
            Self::Deleted => "deleted",
        }
    }
}

/// How to become a process of a pod.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodEntry {
    /// A process in the pod's namespaces.
    pub pid: u32,
    /// The container's cgroup.
    pub cgroup: PathBuf,
    /// The container's environment.
    pub environment: Vec<(String, String)>,
    /// The container's working directory.
    pub workdir: PathBuf,
}

/// What can be done to a program of the mesh.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Action {
    /// Start it, if it does not run.
    Start,
    /// Ask it to end (SIGTERM) and wait; kill it if it takes longer than 15 s.
    Stop,
    /// Kill it (SIGKILL).
    Kill,
    /// Stop and start.
    Restart,
    /// Kill the agent's proxy alone (SIGKILL); its keeper starts the next.
    KillProxy,
    /// Start another agent beside the one that runs, which takes over from it; the old one is told to stop
    /// then.
    Upgrade,
}

/// How a lab is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LabStatus {
    /// Name.
    pub name: String,
    /// State directory.
    pub state: PathBuf,
    /// Process id of the daemon.
    pub daemon: u32,
    /// The control plane; absent in a lab without a mesh.
    pub control: Option<ProgramStatus>,
    /// The nodes.
    pub nodes: Vec<NodeStatus>,
}

/// How a node is.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NodeStatus {
    /// Name.
    pub name: String,
    /// Addresses on the fabric.
    pub addresses: Vec<IpAddr>,
    /// Networks of its pods.
    pub pod_networks: Vec<String>,
    /// Pods placed on it.
    pub pods: usize,
    /// Those of them that are ready.
    pub ready_pods: usize,
    /// The agent; absent in a lab without a mesh.
    pub agent: Option<ProgramStatus>,
}

/// How a program of the mesh is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProgramStatus {
    /// Its process id, if it runs.
    pub pid: Option<u32>,
    /// Process ids of those that it started, such as an agent's proxy.
    #[serde(default)]
    pub children: Vec<u32>,
    /// How it ended, if it does not: `exit status: 1`, `signal: 9 (SIGKILL)`.
    pub ended: Option<String>,
    /// How often it was started.
    pub starts: u32,
    /// Its log.
    pub log: PathBuf,
}

/// Why the daemon did not do it.
#[derive(Clone, Debug, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Refusal {
    /// For the user.
    pub message: String,
}

impl Refusal {
    /// A refusal with that message.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into() }
    }
}

/// An answer: what the request's documentation says, or a refusal.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Answer {
    /// It was done.
    Done(serde_json::Value),
    /// It was not.
    Refused(Refusal),
}
