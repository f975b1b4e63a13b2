//! Whom to ask: the programs of a lab, or agents by address.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};
use clap::Args;
use mesh_api::admin::AgentStatus;
use serde::de::DeserializeOwned;

use crate::ask::Endpoint;

/// Where labs keep their state.
const LABS: &str = "/run/nodemesh-lab";

/// Whom to ask.
#[derive(Args)]
pub struct Source {
    /// A lab of this machine: all its agents and its control plane
    #[arg(long, global = true, value_name = "NAME", env = "NODEMESH_LAB", default_value = "default")]
    lab: String,
    /// An agent's admin endpoint, HOST:PORT or unix:PATH, instead of a lab; may be repeated
    #[arg(long = "agent", global = true, value_name = "ADDRESS")]
    agents: Vec<Endpoint>,
    /// The control plane's admin endpoint, unix:PATH, if it isn't a lab's
    #[arg(long, global = true, value_name = "ADDRESS")]
    control: Option<Endpoint>,
}

/// What each agent that answered said.
pub type Answers<T> = Vec<(Node, T)>;

/// An agent that answers.
#[derive(Clone, Debug)]
pub struct Node {
    /// Name of its node.
    pub name: String,
    /// Where it answers.
    pub endpoint: Endpoint,
}

impl Source {
    /// The agents, in the order of their nodes' names or as given. An error if there is none.
    pub fn agents(&self) -> Result<Vec<Endpoint>> {
        if !self.agents.is_empty() {
            return Ok(self.agents.clone());
        }
        let lab = self.lab_directory();
        let sockets = agent_sockets(&lab.join("nodes"));
        if sockets.is_empty() {
            let lab = &self.lab;
            bail!(
                "the lab {lab} has no agent. `mesh-lab --name {lab} up` brings it up; --agent asks an agent elsewhere"
            );
        }
        Ok(sockets.into_iter().map(Endpoint::Unix).collect())
    }

    /// The control plane, where it is known.
    pub fn control(&self) -> Option<Endpoint> {
        let of_lab = || Endpoint::Unix(self.lab_directory().join("control/control.sock"));
        self.control.clone().or_else(|| self.agents.is_empty().then(of_lab))
    }

    fn lab_directory(&self) -> PathBuf {
        Path::new(LABS).join(&self.lab)
    }
}

/// Asks all of them. Those that don't answer are told of on standard error; an error if no one does.
pub async fn all<T: DeserializeOwned>(endpoints: Vec<Endpoint>, path: &str) -> Result<Answers<T>> {
    let mut answers = Vec::new();
    for endpoint in endpoints {
        match one(&endpoint, path).await {
            Ok((name, answer)) => answers.push((Node { name, endpoint }, answer)),
            Err(error) => eprintln!("warning: {error:#}"),
        }
    }
    if answers.is_empty() {
        bail!("no agent answered");
    }
    Ok(answers)
}

async fn one<T: DeserializeOwned>(endpoint: &Endpoint, path: &str) -> Result<(String, T)> {
    let status: AgentStatus = endpoint.json("/status").await?;
    Ok((status.node, endpoint.json(path).await?))
}

fn agent_sockets(nodes: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(nodes).into_iter().flatten().flatten();
    let mut sockets: Vec<_> =
        entries.map(|entry| entry.path().join("admin.sock")).filter(|path| path.exists()).collect();
    sockets.sort();
    sockets
}
