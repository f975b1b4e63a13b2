//! `cargo xtask demo`: a mesh of two nodes, shown in steps. Every step checks what it shows, so a demo that
//! reaches its end has proved it.

mod cluster;
mod evidence;
mod routing;
mod steps;

use std::time::Instant;

use anyhow::{Result, ensure};

use crate::build;
use crate::setup::is_root;
use crate::workspace::Workspace;

use cluster::Cluster;

/// Builds the mesh, brings a lab up, shows it and takes it down again, also after a failure, unless it is to
/// be kept.
pub fn run(workspace: &Workspace, keep: bool) -> Result<()> {
    ensure!(is_root(), "the demo makes namespaces and loads eBPF programs: run as root");
    build::everything(workspace)?;
    let start = Instant::now();
    let cluster = Cluster::up(workspace, keep)?;
    steps::all(&cluster)?;
    say!("\nAll of it held, in {:.0} s from nothing to here.", start.elapsed().as_secs_f32());
    if keep {
        say!("{}", cluster.how_to_look_around());
    }
    Ok(())
}
