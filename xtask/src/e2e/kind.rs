//! A cluster of kind, with the configuration and values of `deploy/kind`.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::Result;

use super::{Cluster, Place};
use crate::cluster;
use crate::command::CommandExt;
use crate::workspace::Workspace;

const NAME: &str = "nodemesh-e2e";

pub const PLACE: Place = Place { up, install, load, down };

fn up(workspace: &Workspace) -> Result<Cluster> {
    let configuration = workspace.root().join("deploy/kind/cluster.yaml");
    let kubeconfig = kubeconfig(workspace);
    kind("create").arg("--config").arg(configuration).arg("--kubeconfig").arg(&kubeconfig).checked()?;
    Ok(Cluster { name: "kind", kubeconfig, search_path: env::var_os("PATH").unwrap_or_default() })
}

fn install(workspace: &Workspace, cluster: &Cluster) -> Result<()> {
    for image in cluster::images(workspace)? {
        load(workspace, &image)?;
    }
    let deploy = workspace.root().join("deploy");
    cluster
        .command(Command::new("helm"))
        .args(["install", "nodemesh"])
        .arg(deploy.join("helm/nodemesh"))
        .arg("--values")
        .arg(deploy.join("kind/values.yaml"))
        .args(["--namespace=nodemesh-system", "--create-namespace", "--wait", "--timeout=5m"])
        .checked()
}

fn load(_: &Workspace, image: &Path) -> Result<()> {
    Command::new("kind").args(["load", "image-archive", "--name", NAME]).arg(image).checked()
}

fn down(workspace: &Workspace) -> Result<()> {
    kind("delete").arg("--kubeconfig").arg(kubeconfig(workspace)).checked()
}

fn kind(verb: &str) -> Command {
    let mut command = Command::new("kind");
    command.args([verb, "cluster", "--name", NAME]);
    command
}

/// Apart from the user's own: tests must never talk to another cluster.
fn kubeconfig(workspace: &Workspace) -> PathBuf {
    workspace.target().join("e2e-kind-kubeconfig")
}
