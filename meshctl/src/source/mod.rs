//! Whom to ask: a cluster, the programs of a lab, or agents by address.

mod choice;
mod lab;

use std::path::PathBuf;

use anyhow::{Result, bail, ensure};
use clap::Args;
use futures_util::{StreamExt, stream};
use mesh_api::admin::AgentStatus;
use serde::de::DeserializeOwned;

use crate::ask::Endpoint;
use crate::cluster::{Access, Cluster};
use crate::reason::reason;
use choice::{Choice, Surroundings};

/// How many endpoints are asked at a time.
const AT_ONCE: usize = 16;

/// Whom to ask.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Which mesh")]
pub struct Source {
    /// The kubeconfig file instead of $KUBECONFIG and ~/.kube/config
    #[arg(long, global = true, value_name = "PATH")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig instead of its current one
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
    /// Namespace that the mesh is installed in
    #[arg(
        long,
        global = true,
        value_name = "NAMESPACE",
        env = "NODEMESH_NAMESPACE",
        default_value = "nodemesh-system"
    )]
    mesh_namespace: String,
    /// A lab of this machine instead of a cluster: all its agents and its control plane. Without a name it is
    /// `default`; $`NODEMESH_LAB` names one as well
    #[arg(long, global = true, value_name = "NAME", num_args = 0..=1, default_missing_value = "default")]
    lab: Option<String>,
    /// An agent's admin endpoint, HOST:PORT or unix:PATH, instead of a cluster or lab; may be repeated
    #[arg(long = "agent", global = true, value_name = "ADDRESS")]
    agents: Vec<Endpoint>,
    /// The control plane's admin endpoint, HOST:PORT or unix:PATH
    #[arg(long, global = true, value_name = "ADDRESS")]
    control: Option<Endpoint>,
}

/// Restricts an answer to nodes.
#[derive(Args, Clone, Debug, Default)]
pub struct Nodes {
    /// Only this node's agent is asked; may be repeated
    #[arg(long = "node", value_name = "NAME")]
    names: Vec<String>,
}

/// The mesh that is asked.
pub enum Mesh {
    /// Through the API server.
    Cluster(Cluster),
    /// On this machine or by address.
    Local {
        /// The agents.
        agents: Vec<Agent>,
        /// The control plane, where it is known.
        control: Option<Endpoint>,
        /// Directory of the objects, of a lab.
        manifests: Option<PathBuf>,
    },
}

/// An agent that can be asked, or not.
#[derive(Clone, Debug)]
pub struct Agent {
    /// Name of its node, where it is known without asking.
    pub node: Option<String>,
    /// Where it answers, or why it can't be asked.
    pub endpoint: Result<Endpoint, String>,
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
    /// The mesh. An error that says what to give if nothing leads to one.
    pub async fn mesh(&self) -> Result<Mesh> {
        Ok(match self.choice(&Surroundings::look())? {
            Choice::Cluster => Mesh::Cluster(self.connect().await?),
            Choice::Lab(name) => Mesh::Local {
                agents: lab::agents(&name)?,
                control: Some(self.control.clone().unwrap_or_else(|| lab::control(&name))),
                manifests: Some(lab::manifests(&name)),
            },
            Choice::Addresses => Mesh::Local {
                agents: self.agents.iter().map(|endpoint| Agent::at(endpoint.clone())).collect(),
                control: self.control.clone(),
                manifests: None,
            },
        })
    }

    /// The cluster, for verbs that need one.
    pub async fn cluster(&self) -> Result<Cluster> {
        match self.choice(&Surroundings::look())? {
            Choice::Cluster => self.connect().await,
            Choice::Lab(_) | Choice::Addresses => {
                bail!(
                    "this verb needs a cluster: leave out --lab, --agent and --control, or unset NODEMESH_LAB"
                )
            }
        }
    }

    /// Namespace of the mesh.
    pub fn mesh_namespace(&self) -> &str {
        &self.mesh_namespace
    }

    async fn connect(&self) -> Result<Cluster> {
        let access = Access { kubeconfig: self.kubeconfig.clone(), context: self.context.clone() };
        access.cluster(&self.mesh_namespace).await
    }
}

impl Agent {
    fn at(endpoint: Endpoint) -> Self {
        Self { node: None, endpoint: Ok(endpoint) }
    }
}

impl Mesh {
    /// The agents, in the order of their nodes' names or as given.
    pub async fn agents(&self) -> Result<Vec<Agent>> {
        match self {
            Self::Local { agents, .. } => Ok(agents.clone()),
            Self::Cluster(cluster) => {
                let pods = cluster.agents().await?;
                ensure!(
                    !pods.is_empty(),
                    "the namespace {0} has no agent. `meshctl install --mesh-namespace {0}` installs the mesh; --mesh-namespace NAME says where it \
                     is, if it is elsewhere",
                    cluster.namespace
                );
                Ok(pods
                    .into_iter()
                    .map(|pod| Agent { node: Some(pod.node), endpoint: pod.endpoint })
                    .collect())
            }
        }
    }

    /// Asks the agents of `nodes`. Those that don't answer are told of on standard error; an error if no one
    /// does.
    pub async fn ask<T: DeserializeOwned>(&self, nodes: &Nodes, path: &str) -> Result<Answers<T>> {
        let agents: Vec<_> = self.agents().await?.into_iter().filter(|agent| nodes.may_be(agent)).collect();
        let mut answers: Answers<T> = Vec::new();
        for answer in each(agents, |agent| one(agent, path)).await {
            match answer {
                Ok((node, answer)) if nodes.has(&node.name) => answers.push((node, answer)),
                Ok(_) => {}
                Err(error) => remark!("warning: {}", reason(&error)),
            }
        }
        if answers.is_empty() {
            bail!("no agent answered{}", nodes.in_words());
        }
        Ok(answers)
    }
}

impl Nodes {
    /// One node.
    pub fn only(name: &str) -> Self {
        Self { names: vec![name.to_owned()] }
    }

    /// These nodes.
    pub fn these(names: Vec<String>) -> Self {
        Self { names }
    }

    fn has(&self, node: &str) -> bool {
        self.names.is_empty() || self.names.iter().any(|name| name == node)
    }

    fn may_be(&self, agent: &Agent) -> bool {
        agent.node.as_ref().is_none_or(|node| self.has(node))
    }

    fn in_words(&self) -> String {
        if self.names.is_empty() {
            return String::new();
        }
        format!(" on {}; `meshctl status` lists the nodes", self.names.join(", "))
    }
}

/// Does something with each of `items`, several at a time; what came of it is in their order.
pub async fn each<T, R, F: Future<Output = R>>(items: Vec<T>, act: impl Fn(T) -> F) -> Vec<R> {
    stream::iter(items).map(act).buffered(AT_ONCE).collect().await
}

async fn one<T: DeserializeOwned>(agent: Agent, path: &str) -> Result<(Node, T)> {
    let endpoint = agent.endpoint.map_err(anyhow::Error::msg)?;
    let mut session = endpoint.open().await?;
    let name = match agent.node {
        Some(name) => name,
        None => session.json::<AgentStatus>("/status").await?.node,
    };
    let answer = session.json(path).await?;
    Ok((Node { name, endpoint }, answer))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_that_were_not_asked_for_are_left_out() {
        let some = Nodes { names: vec!["node1".to_owned()] };
        assert!(some.has("node1") && !some.has("node2"));
        assert!(Nodes::default().has("node2"));
        let unknown = Agent { node: None, endpoint: Err(String::new()) };
        assert!(some.may_be(&unknown), "its node is known once it has answered");
    }
}
