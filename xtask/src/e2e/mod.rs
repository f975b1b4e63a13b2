//! `cargo xtask e2e`: the mesh of this checkout on a real cluster, and every test of `mesh-e2e` against it.

mod kind;
mod local;
mod report;

use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Instant;

use anyhow::Result;
use clap::Args;

use crate::command::{CommandExt, find_program};
use crate::workspace::Workspace;

/// Where to run the tests, and which.
#[derive(Args)]
pub struct Options {
    /// On a cluster of kind, which needs kind, Docker, kubectl and helm
    #[arg(long, conflicts_with = "local")]
    kind: bool,
    /// On the cluster of `cargo xtask cluster`; what is taken where there is no kind
    #[arg(long)]
    local: bool,
    /// Leave the cluster up afterwards
    #[arg(long)]
    keep: bool,
    /// Files of mesh-e2e/tests (`mtls`), or parts of tests' names; all tests if absent
    filters: Vec<String>,
}

/// A cluster with the mesh on it, as the tests get to know it.
struct Cluster {
    /// `NODEMESH_E2E_CLUSTER`.
    name: &'static str,
    kubeconfig: PathBuf,
    /// `PATH` with kubectl and helm.
    search_path: OsString,
}

impl Cluster {
    /// A program that talks to this cluster.
    fn command(&self, mut command: Command) -> Command {
        command
            .env("KUBECONFIG", &self.kubeconfig)
            .env("PATH", &self.search_path)
            .env("NODEMESH_E2E_CLUSTER", self.name);
        command
    }
}

/// How one kind of cluster comes, gets the mesh, and goes.
struct Place {
    up: fn(&Workspace) -> Result<Cluster>,
    install: fn(&Workspace, &Cluster) -> Result<()>,
    down: fn(&Workspace) -> Result<()>,
}

/// Makes the cluster, installs the mesh, runs the tests, and removes the cluster unless it is to be kept.
pub fn run(workspace: &Workspace, options: &Options) -> Result<()> {
    let kind = options.kind || (!options.local && find_program("kind").is_some());
    let place = if kind { kind::PLACE } else { local::PLACE };
    let start = Instant::now();
    let result = install_and_test(workspace, &place, &options.filters);
    println!("end-to-end tests took {:.0} s with all that they need", start.elapsed().as_secs_f64());
    if options.keep {
        return result;
    }
    // What went wrong first is what counts.
    let down = (place.down)(workspace);
    result.and(down)
}

fn install_and_test(workspace: &Workspace, place: &Place, filters: &[String]) -> Result<()> {
    let cluster = (place.up)(workspace)?;
    let result = (place.install)(workspace, &cluster).and_then(|()| test(workspace, &cluster, filters));
    if result.is_err() {
        report::print(&cluster);
    }
    result
}

/// One test at a time: some stop parts of the cluster that all others need.
fn test(workspace: &Workspace, cluster: &Cluster, filters: &[String]) -> Result<()> {
    let directory = workspace.root().join("mesh-e2e/tests");
    let (files, names): (Vec<_>, Vec<_>) =
        filters.iter().partition(|filter| directory.join(filter).with_extension("rs").exists());
    let mut cargo = cluster.command(workspace.cargo());
    cargo.args(["test", "--release", "--package", "mesh-e2e", "--no-fail-fast"]);
    cargo.args(files.iter().flat_map(|file| ["--test", file]));
    cargo.args(["--", "--test-threads=1", "--nocapture"]).args(names);
    cargo.env("NODEMESH_XTASK", std::env::current_exe()?);
    cargo.checked()
}
