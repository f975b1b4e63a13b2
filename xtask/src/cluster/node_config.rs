//! The configuration of what runs a node.

use super::access::kubeconfig_of;
use super::layout::{DNS, DOMAIN, Node, POD_CIDRS};
use super::state::State;
use super::tools;

/// containerd's configuration file.
pub fn containerd_config() -> String {
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
    bin_dir = "/opt/cni/bin"
    conf_dir = "/etc/cni/net.d"
"#,
        pause = tools::PAUSE_IMAGE,
    )
}

/// The kubelet's configuration file.
pub fn kubelet_config(node: Node) -> String {
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
# A changed ConfigMap is in its pods' files soon.
syncFrequency: 10s
# Pods come and go by the dozen in tests.
maxPods: 250
registryPullQPS: 0
kubeAPIQPS: 100
kubeAPIBurst: 200
nodeStatusUpdateFrequency: 5s
"
    )
}

/// What a kubelet is told on its command line: what differs between nodes.
pub fn kubelet_flags(state: &State, node: Node) -> Vec<String> {
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

/// kube-proxy's command line.
pub fn proxy_flags(state: &State, node: Node) -> Vec<String> {
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

/// How pods of the ranges `cidrs` are joined to the network.
pub fn cni(cidrs: &[String]) -> String {
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
        let config = containerd_config();
        assert!(config.contains("sandbox_image = \"nodemesh.io/pause:1\""));
        assert!(config.contains("restrict_oom_score_adj = true"));
        assert!(config.contains("bin_dir = \"/opt/cni/bin\""));
    }

    #[test]
    fn pods_have_an_address_of_each_family() {
        let text = cni(&["10.245.0.0/24".into(), "fd00:245::/64".into()]);
        let document: serde_json::Value = serde_json::from_str(&text).unwrap();
        let ranges = &document["plugins"][0]["ipam"]["ranges"];
        assert_eq!(ranges[0][0]["subnet"], "10.245.0.0/24");
        assert_eq!(ranges[1][0]["subnet"], "fd00:245::/64");
    }

    fn node() -> Node {
        Node::first(1).unwrap()[0]
    }
}
