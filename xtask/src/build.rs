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
    remark!("building {} (minutes, the first time)", PROGRAMS.join(", "));
    let mut cargo = workspace.cargo();
    cargo.args(["build", "--release"]);
    for program in PROGRAMS {
        cargo.args(["--package", program]);
    }
    cargo.checked()
}

/// Builds the CNI plugin: static, since it runs on nodes with whatever C library, and of few pages, since it
/// is started for each pod. Other flags than everything else has mean a target directory of its own.
pub fn plugin(workspace: &Workspace) -> Result<()> {
    remark!("building mesh-cni, the CNI plugin, which is static");
    workspace
        .cargo()
        .args(["build", "--release", "--package", "mesh-cni", "--bin", "mesh-cni"])
        .args(["--target", &Workspace::target_triple()])
        // It looks up no names, the one thing for which glibc would load libraries.
        .env("RUSTFLAGS", "-Ctarget-feature=+crt-static")
        .env("CARGO_PROFILE_RELEASE_LTO", "fat")
        .env("CARGO_PROFILE_RELEASE_PANIC", "abort")
        .checked()
}
