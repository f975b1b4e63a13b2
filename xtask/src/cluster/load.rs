//! `cluster load`: images from files into the nodes' containerd.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;

use anyhow::{Context, Result, ensure};

use super::layout::Node;
use super::state::State;
use crate::command::CommandExt;

/// Gives `images` to every node that runs.
pub fn run(state: &State, images: &[PathBuf]) -> Result<()> {
    let nodes: Vec<_> = nodes(state);
    ensure!(!nodes.is_empty(), "there is no cluster. Run: cargo xtask cluster up");
    let images: Vec<_> = images.iter().map(PathBuf::as_path).collect();
    import(&nodes, &images)
}

/// The nodes of the cluster that was started last.
pub fn nodes(state: &State) -> Vec<Node> {
    Node::all().filter(|node| state.process(&format!("{node}-containerd")).is_ok()).collect()
}

/// Imports `images` into all `nodes` at a time.
pub fn import(nodes: &[Node], images: &[&Path]) -> Result<()> {
    thread::scope(|scope| {
        let imports: Vec<_> =
            nodes.iter().map(|&node| scope.spawn(move || import_into(node, images))).collect();
        imports
            .into_iter()
            .try_for_each(|import| import.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

fn import_into(node: Node, images: &[&Path]) -> Result<()> {
    for image in images {
        Command::new("ctr")
            .arg("--address")
            .arg(node.containerd())
            .args(["--namespace", "k8s.io", "images", "import"])
            .arg(image)
            .captured()
            .with_context(|| format!("{node} can't take {}", image.display()))?;
    }
    Ok(())
}
