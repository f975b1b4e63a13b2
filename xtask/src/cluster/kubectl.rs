//! The cluster's own kubectl.

use std::io::Write;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::command::CommandExt;

/// kubectl with one kubeconfig.
pub struct Kubectl {
    program: PathBuf,
    kubeconfig: PathBuf,
}

impl Kubectl {
    /// Takes the program of all components.
    pub fn new(program: PathBuf, kubeconfig: PathBuf) -> Self {
        Self { program, kubeconfig }
    }

    /// Runs it; the error carries what it printed.
    pub fn run(&self, arguments: &[&str]) -> Result<String> {
        self.command().args(arguments).captured()
    }

    /// Asks for objects as JSON.
    pub fn get(&self, arguments: &[&str]) -> Result<Value> {
        let text = self.command().arg("get").args(arguments).args(["--output", "json"]).captured()?;
        serde_json::from_str(&text).context("kubectl printed what is not JSON")
    }

    /// Applies manifests, server-side.
    pub fn apply(&self, manifests: &str) -> Result<()> {
        let mut child = self
            .command()
            .args(["apply", "--server-side", "--filename", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .spawn()
            .context("can't start kubectl")?;
        let mut input = child.stdin.take().context("kubectl has no standard input")?;
        input.write_all(manifests.as_bytes()).context("kubectl does not read its input")?;
        drop(input);
        ensure!(child.wait()?.success(), "kubectl apply failed");
        Ok(())
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        command.arg("kubectl").arg("--kubeconfig").arg(&self.kubeconfig).env_remove("LD_LIBRARY_PATH");
        command
    }
}
