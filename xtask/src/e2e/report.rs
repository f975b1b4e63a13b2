//! What a person wants to see of a cluster on which a test failed.

use std::process::Command;

use super::Cluster;
use crate::command::CommandExt;

const LOOKS: &[&[&str]] = &[
    &["get", "nodes,pods", "--all-namespaces", "--output=wide"],
    &["get", "events", "--all-namespaces", "--sort-by=.metadata.creationTimestamp"],
    &["logs", "--namespace=nodemesh-system", "--selector=app.kubernetes.io/component=control", "--tail=100"],
    &[
        "logs",
        "--namespace=nodemesh-system",
        "--selector=app.kubernetes.io/component=agent",
        "--tail=200",
        "--all-containers",
        "--prefix",
    ],
];

/// Prints pods, events and what the mesh logged; a look that fails says so and does not hide the others.
pub fn print(cluster: &Cluster) {
    for look in LOOKS {
        let mut kubectl = cluster.command(Command::new("kubectl"));
        kubectl.args(*look).env_remove("LD_LIBRARY_PATH");
        say!("\n== {}", kubectl.line());
        if let Err(error) = kubectl.checked() {
            say!("{error:#}");
        }
    }
}
