//! What runs: a lab whose control plane is given more objects than the lab has.

use std::fs;
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result};
use serde_json::Value;

use crate::bench::proc;
use crate::command::CommandExt;
use crate::workspace::Workspace;

/// The agents' nodes.
pub const NODES: [&str; 2] = ["node1", "node2"];

const NAME: &str = "scale";
/// Where labs keep their state.
const STATE: &str = "/run/nodemesh-lab";

/// A lab that is up, until it is dropped.
pub struct Lab {
    program: PathBuf,
    state: PathBuf,
}

impl Lab {
    /// Brings it up, without pods.
    pub fn up(workspace: &Workspace) -> Result<Self> {
        let lab = Self { program: workspace.program("mesh-lab"), state: Path::new(STATE).join(NAME) };
        lab.command(&["down"]).captured()?;
        lab.command(&["up"]).checked()?;
        Ok(lab)
    }

    /// A directory on the file system of the configuration.
    pub fn scratch(&self) -> PathBuf {
        self.state.join("scratch")
    }

    /// Moves a directory into the configuration, all at once.
    pub fn give(&self, directory: &Path) -> Result<()> {
        fs::rename(directory, self.given()).context("can't move the objects into the configuration")
    }

    /// The directory that was given.
    pub fn given(&self) -> PathBuf {
        self.state.join("control/config/scale")
    }

    /// Process id of the control plane.
    pub fn control(&self) -> Result<u32> {
        let status = self.status()?;
        proc::id(&status["control"]["pid"]).context("a lab without a control plane")
    }

    /// Process ids of a node's agent: its keeper, and the proxy if that runs.
    pub fn agent(&self, node: &str) -> Result<Vec<u32>> {
        let status = self.status()?;
        let nodes = status["nodes"].as_array().context("a lab without nodes")?;
        let node = nodes.iter().find(|it| it["name"] == node).context("no such node")?;
        proc::of_agent(node).context("a node without an agent")
    }

    /// Stops and starts a node's agent.
    pub fn restart_agent(&self, node: &str) -> Result<()> {
        self.command(&["agent", "restart", node]).captured().map(drop)
    }

    /// Whether a node's agent says that it has everything.
    pub fn is_ready(&self, node: &str) -> bool {
        self.get(node, "/status").is_ok_and(|status| status["ready"] == true)
    }

    /// The map of the addresses that a node's kernel takes to the mesh.
    pub fn destinations(&self, node: &str) -> Result<PathBuf> {
        let keeper = self.agent(node)?.remove(0);
        let command = fs::read(format!("/proc/{keeper}/cmdline"))?;
        let words: Vec<_> = command.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
        let place =
            words.iter().position(|word| word == "--bpf-root").context("an agent without --bpf-root")?;
        let root = words.get(place + 1).context("--bpf-root without a path")?;
        for layout in fs::read_dir(&**root).with_context(|| format!("can't read {root}"))?.flatten() {
            let map = layout.path().join("maps/DESTINATIONS");
            if map.exists() {
                return Ok(map);
            }
        }
        anyhow::bail!("no map of destinations below {root}")
    }

    fn get(&self, node: &str, path: &str) -> Result<Value> {
        let mut socket = UnixStream::connect(self.state.join("nodes").join(node).join("admin.sock"))?;
        socket.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(socket, "GET {path} HTTP/1.0\r\nhost: agent\r\n\r\n")?;
        let mut answer = String::new();
        socket.read_to_string(&mut answer)?;
        let (_, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        Ok(serde_json::from_str(body)?)
    }

    fn status(&self) -> Result<Value> {
        serde_json::from_str(&self.command(&["status", "-o", "json"]).captured()?).context("mesh-lab status")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command.args(["--name", NAME]).args(arguments);
        command
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if let Err(error) = self.command(&["down"]).captured() {
            remark!("warning: the lab was not taken down: {error:#}");
        }
    }
}
