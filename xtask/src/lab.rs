//! `cargo xtask lab …`: mesh-lab from this checkout.

use std::ffi::OsString;
use std::process::{Command, ExitCode};

use anyhow::{Context, Result};

use crate::workspace::Workspace;
use crate::{build, ebpf};

/// Builds what a lab runs and passes `arguments` on; the exit status is mesh-lab's.
pub fn run(workspace: &Workspace, arguments: &[OsString]) -> Result<ExitCode> {
    ebpf::build(workspace)?;
    build::programs(workspace)?;
    let program = workspace.program("mesh-lab");
    let status = Command::new(&program)
        .args(arguments)
        .status()
        .with_context(|| format!("can't start {}", program.display()))?;
    // A program that a signal ended has no exit status.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}
