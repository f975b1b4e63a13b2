//! Waits until the agents say of pods what the labels ask.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use mesh_api::admin::PodStatus;

use super::pods::Fate;
use crate::cluster::Cluster;
use crate::source::{Mesh, Nodes};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(500);

/// Asks the agents of the pods' nodes until all is so. An error that says what is not, if it is not in time.
pub async fn until_so(cluster: Cluster, fates: &mut [Fate], timeout: Duration) -> Result<()> {
    let mesh = Mesh::Cluster(cluster);
    let end = Instant::now() + timeout;
    let nodes: BTreeSet<_> = fates.iter().map(|fate| fate.node().to_owned()).collect();
    let nodes: Vec<_> = nodes.into_iter().filter(|node| !node.is_empty()).collect();
    if nodes.is_empty() {
        return Ok(());
    }
    let nodes = Nodes::these(nodes);
    loop {
        for (node, pods) in mesh.ask::<Vec<PodStatus>>(&nodes, "/pods").await? {
            for fate in fates.iter_mut().filter(|fate| fate.node() == node.name) {
                fate.hear(&pods);
            }
        }
        let open: Vec<_> = fates.iter().filter(|fate| !fate.is_settled()).collect();
        if open.is_empty() {
            return Ok(());
        }
        if Instant::now() > end {
            let open: Vec<_> = open.iter().map(|fate| fate.cells().join(" ").trim().to_owned()).collect();
            bail!(
                "labelled, and after {} these pods are not as they should be:\n  {}\n`meshctl check` may say why",
                humantime::format_duration(timeout),
                open.join("\n  ")
            );
        }
        tokio::time::sleep(PAUSE).await;
    }
}
