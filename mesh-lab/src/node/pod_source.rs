//! What the node's agent reads of its pods: a file for each, and one for each namespace with its labels.

use std::{collections::HashMap, path::Path};

use mesh_api::manifest::Kind;

use super::Node;
use crate::{
    cluster::Store,
    host::{HostError, files},
};

/// Keeps the directory in step for as long as the lab runs.
pub async fn run(node: &Node) {
    let mut changes = node.store.changes();
    let mut written = HashMap::new();
    loop {
        changes.borrow_and_update();
        let wanted = wanted(&node.store, &node.name);
        if let Err(error) = write(&node.paths.pods(), &wanted, &written) {
            tracing::error!(node = node.name, %error, "the agent's pods are out of date");
        }
        written = wanted;
        if changes.changed().await.is_err() {
            return;
        }
    }
}

/// File names and contents. No namespace begins with an underscore, so the two kinds of name cannot clash.
fn wanted(store: &Store, node: &str) -> HashMap<String, String> {
    let namespaces = store
        .list(Kind::Namespace)
        .into_iter()
        .map(|stored| (format!("_namespace_{}.json", stored.object.metadata().name), stored.raw.to_string()));
    let pods = store.list(Kind::Pod).into_iter().filter_map(|stored| {
        let pod = stored.pod().filter(|pod| pod.spec.node_name == node)?;
        Some((format!("{}_{}.json", pod.metadata.namespace, pod.metadata.name), stored.raw.to_string()))
    });
    namespaces.chain(pods).collect()
}

fn write(
    directory: &Path,
    wanted: &HashMap<String, String>,
    written: &HashMap<String, String>,
) -> Result<(), HostError> {
    for (name, content) in wanted.iter().filter(|(name, content)| written.get(*name) != Some(content)) {
        files::replace(&directory.join(name), content)?;
    }
    written
        .keys()
        .filter(|name| !wanted.contains_key(*name))
        .try_for_each(|name| files::remove(&directory.join(name)))
}
