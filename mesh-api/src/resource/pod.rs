//! Pods: what a kubelet needs to run one, and what the mesh needs to know of it.

use std::{collections::BTreeSet, net::IpAddr};

use serde::Deserialize;

use super::{
    Metadata, Readable, lenient,
    metadata::{NAME_FIX, is_subdomain},
};
use crate::document::{cursor::Findings, yaml_tree};

/// A pod.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Name, labels, owners.
    pub metadata: Metadata,
    /// What was asked for.
    pub spec: PodSpec,
    /// What is.
    pub status: PodStatus,
}

/// `spec` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodSpec {
    /// Run one after the other before the containers.
    pub init_containers: Vec<Container>,
    /// The containers.
    pub containers: Vec<Container>,
    /// Node that it runs on; empty until it is placed.
    pub node_name: String,
    /// Service account as written; see [`Pod::service_account`].
    pub service_account_name: String,
    /// Uses the node's own network.
    pub host_network: bool,
    /// Uses the node's own user namespace; if not said, it does.
    pub host_users: Option<bool>,
    /// `Always`, `OnFailure` or `Never`; empty means `Always`.
    pub restart_policy: String,
    /// Seconds between the request to stop and the kill.
    pub termination_grace_period_seconds: Option<u64>,
    /// Labels that its node must have.
    pub node_selector: super::Labels,
}

/// One container of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Container {
    /// Name, unique in the pod.
    pub name: String,
    /// Image reference.
    pub image: String,
    /// Program and its first arguments; empty means the image's own.
    pub command: Vec<String>,
    /// Arguments after `command`.
    pub args: Vec<String>,
    /// Environment.
    pub env: Vec<EnvVar>,
    /// Directory to start in.
    pub working_dir: Option<String>,
    /// Declared ports.
    pub ports: Vec<ContainerPort>,
    /// Holds the other probes back until it first succeeds.
    pub startup_probe: Option<Box<Probe>>,
    /// Decides whether the container is restarted.
    pub liveness_probe: Option<Box<Probe>>,
    /// Decides whether the pod gets traffic.
    pub readiness_probe: Option<Box<Probe>>,
    /// What the kubelet does when it has started and before it is stopped.
    pub lifecycle: Option<Box<Lifecycle>>,
}

/// What the kubelet does at a container's beginning and end.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Lifecycle {
    /// After it has started.
    pub post_start: Option<LifecycleHandler>,
    /// Before it is stopped.
    pub pre_stop: Option<LifecycleHandler>,
}

/// A lifecycle hook, as far as it goes over the network.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LifecycleHandler {
    /// An HTTP GET.
    pub http_get: Option<HttpGet>,
    /// A TCP connection.
    pub tcp_socket: Option<TcpSocket>,
}

/// One environment variable.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvVar {
    /// Name.
    pub name: String,
    /// Value as written.
    pub value: String,
    /// Where else the value comes from.
    pub value_from: Option<EnvSource>,
}

/// `valueFrom` of an environment variable.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct EnvSource {
    /// A field of the pod itself.
    pub field_ref: Option<FieldRef>,
}

/// `fieldRef` of an environment variable.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct FieldRef {
    /// Path such as `metadata.name` or `status.podIP`.
    pub field_path: String,
}

/// One declared port of a container.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ContainerPort {
    /// Name that services and probes may use.
    #[serde(default)]
    pub name: String,
    /// Number.
    #[serde(deserialize_with = "lenient::port")]
    pub container_port: u16,
    /// Port of its node that leads there; 0 if none does.
    #[serde(default)]
    pub host_port: u16,
    /// Transport protocol.
    #[serde(default)]
    pub protocol: Protocol,
}

/// Transport protocol of a port.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Protocol {
    /// TCP.
    #[default]
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

/// A kubelet probe.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Probe {
    /// What to do.
    #[serde(flatten)]
    pub action: ProbeAction,
    /// Seconds from the container's start to the first probe.
    #[serde(default)]
    pub initial_delay_seconds: u32,
    /// Seconds between probes.
    #[serde(default = "ten")]
    pub period_seconds: u32,
    /// Seconds that one probe may take.
    #[serde(default = "one")]
    pub timeout_seconds: u32,
    /// Successes in a row that count as a success.
    #[serde(default = "one")]
    pub success_threshold: u32,
    /// Failures in a row that count as a failure.
    #[serde(default = "three")]
    pub failure_threshold: u32,
}

