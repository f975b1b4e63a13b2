//! A node: containerd, the kubelet and kube-proxy in namespaces of their own.
//!
//! A holder process keeps the node's network and mount namespaces. In the mount namespace the directories that
//! Kubernetes' parts have by convention (`/var/lib/kubelet` and so on) are the node's own, so that pods find on each node
//! what they would find on a real one, and nothing of it is mounted on this machine.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::time::Duration;

use anyhow::{Context, Result};

use super::access::kubeconfig_of;
use super::cgroup::{Hierarchies, in_cgroup};
use super::layout::{DNS, DOMAIN, Node, POD_CIDRS};
use super::process::Process;
use super::state::State;
use super::tools::{self, Tools};
use super::wait::until;

const TO_SERVE: Duration = Duration::from_secs(20);

/// Directories that a node has for itself: below its part of the state directory, and where its programs see them.
///
/// Shims, CNI results and container logs have no option that would move them elsewhere.
const DIRECTORIES: &[(&str, &str)] = &[
    ("etc-cni", "/etc/cni"),
    ("run-containerd", "/run/containerd"),
    ("run-nodemesh", "/run/nodemesh"),
    ("var-lib-cni", "/var/lib/cni"),
    ("var-lib-containerd", "/var/lib/containerd"),
    ("var-lib-kubelet", "/var/lib/kubelet"),
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
    for (component, flags) in
        [("kubelet", kubelet_flags(state, node)), ("kube-proxy", proxy_flags(state, node))]
    {
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
        .and_then(|()| fs::write(&fresh, cni(cidrs)))
        // containerd watches the directory: it shall see a whole file.
        .and_then(|()| fs::rename(&fresh, directory.join("10-nodemesh.conflist")))
        .with_context(|| format!("can't write into {}", directory.display()))
}

fn write_files(state: &State, node: Node) -> Result<()> {
    let file = |name: &str| node.directory().join(name);
    state.write(file("var-lib-containerd/config.toml"), &containerd_config(&tools::cni_directory()?))?;
    state.write(file("var-lib-kubelet/config.yaml"), &kubelet_config(node))?;
    // No name server: pods that do without the cluster's names have none.
    state.write(file("var-lib-kubelet/resolv.conf"), "")?;
    Ok(())
}

/// The process that holds the node's namespaces.
///
/// Mounts of this machine still reach the node, but none of the node reaches this machine. Within the node they are
/// shared, as pods with bidirectional mount propagation want it.
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

fn containerd_config(cni_directory: &Path) -> String {
    format!(
        r#"version = 2
root = "/var/lib/containerd"
state = "/run/containerd"
# Nothing here may lower the score of a process without CAP_SYS_RESOURCE.
oom_score = 0
disabled_plugins = ["io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]

[grpc]
  address = "/run/containerd/containerd.sock"

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{pause}"
  # runc fails if it may not set the score that the kubelet wants.
  restrict_oom_score_adj = true
  # Network namespaces of pods end up in the node's own directories.
  netns_mounts_under_state_dir = true
  stream_server_address = "127.0.0.1"
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{cni}"
    conf_dir = "/etc/cni/net.d"
"#,
        pause = tools::PAUSE_IMAGE,
        cni = cni_directory.display(),
    )
}

fn kubelet_config(node: Node) -> String {
    format!(
        "apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: cgroupfs
cgroupRoot: /{node}
cgroupsPerQOS: true
# The node's cgroup has no limits of its own: both nodes share the machine.
enforceNodeAllocatable: []
failSwapOn: false
failCgroupV1: false
containerRuntimeEndpoint: unix:///run/containerd/containerd.sock
volumePluginDir: /var/lib/kubelet/volume-plugins
resolvConf: /var/lib/kubelet/resolv.conf
clusterDNS: [{DNS}]
clusterDomain: {DOMAIN}
# The API server comes without a client certificate; only this machine and the pods reach a kubelet.
authentication:
  anonymous: {{enabled: true}}
  webhook: {{enabled: false}}
authorization:
  mode: AlwaysAllow
# Images were loaded and can't be pulled again, and a full disk is this machine's matter.
imageGCHighThresholdPercent: 100
imageGCLowThresholdPercent: 99
evictionHard: {{memory.available: 100Mi, nodefs.available: 0%, nodefs.inodesFree: 0%, imagefs.available: 0%}}
# What a machine without CAP_SYS_RESOURCE may have.
oomScoreAdj: 0
maxOpenFiles: 20000
# Pods come and go by the dozen in tests.
maxPods: 250
registryPullQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
nodeStatusUpdateFrequency: 5s
"
    )
}

fn kubelet_flags(state: &State, node: Node) -> Vec<String> {
    vec![
        "--config=/var/lib/kubelet/config.yaml".into(),
        format!("--kubeconfig={}", state.path(kubeconfig_of(&node.name())).display()),
        "--root-dir=/var/lib/kubelet".into(),
        "--cert-dir=/var/lib/kubelet/pki".into(),
        format!("--hostname-override={node}"),
        format!("--node-ip={},{}", node.ipv4(), node.ipv6()),
        format!(
            "--node-labels=topology.kubernetes.io/zone={},topology.kubernetes.io/region=local",
            node.zone()
        ),
    ]
}

fn proxy_flags(state: &State, node: Node) -> Vec<String> {
    vec![
        format!("--kubeconfig={}", state.path(kubeconfig_of("kube-proxy")).display()),
        format!("--hostname-override={node}"),
        "--proxy-mode=nftables".into(),
        format!("--cluster-cidr={POD_CIDRS}"),
        // The table of connections is the machine's, not the node's.
        "--conntrack-max-per-core=0".into(),
        "--oom-score-adj=0".into(),
    ]
}

fn cni(cidrs: &[String]) -> String {
    let ranges: Vec<_> = cidrs.iter().map(|cidr| serde_json::json!([{ "subnet": cidr }])).collect();
    let document = serde_json::json!({
        "cniVersion": "0.4.0",
        "name": "nodemesh-cluster",
        "plugins": [{
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": true,
            "hairpinMode": true,
            "ipam": {
                "type": "host-local",
                "ranges": ranges,
                "routes": [{ "dst": "0.0.0.0/0" }, { "dst": "::/0" }],
            },
        }],
    });
    format!("{document:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node() -> Node {
        Node::first(1).unwrap()[0]
    }

    #[test]
    fn the_kubelet_keeps_to_the_nodes_cgroup() {
        let config = kubelet_config(node());
        assert!(config.contains("cgroupRoot: /node1\n"));
        assert!(config.contains("clusterDNS: [10.97.0.10]\n"));
        assert!(config.contains("anonymous: {enabled: true}"));
    }

    #[test]
    fn the_kubelet_knows_both_its_addresses_and_its_zone() {
        let flags = kubelet_flags(&State::new(), node()).join(" ");
        assert!(flags.contains("--node-ip=172.31.0.11,fd00:31::11"));
        assert!(flags.contains("topology.kubernetes.io/zone=zone-a"));
    }

    #[test]
    fn containerd_uses_the_pause_image_and_leaves_scores_alone() {
        let config = containerd_config(Path::new("/usr/lib/cni"));
        assert!(config.contains("sandbox_image = \"nodemesh.io/pause:1\""));
        assert!(config.contains("restrict_oom_score_adj = true"));
        assert!(config.contains("bin_dir = \"/usr/lib/cni\""));
    }

    #[test]
    fn pods_have_an_address_of_each_family() {
        let text = cni(&["10.245.0.0/24".into(), "fd00:245::/64".into()]);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ranges = &document["plugins"][0]["ipam"]["ranges"];
        assert_eq!(ranges[0][0]["subnet"], "10.245.0.0/24");
        assert_eq!(ranges[1][0]["subnet"], "fd00:245::/64");
    }

    #[test]
    fn a_program_of_a_node_starts_in_its_namespaces_and_cgroup() {
        let cgroups = Hierarchies::of_this_machine().unwrap();
        let holder = Process { name: "node1-holder".into(), pid: 7, start: 1, command: Vec::new() };
        let command = inside_command(&cgroups, node(), &holder, &["a".into(), "b".into()]);
        assert_eq!(command[..5], ["nsenter", "--target", "7", "--net", "--mount"]);
        assert!(command[7].contains("/node1/system/cgroup.procs"));
        assert_eq!(command[command.len() - 2..], ["a", "b"]);
    }
}
