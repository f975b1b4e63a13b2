//! `cargo xtask test [FILTER…]`.

use anyhow::{Result, ensure};

use crate::build;
use crate::cluster::go_program;
use crate::command::CommandExt;
use crate::e2e;
use crate::fuzz;
use crate::setup::is_root;
use crate::workspace::Workspace;

/// Builds everything and runs the workspace's tests; those in `mesh-lab/tests` each make a lab of their own.
/// Without filters the fuzz targets follow for a moment, and the end-to-end tests on a Kubernetes of this
/// machine.
pub fn run(workspace: &Workspace, filters: &[String]) -> Result<()> {
    ensure!(is_root(), "tests make namespaces and load eBPF programs: run as root");
    build::everything(workspace)?;
    workspace
        .cargo()
        .env("NODEMESH_GO", go_program()?)
        // End-to-end tests want a cluster; they come after these.
        .args(["test", "--release", "--workspace", "--exclude", "mesh-e2e", "--no-fail-fast", "--"])
        // Labs run side by side, but what they measure against deadlines suffers when there are many.
        .arg("--test-threads=2")
        .args(filters)
        .checked()?;
    if !filters.is_empty() {
        return Ok(());
    }
    fuzz::run(workspace, &fuzz::Options::among_tests())?;
    e2e::run_all(workspace)
}
