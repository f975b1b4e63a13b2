//! What the control plane is told on its command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use mesh_listen::Readers;

use crate::ca::GivenAuthority;
use crate::kubernetes::bundle::BundleScope;

/// Options of `mesh-control run`.
#[derive(Clone, Debug, Args)]
pub struct Options {
    /// Where the configuration comes from: `kubernetes`, the API of the cluster, or `directory:PATH`, a
    /// directory of Kubernetes and Istio manifests
    #[arg(long, env = "MESH_CONTROL_SOURCE", value_name = "kubernetes|directory:PATH")]
    pub source: Source,

    /// Directory for the root certificate with its key, the trust bundle (root-cert.pem) and the last good
    /// state; with `--source kubernetes` a working copy of Secret nodemesh-ca, best in memory
    #[arg(long, env = "MESH_CONTROL_STATE_DIR", value_name = "PATH")]
    pub state_dir: PathBuf,

    /// Namespace of the control plane itself: of its Secret, Lease and `ConfigMap` and of the agents [with
    /// `--source kubernetes`]
    #[arg(long, env = "MESH_CONTROL_NAMESPACE", default_value = "nodemesh-system", value_name = "NAME")]
    pub namespace: String,

    /// Name of the control plane's own pod, which tells replicas apart [with `--source kubernetes`]
    #[arg(long, env = "POD_NAME", default_value = "mesh-control", value_name = "NAME")]
    pub pod_name: String,

    /// Service account of the agents, in the same namespace [with `--source kubernetes`]
    #[arg(
        long,
        env = "MESH_CONTROL_AGENT_SERVICE_ACCOUNT",
        default_value = "mesh-agent",
        value_name = "NAME"
    )]
    pub agent_service_account: String,

    /// Take the taint nodemesh.io/agent-not-ready off nodes whose agent is ready [with `--source kubernetes`]
    #[arg(
        long,
        env = "MESH_CONTROL_REMOVE_STARTUP_TAINT",
        num_args = 0..=1,
        default_value = "false",
        default_missing_value = "true",
        action = clap::ArgAction::Set,
        value_name = "BOOL"
    )]
    pub remove_startup_taint: bool,

    /// Sign with the authority in this Secret (tls.crt, tls.key, ca.crt) instead of a root made here [with
    /// `--source kubernetes`]
    #[arg(long, env = "MESH_CONTROL_CA_SECRET", conflicts_with = "ca_cert", value_name = "NAME")]
    pub ca_secret: Option<String>,

    /// Where to publish what to trust, as `ConfigMap` nodemesh-root-cert: in our own namespace, or in all
    /// [with `--source kubernetes`]
    #[arg(long, env = "MESH_CONTROL_PUBLISH_TRUST_BUNDLE", default_value = "release")]
    pub publish_trust_bundle: BundleScope,

    /// Address that agents connect to, for discovery and certificates
    #[arg(long, env = "MESH_CONTROL_LISTEN", default_value = "[::]:15012", value_name = "ADDRESS")]
    pub listen: SocketAddr,

    /// Address of the metrics endpoint (`/metrics`, `/healthz/ready`)
    #[arg(long, env = "MESH_CONTROL_METRICS", default_value = "[::]:15014", value_name = "ADDRESS")]
    pub metrics: SocketAddr,

    /// Who may read metrics beside the control plane's own host: addresses, blocks such as `10.0.0.0/8`, and
    /// namespaces, whose pods may; none if empty
    #[arg(
        long,
        env = "MESH_CONTROL_METRICS_ALLOW",
        default_value = "nodemesh-system,monitoring",
        value_name = "LIST"
    )]
    pub metrics_allow: Readers,

    /// Trust domain of every identity
    #[arg(long, env = "MESH_CONTROL_TRUST_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub trust_domain: String,

    /// DNS domain of services
    #[arg(long, env = "MESH_CONTROL_CLUSTER_DOMAIN", default_value = "cluster.local", value_name = "NAME")]
    pub cluster_domain: String,

    /// Name of the cluster, as in the uid of its workloads
    #[arg(long, env = "MESH_CONTROL_CLUSTER_ID", default_value = "Kubernetes", value_name = "NAME")]
    pub cluster_id: String,

    /// Namespace whose policies apply to the whole mesh
    #[arg(long, env = "MESH_CONTROL_ROOT_NAMESPACE", default_value = "istio-system", value_name = "NAME")]
    pub root_namespace: String,

    /// Directory of node tokens: the file NODE holds the token by which the agent of NODE is known. Needed
    /// with a directory as source; on Kubernetes the API server knows the agents' tokens
    #[arg(long, env = "MESH_CONTROL_NODE_TOKENS", value_name = "PATH")]
    pub node_tokens: Option<PathBuf>,

    /// Longest life of a workload's certificate
    #[arg(long, env = "MESH_CONTROL_WORKLOAD_CERT_TTL", default_value = "24h", value_name = "DURATION",
          value_parser = lifetime)]
    pub workload_cert_ttl: Duration,

    /// How long an agent stays with a replica, a fifth more or less; then it connects again, so that agents
    /// spread over the replicas
    #[arg(long, env = "MESH_CONTROL_AGENT_STAY", default_value = "30m", value_name = "DURATION", value_parser = stay)]
    pub agent_stay: Duration,

    /// Unix socket of the admin endpoint (`/status`, `/errors`, `/rotate-root`); none if not given
    #[arg(long, env = "MESH_CONTROL_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// Address of the admin endpoint on loopback, for reading only; none if not given
    #[arg(long, env = "MESH_CONTROL_ADMIN", value_name = "ADDRESS", value_parser = loopback)]
    pub admin: Option<SocketAddr>,

    /// Sign with this certificate (PEM) instead of a root made here
    #[arg(long, env = "MESH_CONTROL_CA_CERT", requires = "ca_key", value_name = "FILE")]
    pub ca_cert: Option<PathBuf>,

    /// Private key of --ca-cert (PEM)
    #[arg(long, env = "MESH_CONTROL_CA_KEY", requires = "ca_cert", value_name = "FILE")]
    pub ca_key: Option<PathBuf>,

    /// Certificates between --ca-cert and its root, and the root (PEM)
    #[arg(long, env = "MESH_CONTROL_CA_CHAIN", requires = "ca_cert", value_name = "FILE")]
    pub ca_chain: Option<PathBuf>,
}

