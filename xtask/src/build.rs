//! The programs of the mesh, built once for every task that runs them.

use anyhow::Result;

use crate::command::CommandExt;
use crate::workspace::Workspace;
use crate::{ebpf, setup};

const PROGRAMS: &[&str] = &["mesh-agent", "mesh-control", "meshctl", "mesh-lab"];

/// Sets the machine up and builds the eBPF object and then the programs, of which the agent embeds it.
pub fn everything(workspace: &Workspace) -> Result<()> {
    setup::run()?;
    ebpf::build(workspace)?;
    programs(workspace)
}

/// Builds the programs alone, in the profile that tests, demo and benchmarks share.
pub fn programs(workspace: &Workspace) -> Result<()> {
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release"]);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    cargo.checked()
}
