//! The agent's settings: flags, environment and a YAML file, in one order of precedence, parsed once.
//!
//! A flag beats the environment, which beats the file, which beats the default. [`Settings`] has what was
//! given, [`Config`] what is in force; `--print-config` shows the latter in the file's own format.

mod file;
mod given_settings;
mod setting_types;

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use mesh_listen::Readers;
use serde::Serialize;

use crate::keeper::protocol::MOST_WORKERS;
pub use file::ConfigFileError;
pub use given_settings::Settings;
pub use setting_types::{
    AccessLogFormat, ControlPlaneUrl, Framing, HumanDuration, LogFormat, PodSource, SameNodeMode,
    WaypointMode,
};

/// Most workers by default: more gain little, and each costs three listeners for every pod.
const ENOUGH_WORKERS: usize = 4;

/// Cores for each worker by default. The others are for applications, and few workers cost less than many:
/// one worker sends together what it has for several connections.
const CORES_FOR_EACH: usize = 2;

/// Options of `mesh-agent run`.
#[derive(Clone, Debug, Args)]
pub struct RunArgs {
    /// YAML file of settings, by the names of the flags in camelCase; flags and environment beat it
    #[arg(long, env = "MESH_AGENT_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Print the settings in force as YAML, and do nothing else
    #[arg(long)]
    pub print_config: bool,

    /// The settings themselves.
    #[command(flatten)]
    pub settings: Settings,
}

/// The settings in force.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Config {
    /// Node that the agent serves.
    pub node_name: String,
    /// Cgroup v2 directory below which the node's pods are.
    pub cgroup_root: PathBuf,
    /// Directory on a bpffs for pinned programs and maps.
    pub bpf_root: PathBuf,
    /// Directory of the handover socket, and of the socket at which the CNI plugin asks.
    pub run_dir: PathBuf,
    /// Directory of the file that the CNI plugin decides by, if there is a plugin on this node.
    pub cni_state_dir: Option<PathBuf>,
    /// Where the node's pods are read from.
    pub pod_source: PodSource,
    /// Address of the control plane.
    pub control: ControlPlaneUrl,
    /// DNS name that the control plane's certificate must have.
    pub control_name: String,
    /// PEM file of the roots that the control plane's certificate is checked with.
    pub control_root_cert: PathBuf,
    /// File of the token that identifies the node; read again for each call.
    pub token_file: PathBuf,
    /// Trust domain of the mesh.
    pub trust_domain: String,
    /// Name of the cluster, as the control plane is told.
    pub cluster_id: String,
    /// TCP address of the admin endpoint.
    pub admin: SocketAddr,
    /// Unix socket of the admin endpoint, if there should be one.
    pub admin_socket: Option<PathBuf>,
    /// Address of the metrics endpoint.
    pub metrics: SocketAddr,
    /// Who may read metrics, besides processes of the node.
    pub metrics_allow: Readers,
    /// Address of the health endpoint.
    pub health: SocketAddr,
    /// Number of workers of the proxy.
    pub workers: usize,
    /// How connections between meshed pods of this node go.
    pub same_node: SameNodeMode,
    /// Most connections of one pod through the proxy; none means three quarters of the agent's own limit.
    pub pod_connections: Option<NonZeroUsize>,
    /// Mebibytes that the streams of one pod may hold, beyond 16 KiB for each.
    pub pod_buffers: usize,
    /// Whether connections past the mesh are counted and logged too.
    pub count_untouched: bool,
    /// How connections between nodes are framed.
    pub tunnel: Framing,
    /// How connections to destinations behind a waypoint are treated.
    pub waypoints: WaypointMode,
    /// Log filter, as `tracing-subscriber` reads it.
    pub log: String,
    /// Format of log lines.
    pub log_format: LogFormat,
    /// Format of access log lines, or off.
    pub access_log: AccessLogFormat,
    /// How long connections may go on after the agent was told to stop.
    #[serde(serialize_with = "setting_types::serialize_human_duration")]
    pub drain_timeout: Duration,
}

/// Default of `pod_buffers`, mebibytes: a few streams at the full speed of a fast network far away, or some
/// thousand with a small window.
const POD_BUFFERS: usize = 64;

/// Default namespaces whose pods may read metrics: the mesh's own, and where Prometheus usually is.
const READERS: [&str; 2] = ["nodemesh-system", "monitoring"];

/// Why the settings are not valid. The operator has to act.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file can't be used.
    #[error(transparent)]
    File(#[from] ConfigFileError),
    /// A setting without a default is missing.
    #[error(
        "{flag} is missing: give the flag, set {environment}, or write {key} into the configuration file"
    )]
    Missing {
        /// The flag.
        flag: &'static str,
        /// The variable.
        environment: &'static str,
        /// The key.
        key: &'static str,
    },
    /// A value is not valid.
    #[error("{flag}: {problem}")]
    Invalid {
        /// The flag.
        flag: &'static str,
        /// What is wrong.
        problem: String,
    },
}