/// What a probe does.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum ProbeAction {
    /// An HTTP GET, good if the status is 200 to 399.
    HttpGet(HttpGet),
    /// A TCP connect.
    TcpSocket(TcpSocket),
    /// A gRPC health check.
    Grpc(GrpcCheck),
    /// A command inside the container, good if it exits with 0.
    Exec(ExecCommand),
}

/// `httpGet` of a probe.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HttpGet {
    /// Path; empty means `/`.
    #[serde(default)]
    pub path: String,
    /// Port number or name.
    pub port: PortRef,
    /// Host to connect to instead of the pod's address.
    #[serde(default)]
    pub host: String,
    /// `HTTP` or `HTTPS`; empty means `HTTP`.
    #[serde(default)]
    pub scheme: String,
    /// Extra headers.
    #[serde(default)]
    pub http_headers: Vec<HttpHeader>,
}

/// One header of an HTTP probe.
#[derive(Clone, Debug, Deserialize)]
pub struct HttpHeader {
    /// Name.
    pub name: String,
    /// Value.
    pub value: String,
}

/// `tcpSocket` of a probe.
#[derive(Clone, Debug, Deserialize)]
pub struct TcpSocket {
    /// Port number or name.
    pub port: PortRef,
    /// Host to connect to instead of the pod's address.
    #[serde(default)]
    pub host: String,
}

/// `grpc` of a probe.
#[derive(Clone, Debug, Deserialize)]
pub struct GrpcCheck {
    /// Port number.
    #[serde(deserialize_with = "lenient::port")]
    pub port: u16,
    /// Service name that the check asks for.
    #[serde(default)]
    pub service: String,
}

/// `exec` of a probe.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ExecCommand {
    /// Program and arguments.
    pub command: Vec<String>,
}

/// A port by number or by the name that a container declares.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "serde_json::Value")]
pub enum PortRef {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl TryFrom<serde_json::Value> for PortRef {
    type Error = String;

    fn try_from(value: serde_json::Value) -> Result<Self, String> {
        let number = match &value {
            serde_json::Value::String(name) if !name.is_empty() => match name.parse::<u64>() {
                Ok(number) => Some(number),
                Err(_) => return Ok(Self::Name(name.clone())),
            },
            value => value.as_u64(),
        };
        let port = number.and_then(|number| u16::try_from(number).ok()).filter(|port| *port != 0);
        port.map(Self::Number).ok_or_else(|| {
            format!("{value} is not a port, expected a number from 1 to 65535 or a port's name")
        })
    }
}

/// `status` of a pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct PodStatus {
    /// `Pending`, `Running`, `Succeeded`, `Failed` or `Unknown`.
    pub phase: String,
    /// First address.
    #[serde(rename = "podIP")]
    pub pod_ip: String,
    /// All addresses.
    #[serde(rename = "podIPs")]
    pub pod_ips: Vec<PodIp>,
    /// Conditions, `Ready` among them.
    pub conditions: Vec<PodCondition>,
}

/// One of `status.podIPs`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodIp {
    /// Address.
    pub ip: String,
}

/// One of `status.conditions`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodCondition {
    /// `Ready`, `PodScheduled`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// `True`, `False` or `Unknown`.
    pub status: String,
}

impl Readable for Pod {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let spec: PodSpec = lenient::field(root, "spec", findings)?;
        let status = lenient::field(root, "status", findings)?;
        let account = &spec.service_account_name;
        if !account.is_empty() && !is_subdomain(account) {
            let problem = format!("{account:?} is not a name");
            lenient::report(root, &["spec", "serviceAccountName"], &problem, NAME_FIX, findings);
            return None;
        }
        Some(Self { metadata, spec, status })
    }
}

