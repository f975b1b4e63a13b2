//! The cluster of `cargo xtask cluster`.

use std::path::Path;

use anyhow::Result;

use super::{Cluster, Place};
use crate::cluster::{self, State, Tools};
use crate::workspace::Workspace;

pub const PLACE: Place = Place { up, install, load, down };

fn up(workspace: &Workspace) -> Result<Cluster> {
    cluster::run(workspace, cluster::Verb::Up(cluster::UpOptions { nodes: 2, mesh: false }))?;
    Ok(Cluster {
        name: "local",
        kubeconfig: cluster::kubeconfig(&State::new())?,
        search_path: Tools::ensure(workspace)?.search_path()?,
    })
}

fn install(workspace: &Workspace, _: &Cluster) -> Result<()> {
    let images = cluster::images(workspace)?;
    cluster::install(workspace, &State::new(), &Tools::ensure(workspace)?, &images)
}

fn load(workspace: &Workspace, image: &Path) -> Result<()> {
    cluster::run(workspace, cluster::Verb::Load { images: vec![image.into()] }).map(drop)
}

fn down(workspace: &Workspace) -> Result<()> {
    cluster::run(workspace, cluster::Verb::Down).map(drop)
}
