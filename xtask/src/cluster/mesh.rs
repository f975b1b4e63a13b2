//! `cluster up --mesh`: the mesh of this checkout, by its chart.

use std::path::PathBuf;
use std::process::Command;

use anyhow::Result;

use super::access::KUBECONFIG;
use super::cgroup::Hierarchies;
use super::layout::BPF;
use super::load;
use super::state::State;
use super::tools::Tools;
use crate::command::CommandExt;
use crate::workspace::Workspace;
use crate::{build, image};

/// Release, and namespace of it.
const RELEASE: [&str; 2] = ["nodemesh", "nodemesh-system"];

/// Builds the images of this checkout, those of the samples included; the paths of their files.
pub fn images(workspace: &Workspace) -> Result<Vec<PathBuf>> {
    build::everything(workspace)?;
    build::plugin(workspace)?;
    image::write(workspace, image::Name::ALL, &workspace.target().join("images"))
}

/// Gives `images` to the nodes, installs the chart and waits until it is ready.
///
/// Every node has its own cgroup and its own directory for pins, since they share a kernel.
pub fn install(workspace: &Workspace, state: &State, tools: &Tools, images: &[PathBuf]) -> Result<()> {
    load::run(state, images)?;
    let cgroups = Hierarchies::of_this_machine()?;
    Command::new(tools.helm())
        .args(["upgrade", "--install", RELEASE[0]])
        .arg(workspace.root().join("deploy/helm/nodemesh"))
        .args(["--namespace", RELEASE[1], "--create-namespace", "--wait", "--timeout=3m"])
        .args(values(&cgroups.v2().display().to_string()))
        .arg("--kubeconfig")
        .arg(state.path(KUBECONFIG))
        .env_remove("LD_LIBRARY_PATH")
        .checked()
}

fn values(cgroup2: &str) -> [String; 4] {
    let root = "$(NODE_NAME)";
    [
        "--set-string".into(),
        format!("agent.cgroupRoot={cgroup2}/{root}"),
        "--set-string".into(),
        format!("agent.bpfRoot={BPF}/{root}"),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_node_has_its_own_part_of_the_kernel() {
        let values = values("/sys/fs/cgroup/unified");
        assert_eq!(values[1], "agent.cgroupRoot=/sys/fs/cgroup/unified/$(NODE_NAME)");
        assert_eq!(values[3], "agent.bpfRoot=/sys/fs/bpf/nodemesh-cluster/$(NODE_NAME)");
    }
}