impl Pod {
    /// Keeps of the containers their ports, and what others may know of the pod.
    pub(super) fn forget_programs(&mut self) {
        self.metadata.annotations.clear();
        self.spec.init_containers = Vec::new();
        for container in &mut self.spec.containers {
            let mut ports = std::mem::take(&mut container.ports);
            ports.shrink_to_fit();
            *container = Container { ports, ..Container::default() };
        }
        self.spec.containers.retain(|container| !container.ports.is_empty());
        self.spec.containers.shrink_to_fit();
        self.status.conditions.retain(|condition| condition.kind == "Ready");
        self.status.conditions.shrink_to_fit();
        self.status.pod_ips.shrink_to_fit();
        self.metadata.owner_references.shrink_to_fit();
    }

    /// Ports of its node that lead to it, as addresses of the node: not those of a pod that has the node's
    /// network.
    pub fn host_ports(&self) -> BTreeSet<u16> {
        let containers = self.spec.containers.iter().filter(|_| !self.spec.host_network);
        let ports = containers.flat_map(|container| &container.ports);
        ports
            .filter(|port| port.protocol == Protocol::Tcp && port.host_port != 0)
            .map(|it| it.host_port)
            .collect()
    }

    /// The service account; `default` if none is named.
    pub fn service_account(&self) -> &str {
        match self.spec.service_account_name.as_str() {
            "" => "default",
            name => name,
        }
    }

    /// The pod's addresses, without repetition.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let texts = std::iter::once(&self.status.pod_ip).chain(self.status.pod_ips.iter().map(|ip| &ip.ip));
        let mut addresses: Vec<IpAddr> = Vec::new();
        for address in texts.filter_map(|text| text.parse::<IpAddr>().ok()).map(|ip| ip.to_canonical()) {
            if !addresses.contains(&address) {
                addresses.push(address);
            }
        }
        addresses
    }

    /// Whether the kubelet reports it ready for traffic.
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }

    /// Whether it is being deleted.
    pub fn is_terminating(&self) -> bool {
        self.metadata.deletion_timestamp.is_some()
    }

    /// Whether it has ended and will not run again.
    pub fn is_terminal(&self) -> bool {
        matches!(self.status.phase.as_str(), "Succeeded" | "Failed")
    }

    /// Number of a TCP port that a container declares under `name`.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        self.spec.containers.iter().find_map(|container| container.named_port(name))
    }

    /// The pod's own ports that its network probes and lifecycle hooks connect to.
    pub fn probe_ports(&self) -> BTreeSet<u16> {
        let containers = self.spec.init_containers.iter().chain(&self.spec.containers);
        containers.flat_map(Container::probe_ports).collect()
    }
}

impl Container {
    /// Number of the TCP port that is declared under `name`.
    pub fn named_port(&self, name: &str) -> Option<u16> {
        let port = self.ports.iter().find(|port| port.name == name && port.protocol == Protocol::Tcp);
        port.map(|port| port.container_port)
    }

    /// Number of a port given by number or name.
    pub fn resolve_port(&self, port: &PortRef) -> Option<u16> {
        match port {
            PortRef::Number(number) => Some(*number),
            PortRef::Name(name) => self.named_port(name),
        }
    }

    fn probe_ports(&self) -> impl Iterator<Item = u16> {
        let probes = [&self.startup_probe, &self.liveness_probe, &self.readiness_probe];
        let probed = probes.into_iter().flatten().filter_map(|probe| match &probe.action {
            ProbeAction::HttpGet(get) => self.own_port(&get.host, &get.port),
            ProbeAction::TcpSocket(socket) => self.own_port(&socket.host, &socket.port),
            ProbeAction::Grpc(check) => Some(check.port),
            ProbeAction::Exec(_) => None,
        });
        let hooks = self.lifecycle.iter().flat_map(|it| [&it.post_start, &it.pre_stop]).flatten();
        let hooked = hooks.filter_map(|hook| match (&hook.http_get, &hook.tcp_socket) {
            (Some(get), _) => self.own_port(&get.host, &get.port),
            (None, Some(socket)) => self.own_port(&socket.host, &socket.port),
            (None, None) => None,
        });
        probed.chain(hooked)
    }

    /// A request to another host is no access to this pod.
    fn own_port(&self, host: &str, port: &PortRef) -> Option<u16> {
        if host.is_empty() { self.resolve_port(port) } else { None }
    }
}

fn one() -> u32 {
    1
}

fn three() -> u32 {
    3
}

fn ten() -> u32 {
    10
}
