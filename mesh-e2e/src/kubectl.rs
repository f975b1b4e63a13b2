//! kubectl with the cluster that `KUBECONFIG` names, and other programs.

use std::io::Write;
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, bail};
use serde_json::Value;

/// Runs it; the error carries all that it printed.
pub fn run(arguments: &[&str]) -> Result<String> {
    output(Command::new("kubectl").args(arguments))
}

/// Asks for objects.
pub fn get(arguments: &[&str]) -> Result<Value> {
    let text = output(Command::new("kubectl").arg("get").args(arguments).arg("--output=json"))?;
    serde_json::from_str(&text).context("kubectl printed what is not JSON")
}

/// Applies manifests, YAML or JSON, server-side.
pub fn apply(namespace: &str, manifests: &str) -> Result<()> {
    let mut child = Command::new("kubectl")
        .args(["apply", "--server-side", "--namespace", namespace, "--filename=-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .context("can't start kubectl")?;
    // Dropped at the end of the statement, which ends the input.
    child.stdin.take().context("kubectl has no input")?.write_all(manifests.as_bytes())?;
    said("kubectl apply", &child.wait_with_output()?).map(drop)
}

/// Runs any program; its standard output, or an error with all that it printed.
pub fn output(command: &mut Command) -> Result<String> {
    let line = format!("{command:?}").replace('"', "");
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("can't start {line}"))?;
    said(&line, &output)
}

fn said(line: &str, output: &Output) -> Result<String> {
    let printed = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(printed);
    }
    let complaint = String::from_utf8_lossy(&output.stderr);
    bail!("{line}: {}: {}{}", output.status, printed, complaint.trim())
}
