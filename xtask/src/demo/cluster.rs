//! The demo's lab, driven by the same commands that a user types.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};
use std::{fs, thread};

use anyhow::{Context, Result};
use serde_json::Value;

use crate::command::{CommandExt, Outcome};
use crate::workspace::Workspace;

/// A lab of its own name, so that one that a user keeps stays untouched.
const NAME: &str = "demo";
/// The namespace of the demo's manifests.
pub const NAMESPACE: &str = "demo";
/// How long something that must come (a log line, a count) may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A lab that is up; dropping it takes it down unless it is to be kept.
pub struct Cluster {
    mesh_lab: PathBuf,
    meshctl: PathBuf,
    manifests: PathBuf,
    keep: bool,
}

impl Cluster {
    /// Brings it up, with an access log on each node. What an earlier demo left behind goes first.
    pub fn up(workspace: &Workspace, keep: bool) -> Result<Self> {
        let cluster = Self {
            mesh_lab: workspace.program("mesh-lab"),
            meshctl: workspace.program("meshctl"),
            manifests: workspace.root().join("deploy/samples/demo"),
            keep,
        };
        cluster.lab(&["down"]).captured()?;
        cluster.lab(&["up", "--agent-arg=--access-log=text"]).checked()?;
        Ok(cluster)
    }

    /// Applies the demo's manifests and waits until its pods are ready.
    pub fn apply_manifests(&self) -> Result<()> {
        self.lab(&["apply", "-f"]).arg(&self.manifests).captured()?;
        self.lab(&["wait", "-n", NAMESPACE]).checked()
    }

    /// Applies a directory of samples and waits until its pods are ready.
    pub fn apply_directory(&self, sample: &str) -> Result<()> {
        self.lab(&["apply", "-f"]).arg(self.manifests.with_file_name(sample)).captured()?;
        self.lab(&["wait", "-n", NAMESPACE]).checked()
    }

    /// Applies manifests.
    pub fn apply_text(&self, manifests: &str) -> Result<()> {
        let file = std::env::temp_dir().join(format!("nodemesh-demo-{}.yaml", std::process::id()));
        fs::write(&file, manifests)?;
        let applied = self.lab(&["apply", "-f"]).arg(&file).captured();
        fs::remove_file(&file)?;
        applied.map(drop)
    }

    /// A mesh-lab command for this lab.
    pub fn lab(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.mesh_lab);
        command.args(["--name", NAME]).args(arguments);
        command
    }

    /// A meshctl command for this lab.
    pub fn meshctl(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.meshctl);
        command.args(["--lab", NAME]).args(arguments);
        command
    }

    /// Runs a program in one of the demo's pods, to its end.
    pub fn exec(&self, pod: &str, program: &[&str]) -> Result<Outcome> {
        self.lab(&["exec", "-n", NAMESPACE, pod, "--"]).args(program).outcome()
    }

    /// The demo's pods in Kubernetes' own shape.
    pub fn pods(&self) -> Result<Vec<Value>> {
        let text = self.lab(&["get", "pods", "-n", NAMESPACE, "-o", "json"]).captured()?;
        let list: Value = serde_json::from_str(&text).context("mesh-lab get -o json")?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }

    /// Names of the nodes.
    pub fn nodes(&self) -> Result<Vec<String>> {
        let nodes = self.status()?["nodes"].as_array().cloned().unwrap_or_default();
        Ok(nodes.iter().filter_map(|node| Some(node["name"].as_str()?.to_owned())).collect())
    }

    /// What the agents of all nodes have logged so far.
    pub fn agent_logs(&self) -> Result<Vec<String>> {
        let status = self.status()?;
        let mut lines = Vec::new();
        for node in status["nodes"].as_array().into_iter().flatten() {
            let path = node["agent"]["log"].as_str().context("a node without an agent")?;
            let text = fs::read_to_string(path).with_context(|| format!("can't read {path}"))?;
            lines.extend(text.lines().map(str::to_owned));
        }
        Ok(lines)
    }

    /// The metrics of all agents, as Prometheus would read them.
    pub fn metrics(&self) -> Result<String> {
        let url = "http://127.0.0.1:15020/metrics";
        let scrape = |node: &String| self.lab(&["node", node, "--", "curl", "-sf", url]).captured();
        self.nodes()?.iter().map(scrape).collect()
    }

    /// What to type in a lab that stays up.
    pub fn how_to_look_around(&self) -> String {
        format!(
            "The lab stays up. Look around, then take it down:\n  \
             cargo xtask lab --name {NAME} get pods -n {NAMESPACE}\n  {} --lab {NAME} status\n  \
             cargo xtask lab --name {NAME} down",
            self.meshctl.display()
        )
    }

    fn status(&self) -> Result<Value> {
        let text = self.lab(&["status", "-o", "json"]).captured()?;
        serde_json::from_str(&text).context("mesh-lab status -o json")
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = self.lab(&["down"]).captured() {
            remark!("warning: the lab was not taken down: {error:#}");
        }
    }
}

/// Looks again and again until `find` has found something; what `wanted` says is the error if it never does.
pub fn eventually<T>(wanted: &str, mut find: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = find()? {
            return Ok(found);
        }
        anyhow::ensure!(Instant::now() < deadline, "{wanted} did not come within {} s", PATIENCE.as_secs());
        thread::sleep(Duration::from_millis(50));
    }
}