impl RunArgs {
    /// Merges flags, environment, file and defaults. Errors: see [`ConfigError`].
    pub fn load_config(&self) -> Result<Config, ConfigError> {
        let from_file = self.config.as_deref().map(file::read_settings).transpose()?.unwrap_or_default();
        Config::try_from(self.settings.clone().or(from_file))
    }
}

impl Config {
    /// Returns the settings as a configuration file (YAML).
    pub fn to_yaml(&self) -> String {
        // Texts and numbers always have a YAML form.
        serde_saphyr::to_string(self).unwrap_or_default()
    }
}

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(said: Settings) -> Result<Self, ConfigError> {
        let config = Self {
            node_name: said.node_name.ok_or(missing("--node-name", "MESH_AGENT_NODE_NAME", "nodeName"))?,
            cgroup_root: said.cgroup_root.unwrap_or_else(|| "/sys/fs/cgroup".into()),
            bpf_root: said.bpf_root.unwrap_or_else(|| "/sys/fs/bpf/nodemesh".into()),
            run_dir: said.run_dir.unwrap_or_else(|| "/run/nodemesh".into()),
            cni_state_dir: said.cni_state_dir,
            pod_source: said.pod_source.ok_or(missing(
                "--pod-source",
                "MESH_AGENT_POD_SOURCE",
                "podSource",
            ))?,
            control: said.control.unwrap_or_default(),
            control_name: said.control_name.unwrap_or_else(|| "mesh-control".to_owned()),
            control_root_cert: said
                .control_root_cert
                .unwrap_or_else(|| "/var/run/secrets/nodemesh/root-cert.pem".into()),
            token_file: said.token_file.unwrap_or_else(|| "/var/run/secrets/tokens/mesh-token".into()),
            trust_domain: said.trust_domain.unwrap_or_else(|| "cluster.local".to_owned()),
            cluster_id: said.cluster_id.unwrap_or_else(|| "Kubernetes".to_owned()),
            admin: said.admin.unwrap_or(SocketAddr::from(([127, 0, 0, 1], 15000))),
            admin_socket: said.admin_socket,
            metrics: said.metrics.unwrap_or(SocketAddr::from(([0; 16], 15020))),
            metrics_allow: said.metrics_allow.unwrap_or_else(|| Readers::of_namespaces(&READERS)),
            health: said.health.unwrap_or(SocketAddr::from(([0; 16], 15021))),
            workers: said.workers.unwrap_or_else(default_workers),
            same_node: said.same_node.unwrap_or_default(),
            pod_connections: said.pod_connections,
            pod_buffers: said.pod_buffers.map_or(POD_BUFFERS, NonZeroUsize::get),
            count_untouched: said.count_untouched.unwrap_or_default(),
            tunnel: said.tunnel.unwrap_or_default(),
            waypoints: said.waypoints.unwrap_or_default(),
            log: said.log.unwrap_or_else(|| "info".to_owned()),
            log_format: said.log_format.unwrap_or_default(),
            access_log: said.access_log.unwrap_or_default(),
            drain_timeout: said.drain_timeout.map_or(Duration::from_secs(5), Duration::from),
        };
        config.check()?;
        Ok(config)
    }
}

impl Config {
    fn check(&self) -> Result<(), ConfigError> {
        let invalid = |flag, problem: &str| Err(ConfigError::Invalid { flag, problem: problem.to_owned() });
        if self.node_name.is_empty() {
            return invalid("--node-name", "a node has a name");
        }
        if self.workers == 0 {
            return invalid("--workers", "the proxy needs at least one worker");
        }
        if self.workers > usize::from(MOST_WORKERS) {
            return invalid("--workers", "more than 64 are no use on any node");
        }
        if !self.admin.ip().is_loopback() {
            return invalid(
                "--admin",
                "the admin endpoint has no login, so its address must be a loopback one",
            );
        }
        if let Err(error) = mesh_api::identity::SpiffeId::new(&self.trust_domain, "a", "b") {
            return invalid("--trust-domain", &error.to_string());
        }
        Ok(())
    }
}

fn missing(flag: &'static str, environment: &'static str, key: &'static str) -> ConfigError {
    ConfigError::Missing { flag, environment, key }
}

fn default_workers() -> usize {
    workers_for(std::thread::available_parallelism().map_or(1, usize::from))
}

fn workers_for(cores: usize) -> usize {
    (cores / CORES_FOR_EACH).clamp(1, ENOUGH_WORKERS)
}

#[cfg(test)]
mod tests;