impl Options {
    /// The authority that was given, if one was.
    pub fn given_authority(&self) -> Option<GivenAuthority> {
        let (certificate, key) = (self.ca_cert.clone()?, self.ca_key.clone()?);
        Some(GivenAuthority { certificate, key, chain: self.ca_chain.clone() })
    }
}

/// Where the configuration comes from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Source {
    /// A directory of manifests.
    Directory(PathBuf),
    /// The API of the cluster.
    Kubernetes,
}

impl FromStr for Source {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "kubernetes" => Ok(Self::Kubernetes),
            Some(("directory", path)) if !path.is_empty() => Ok(Self::Directory(path.into())),
            _ => Err("expected kubernetes or directory:PATH".to_owned()),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Directory(path) => write!(f, "directory:{}", path.display()),
            Self::Kubernetes => f.write_str("kubernetes"),
        }
    }
}

/// The admin endpoint rotates roots and asks nobody who he is: only the node, or the pod, itself may reach
/// it.
fn loopback(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text.parse().map_err(|_| "expected ADDRESS:PORT".to_owned())?;
    if address.ip().is_loopback() { Ok(address) } else { Err("must be a loopback address".to_owned()) }
}

/// A second at least: an agent that connects again says what it holds.
fn stay(text: &str) -> Result<Duration, String> {
    let stay = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let sensible = Duration::from_secs(1)..=Duration::from_hours(365 * 24);
    if sensible.contains(&stay) { Ok(stay) } else { Err("must be 1s to 365days".to_owned()) }
}

/// Ten seconds at least, since agents renew at half of it; a year at most, since nobody can revoke.
fn lifetime(text: &str) -> Result<Duration, String> {
    let lifetime = humantime::parse_duration(text).map_err(|error| error.to_string())?;
    let sensible = Duration::from_secs(10)..=Duration::from_hours(365 * 24);
    if sensible.contains(&lifetime) { Ok(lifetime) } else { Err("must be 10s to 365days".to_owned()) }
}
