//! The cluster below the API: its nodes, and what only the machine that it runs on can do to it.

use std::env;
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::kubectl;

/// Whether this is the cluster of `cargo xtask cluster`, whose parts can be stopped one by one.
pub fn is_local() -> bool {
    env::var_os("NODEMESH_E2E_CLUSTER").is_none_or(|name| name == "local")
}

/// Two nodes that take pods, in the order of their names.
pub fn nodes() -> Result<[String; 2]> {
    let all = kubectl::get(&["nodes", "--selector=!node-role.kubernetes.io/control-plane"])?;
    let items = all["items"].as_array().context("a list has items")?;
    let mut names: Vec<_> =
        items.iter().filter_map(|node| Some(node["metadata"]["name"].as_str()?.to_owned())).collect();
    names.sort();
    ensure!(names.len() >= 2, "the tests need two nodes, the cluster has {names:?}");
    let mut names = names.into_iter();
    names.next().zip(names.next()).map(Into::into).context("two nodes were counted")
}

/// A command in the network namespace of a node.
pub fn on_network_of(node: &str) -> Result<Command> {
    let namespace = if is_local() {
        format!("/run/netns/nodemesh-cluster-{node}")
    } else {
        let pid = Command::new("docker").args(["inspect", "--format={{.State.Pid}}", node]).output()?.stdout;
        format!("/proc/{}/ns/net", String::from_utf8(pid)?.trim())
    };
    let mut command = Command::new("nsenter");
    command.arg(format!("--net={namespace}"));
    Ok(command)
}

/// A process of the local cluster that is stopped while the value lives.
pub struct Stopped {
    process: String,
}

impl Stopped {
    /// Kills `process`, named as in `cargo xtask cluster status`.
    pub fn stop(process: &str) -> Result<Self> {
        xtask(&["cluster", "stop", process])?;
        Ok(Self { process: process.into() })
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        if let Err(error) = xtask(&["cluster", "start", &self.process]) {
            eprintln!("{} stays stopped: {error:#}", self.process);
        }
    }
}

fn xtask(arguments: &[&str]) -> Result<String> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/xtask");
    let program = env::var_os("NODEMESH_XTASK").map_or_else(|| built.into(), PathBuf::from);
    kubectl::output(Command::new(program).args(arguments))
}
