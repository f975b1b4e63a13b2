//! A node: containerd, the kubelet and kube-proxy in namespaces of their own.
//!
//! A holder process keeps the node's network and mount namespaces. In the mount namespace the directories
//! that Kubernetes' parts have by convention (`/var/lib/kubelet` and so on) are the node's own, so that pods
//! find on each node what they would find on a real one, and nothing of it is mounted on this machine.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use super::cgroup::{Hierarchies, in_cgroup};
use super::layout::Node;
use super::node_config;
use super::process::Process;
use super::state::State;
use super::tools::{self, Tools};
use super::wait::until;

const TO_SERVE: Duration = Duration::from_secs(20);

/// Directories that a node has for itself: below its part of the state directory, and where its programs see
/// them.
///
/// Shims, CNI results and container logs have no option that would move them elsewhere.
const DIRECTORIES: &[(&str, &str)] = &[
    ("etc-cni", "/etc/cni"),
    ("opt-cni", "/opt/cni"),
    ("run-containerd", "/run/containerd"),
    ("run-nodemesh", "/run/nodemesh"),
    ("var-lib-cni", "/var/lib/cni"),
    ("var-lib-containerd", "/var/lib/containerd"),
    ("var-lib-kubelet", "/var/lib/kubelet"),
    ("var-lib-nodemesh", "/var/lib/nodemesh"),
    ("var-log", "/var/log"),
];

/// Where the directories of a node appear: they must exist on this machine, empty or not.
pub fn mount_points() -> impl Iterator<Item = &'static Path> {
    DIRECTORIES.iter().map(|(_, target)| Path::new(target))
}

/// Starts the holder and containerd; returns when containerd listens.
pub fn start_containerd(state: &State, cgroups: &Hierarchies, node: Node) -> Result<()> {
    for (source, _) in DIRECTORIES {
        fs::create_dir_all(node.directory().join(source))
            .with_context(|| format!("can't make directories in {}", node.directory().display()))?;
    }
    write_files(state, node)?;
    let holder = state.spawn(&format!("{node}-holder"), &holder_command(cgroups, node))?;
    until(&format!("the mounts of {node}"), TO_SERVE, || {
        state.check(&holder)?;
        Ok(node_is_mounted(&holder).then_some(()))
    })?;
    let containerd = ["containerd", "--config", "/var/lib/containerd/config.toml"].map(str::to_owned);
    let containerd =
        state.spawn(&format!("{node}-containerd"), &inside_command(cgroups, node, &holder, &containerd))?;
    until(&format!("containerd of {node}"), TO_SERVE, || {
        state.check(&containerd)?;
        Ok(std::os::unix::net::UnixStream::connect(node.containerd()).ok().map(drop))
    })
}

/// Starts the kubelet and kube-proxy, which need containerd and the API server.
pub fn start_kubelet(state: &State, cgroups: &Hierarchies, tools: &Tools, node: Node) -> Result<()> {
    let holder = state.process(&format!("{node}-holder"))?;
    let program = tools.kubernetes().display().to_string();
    for (component, flags) in [
        ("kubelet", node_config::kubelet_flags(state, node)),
        ("kube-proxy", node_config::proxy_flags(state, node)),
    ] {
        let command: Vec<_> = [program.clone(), component.into()].into_iter().chain(flags).collect();
        state.spawn(&format!("{node}-{component}"), &inside_command(cgroups, node, &holder, &command))?;
    }
    Ok(())
}

/// Runs a program where the programs of the node `name` run; the exit status is that program's.
pub fn run_inside(state: &State, name: &str, command: &[OsString]) -> Result<ExitCode> {
    let holder = state.process(&format!("{name}-holder"))?;
    state.check(&holder)?;
    let mut enter = Command::new("nsenter");
    enter.args(["--target", &holder.pid.to_string(), "--net", "--mount", "--"]).args(command);
    let status = enter.env_remove("LD_LIBRARY_PATH").status().context("can't start nsenter")?;
    // A program that a signal ended has no exit status.
    Ok(status.code().and_then(|code| u8::try_from(code).ok()).map_or(ExitCode::FAILURE, ExitCode::from))
}

