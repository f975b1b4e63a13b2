//! The settings as they were given, in one place or several.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;

use clap::Args;
use mesh_listen::Readers;
use serde::{Deserialize, Serialize};

use super::setting_types::{
    AccessLogFormat, ControlPlaneUrl, Framing, HumanDuration, LogFormat, PodSource, SameNodeMode,
    WaypointMode,
};

/// One field for each setting; none where nothing was said.
#[derive(Clone, Debug, Default, PartialEq, Eq, Args, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Settings {
    /// Name of the node that the agent serves
    #[arg(long, env = "MESH_AGENT_NODE_NAME", value_name = "NAME")]
    pub node_name: Option<String>,

    /// Cgroup v2 directory below which the node's pods are [default: /sys/fs/cgroup]
    #[arg(long, env = "MESH_AGENT_CGROUP_ROOT", value_name = "DIR")]
    pub cgroup_root: Option<PathBuf>,

    /// Directory on a bpffs for pinned programs and maps [default: /sys/fs/bpf/nodemesh]
    #[arg(long, env = "MESH_AGENT_BPF_ROOT", value_name = "DIR")]
    pub bpf_root: Option<PathBuf>,

    /// Directory of the socket by which a newer agent takes over from this one [default: /run/nodemesh]
    #[arg(long, env = "MESH_AGENT_RUN_DIR", value_name = "DIR")]
    pub run_dir: Option<PathBuf>,

    /// Directory of what the CNI plugin decides by; without one there is no plugin on this node
    #[arg(long, env = "MESH_AGENT_CNI_STATE_DIR", value_name = "DIR")]
    pub cni_state_dir: Option<PathBuf>,

    /// Where the node's pods are told: `kubernetes`, the API of the cluster, or `directory:PATH`, a directory
    /// of JSON files
    #[arg(long, env = "MESH_AGENT_POD_SOURCE", value_name = "kubernetes|directory:PATH")]
    pub pod_source: Option<PodSource>,

    /// Control plane [default: <https://mesh-control.nodemesh-system.svc:15012>]
    #[arg(long, env = "MESH_AGENT_CONTROL", value_name = "https://HOST:PORT")]
    pub control: Option<ControlPlaneUrl>,

    /// DNS name that the control plane's certificate must have [default: mesh-control]
    #[arg(long, env = "MESH_AGENT_CONTROL_NAME", value_name = "NAME")]
    pub control_name: Option<String>,

    /// PEM file of the roots to check the control plane with
    /// [default: /var/run/secrets/nodemesh/root-cert.pem]
    #[arg(long, env = "MESH_AGENT_CONTROL_ROOT_CERT", value_name = "FILE")]
    pub control_root_cert: Option<PathBuf>,

    /// File of the node's token, read again for each call [default: /var/run/secrets/tokens/mesh-token]
    #[arg(long, env = "MESH_AGENT_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// Trust domain of the mesh [default: cluster.local]
    #[arg(long, env = "MESH_AGENT_TRUST_DOMAIN", value_name = "NAME")]
    pub trust_domain: Option<String>,

    /// Name of the cluster, which the control plane is told [default: Kubernetes]
    #[arg(long, env = "MESH_AGENT_CLUSTER_ID", value_name = "NAME")]
    pub cluster_id: Option<String>,

    /// Loopback address of the admin endpoint [default: 127.0.0.1:15000]
    #[arg(long, env = "MESH_AGENT_ADMIN", value_name = "ADDRESS")]
    pub admin: Option<SocketAddr>,

    /// Unix socket of the admin endpoint; none if not given
    #[arg(long, env = "MESH_AGENT_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// Address of the metrics endpoint (default: `[::]:15020`)
    #[arg(long, env = "MESH_AGENT_METRICS", value_name = "ADDRESS")]
    pub metrics: Option<SocketAddr>,

    /// Who may read metrics beside processes of the node itself: addresses, blocks such as `10.0.0.0/8`, and
    /// namespaces, whose pods may; none if empty [default: nodemesh-system,monitoring]
    #[arg(long, env = "MESH_AGENT_METRICS_ALLOW", value_name = "LIST")]
    pub metrics_allow: Option<Readers>,

    /// Address of the health endpoint (default: `[::]:15021`)
    #[arg(long, env = "MESH_AGENT_HEALTH", value_name = "ADDRESS")]
    pub health: Option<SocketAddr>,

    /// Workers of the proxy, a thread each [default: one for every two cores, at least 1 and at most 4]
    #[arg(long, env = "MESH_AGENT_WORKERS", value_name = "N")]
    pub workers: Option<usize>,

    /// How connections between meshed pods of one node go where no rule needs the proxy: `auto`, within the
    /// kernel from veth to veth, and over mutual TLS where other pods are on the way; `direct`, within the
    /// kernel whoever is on the way; `mtls`, over mutual TLS as between nodes [default: auto]
    #[arg(long, env = "MESH_AGENT_SAME_NODE", value_name = "auto|direct|mtls")]
    pub same_node: Option<SameNodeMode>,

    /// Connections that one pod may have open through the proxy; more are refused [default: three quarters of
    /// what the open file limit allows]
    #[arg(long, env = "MESH_AGENT_POD_CONNECTIONS", value_name = "N")]
    pub pod_connections: Option<NonZeroUsize>,

    /// Mebibytes that the streams of one pod to other nodes may fill while their readers do not read, beside
    /// 16 KiB of each [default: 64]
    #[arg(long, env = "MESH_AGENT_POD_BUFFERS", value_name = "MIB")]
    pub pod_buffers: Option<NonZeroUsize>,

    /// Count and log connections of enrolled pods to where the mesh does not reach, too [default: false]
    #[arg(long, env = "MESH_AGENT_COUNT_UNTOUCHED", num_args = 0..=1, default_missing_value = "true", value_name = "BOOL")]
    pub count_untouched: Option<bool>,

    /// How connections between nodes are framed: `auto`, by the mesh's own protocol where the peer has it, or
    /// `hbone`, as other meshes do it [default: auto]
    #[arg(long, env = "MESH_AGENT_TUNNEL", value_name = "auto|hbone")]
    pub tunnel: Option<Framing>,

    /// What becomes of connections to services and workloads behind a waypoint, which they can't go through
    /// yet: `refuse`, or `ignore`, past it and its policy [default: refuse]
    #[arg(long, env = "MESH_AGENT_WAYPOINTS", value_name = "refuse|ignore")]
    pub waypoints: Option<WaypointMode>,

    /// Log filter: a level, or `target=level` pairs [default: info]
    #[arg(long, env = "MESH_AGENT_LOG", value_name = "FILTER")]
    pub log: Option<String>,

    /// How log lines look [default: text]
    #[arg(long, env = "MESH_AGENT_LOG_FORMAT", value_name = "FORMAT")]
    pub log_format: Option<LogFormat>,

    /// Access log, one line for each connection [default: text]
    #[arg(long, env = "MESH_AGENT_ACCESS_LOG", value_name = "FORMAT")]
    pub access_log: Option<AccessLogFormat>,

    /// How long connections may go on after the agent was told to stop [default: 5s]
    #[arg(long, env = "MESH_AGENT_DRAIN_TIMEOUT", value_name = "DURATION")]
    pub drain_timeout: Option<HumanDuration>,
}

