//! Labs of this machine, found by the sockets that their programs open.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use super::Agent;
use crate::ask::Endpoint;

/// Where labs keep their state.
const LABS: &str = "/run/nodemesh-lab";

/// The agents of a lab, by node. An error if it has none.
pub fn agents(lab: &str) -> Result<Vec<Agent>> {
    let nodes = directory(lab).join("nodes");
    let agents: Vec<_> = entries(&nodes).into_iter().filter_map(|node| agent(&nodes, node)).collect();
    ensure!(
        !agents.is_empty(),
        "the lab {lab} has no agent. `mesh-lab --name {lab} up` brings it up; --agent asks an agent elsewhere"
    );
    Ok(agents)
}

/// The control plane of a lab.
pub fn control(lab: &str) -> Endpoint {
    Endpoint::Unix(directory(lab).join("control/control.sock"))
}

/// The objects of a lab, a directory for each namespace.
pub fn manifests(lab: &str) -> PathBuf {
    directory(lab).join("control/config")
}

/// Labs of this machine.
pub fn all() -> Vec<String> {
    entries(Path::new(LABS))
}

fn agent(nodes: &Path, node: String) -> Option<Agent> {
    let socket = nodes.join(&node).join("admin.sock");
    socket.exists().then(|| Agent { node: Some(node), endpoint: Ok(Endpoint::Unix(socket)) })
}

fn directory(lab: &str) -> PathBuf {
    Path::new(LABS).join(lab)
}

fn entries(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).into_iter().flatten().flatten();
    let mut names: Vec<_> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    names.sort();
    names
}
