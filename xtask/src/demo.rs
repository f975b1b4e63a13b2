//! `cargo xtask demo`.
use anyhow::Result;

use crate::build;
use crate::workspace::Workspace;

pub fn run(workspace: &Workspace, _keep: bool) -> Result<()> {
    build::everything(workspace)
}