impl Settings {
    /// Fills in what these settings leave open from `weaker`.
    #[must_use]
    pub fn or(self, weaker: Self) -> Self {
        Self {
            node_name: self.node_name.or(weaker.node_name),
            cgroup_root: self.cgroup_root.or(weaker.cgroup_root),
            bpf_root: self.bpf_root.or(weaker.bpf_root),
            run_dir: self.run_dir.or(weaker.run_dir),
            cni_state_dir: self.cni_state_dir.or(weaker.cni_state_dir),
            pod_source: self.pod_source.or(weaker.pod_source),
            control: self.control.or(weaker.control),
            control_name: self.control_name.or(weaker.control_name),
            control_root_cert: self.control_root_cert.or(weaker.control_root_cert),
            token_file: self.token_file.or(weaker.token_file),
            trust_domain: self.trust_domain.or(weaker.trust_domain),
            cluster_id: self.cluster_id.or(weaker.cluster_id),
            admin: self.admin.or(weaker.admin),
            admin_socket: self.admin_socket.or(weaker.admin_socket),
            metrics: self.metrics.or(weaker.metrics),
            metrics_allow: self.metrics_allow.or(weaker.metrics_allow),
            health: self.health.or(weaker.health),
            workers: self.workers.or(weaker.workers),
            same_node: self.same_node.or(weaker.same_node),
            pod_connections: self.pod_connections.or(weaker.pod_connections),
            pod_buffers: self.pod_buffers.or(weaker.pod_buffers),
            count_untouched: self.count_untouched.or(weaker.count_untouched),
            tunnel: self.tunnel.or(weaker.tunnel),
            waypoints: self.waypoints.or(weaker.waypoints),
            log: self.log.or(weaker.log),
            log_format: self.log_format.or(weaker.log_format),
            access_log: self.access_log.or(weaker.access_log),
            drain_timeout: self.drain_timeout.or(weaker.drain_timeout),
        }
    }
}