/// Tells the runtime of `node` how to join pods to its network; the node is ready after that.
pub fn write_cni(node: Node, cidrs: &[String]) -> Result<()> {
    let directory = node.directory().join("etc-cni/net.d");
    let fresh = directory.join("nodemesh.new");
    fs::create_dir_all(&directory)
        .and_then(|()| fs::write(&fresh, node_config::cni(cidrs)))
        // containerd watches the directory: it shall see a whole file.
        .and_then(|()| fs::rename(&fresh, directory.join("10-nodemesh.conflist")))
        .with_context(|| format!("can't write into {}", directory.display()))
}

fn write_files(state: &State, node: Node) -> Result<()> {
    let file = |name: &str| node.directory().join(name);
    copy_plugins(&file("opt-cni/bin"))?;
    state.write(file("var-lib-containerd/config.toml"), &node_config::containerd_config())?;
    state.write(file("var-lib-kubelet/config.yaml"), &node_config::kubelet_config(node))?;
    // No name server: pods that do without the cluster's names have none.
    state.write(file("var-lib-kubelet/resolv.conf"), "")?;
    Ok(())
}

/// The standard CNI plugins, in a directory of the node's own: what is installed on one node is not on
/// another.
fn copy_plugins(target: &Path) -> Result<()> {
    let source = tools::cni_directory()?;
    let copy = || -> std::io::Result<()> {
        fs::create_dir_all(target)?;
        for entry in fs::read_dir(&source)? {
            let entry = entry?;
            fs::copy(entry.path(), target.join(entry.file_name()))?;
        }
        Ok(())
    };
    copy().with_context(|| format!("can't copy {} to {}", source.display(), target.display()))
}

/// The process that holds the node's namespaces.
///
/// Mounts of this machine still reach the node, but none of the node reaches this machine. Within the node
/// they are shared, as pods with bidirectional mount propagation want it.
fn holder_command(cgroups: &Hierarchies, node: Node) -> Vec<String> {
    let mut script = vec![
        format!("echo $$ > {}/cgroup.procs", cgroups.system(node).display()),
        "mount --make-rshared /".to_owned(),
    ];
    script.extend(
        DIRECTORIES
            .iter()
            .map(|(source, target)| format!("mount --bind {}/{source} {target}", node.directory().display())),
    );
    script.push("exec sleep infinity".to_owned());
    let script = script.join("\n");
    let net = format!("--net=/run/netns/{}", node.namespace());
    ["nsenter", &net, "unshare", "--mount", "--propagation", "slave", "sh", "-ec", &script]
        .map(str::to_owned)
        .into()
}

/// A program of the node, in its namespaces and its cgroup.
fn inside_command(cgroups: &Hierarchies, node: Node, holder: &Process, command: &[String]) -> Vec<String> {
    let target = holder.pid.to_string();
    let enter = ["nsenter", "--target", &target, "--net", "--mount"].map(str::to_owned);
    enter.into_iter().chain(in_cgroup(&cgroups.system(node), command.iter().cloned())).collect()
}

/// The holder's script ends by becoming `sleep`.
fn node_is_mounted(holder: &Process) -> bool {
    let name = fs::read_to_string(format!("/proc/{}/comm", holder.pid)).unwrap_or_default();
    name.trim() == "sleep"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_of_a_node_starts_in_its_namespaces_and_cgroup() {
        let cgroups = Hierarchies::of_this_machine().unwrap();
        let holder = Process { name: "node1-holder".into(), pid: 7, start: 1, command: Vec::new() };
        let command =
            inside_command(&cgroups, Node::first(1).unwrap()[0], &holder, &["a".into(), "b".into()]);
        assert_eq!(command[..5], ["nsenter", "--target", "7", "--net", "--mount"]);
        assert!(command[7].contains("/node1/system/cgroup.procs"));
        assert_eq!(command[command.len() - 2..], ["a", "b"]);
    }
}
