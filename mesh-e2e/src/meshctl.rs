//! meshctl with the cluster that `KUBECONFIG` names.

use std::env;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::mesh::NAMESPACE;

/// What it does and prints, as JSON where it can.
pub fn output(arguments: &[&str]) -> Result<Output> {
    let built = concat!(env!("CARGO_MANIFEST_DIR"), "/../target/release/meshctl");
    let program = env::var_os("NODEMESH_MESHCTL").map_or_else(|| built.into(), PathBuf::from);
    let mut command = Command::new(program);
    command.args(["--mesh-namespace", NAMESPACE, "-o", "json"]).args(arguments).env_remove("NODEMESH_LAB");
    command.output().context("can't start meshctl")
}

/// What it printed, whatever its exit status; the error carries what it said besides.
pub fn answer(output: &Output) -> Result<Value> {
    let said = String::from_utf8_lossy(&output.stderr);
    serde_json::from_slice(&output.stdout).with_context(|| format!("{}: {said}", output.status))
}

/// Runs it; an error unless it succeeds.
pub fn run(arguments: &[&str]) -> Result<()> {
    let output = output(arguments)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "meshctl {}: {}: {said}", arguments.join(" "), output.status);
    Ok(())
}

/// Its answer to a question.
pub fn json(arguments: &[&str]) -> Result<Value> {
    answer(&output(arguments)?)
}
