//! What the agent's and the control plane's admin endpoints answer, shared with `meshctl`.
//!
//! Every type is plain data with stable JSON names (camelCase), so scripts may read the endpoints directly.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::manifest::{Kind, ObjectKey};

/// `GET /status` of an agent.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentStatus {
    /// Node that the agent serves.
    pub node: String,
    /// Version of the agent.
    pub version: String,
    /// Seconds since the proxy started.
    pub uptime_seconds: u64,
    /// Process id of the keeper, which has the privileges, as the proxy sees it.
    #[serde(default)]
    pub keeper: u32,
    /// Process id of the proxy.
    #[serde(default)]
    pub proxy: u32,
    /// Ready to serve: first configuration applied, eBPF attached.
    pub ready: bool,
    /// State of the control-plane stream.
    pub control: ControlStreamStatus,
    /// Generation of the snapshot in force.
    pub generation: u64,
    /// Pods enrolled now.
    pub enrolled_pods: usize,
    /// Connections open through the proxy now.
    pub open_connections: usize,
    /// Worker cores of the proxy.
    pub workers: usize,
}

/// State of an agent's stream to the control plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlStreamStatus {
    /// Address in use.
    pub address: String,
    /// Connected now.
    pub connected: bool,
    /// Seconds since the state last changed.
    pub since_seconds: u64,
    /// Why it is not connected, if it is not.
    pub error: Option<String>,
}

/// How far the agent is with a pod of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum EnrolmentState {
    /// Seen, and selected by label, but its network namespace was not found yet.
    Pending,
    /// Sockets of the pod go through the mesh.
    Enrolled,
    /// No label asks for it; the pod is left alone.
    NotSelected,
    /// Selected but could not be enrolled; see the reason.
    Failed,
}

impl EnrolmentState {
    /// Whether nothing further will happen without a change of the pod or its labels.
    pub fn is_final(self) -> bool {
        self != Self::Pending
    }
}

/// One item of `GET /pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodStatus {
    /// Kubernetes uid of the pod.
    pub uid: String,
    /// Namespace of the pod.
    pub namespace: String,
    /// Name of the pod.
    pub name: String,
    /// How far enrolment is.
    pub state: EnrolmentState,
    /// Why, where there is something to say.
    pub reason: Option<String>,
    /// The kernel's cookie of its network namespace, if it is enrolled.
    #[serde(default)]
    pub netns: Option<u64>,
    /// How it is connected to its node, if that is known.
    #[serde(default)]
    pub link: Option<PodLinkStatus>,
    /// If its egress is strict: why, and what it may go to all the same.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub strict_egress: Option<StrictEgressStatus>,
}

/// How a pod is connected to its node, which decides how connections to other pods of the node go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodLinkStatus {
    /// `veth`: what it sends directly goes from veth to veth. `routed`: over the node's routing alone.
    /// `shared`: over something that other pods may be at too.
    pub way: String,
    /// Why not from veth to veth.
    pub obstacle: Option<String>,
}

/// The strict egress of a pod in `GET /pods`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct StrictEgressStatus {
    /// `namespace` or `pod`: whose label it is.
    pub by: String,
    /// Networks outside of the mesh that its namespace names, with a port or without.
    pub allowed: Vec<String>,
    /// What is wrong with what the namespace names, if something is; then nothing is allowed.
    pub problem: Option<String>,
    /// Why the kernel does not know of it, or not of all that is allowed.
    pub not_in_force: Option<String>,
}

/// One item of `GET /certs`: the certificate of one identity.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct CertificateStatus {
    /// SPIFFE id.
    pub identity: String,
    /// `valid`, `renewing`, `missing` or `expired`.
    pub state: String,
    /// Serial number in hexadecimal, if there is a certificate.
    pub serial: Option<String>,
    /// Seconds since 1970 from when it is valid.
    pub not_before: Option<i64>,
    /// Seconds since 1970 until when it is valid.
    pub not_after: Option<i64>,
    /// Subject key fingerprints (SHA-256, hexadecimal) of the trusted roots.
    pub roots: Vec<String>,
    /// Last error of a renewal, if the last one failed.
    pub error: Option<String>,
}

/// One item of `GET /connections`: a connection that is open through the proxy.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectionStatus {
    /// `inbound` or `outbound`, seen from the pod on this node.
    pub direction: String,
    /// Client address as the application sees it.
    pub source: String,
    /// `namespace/name` of the client workload, if known.
    pub source_workload: Option<String>,
    /// SPIFFE id of the client, if mutual TLS proved it.
    pub source_identity: Option<String>,
    /// Address that the client asked for (outbound) or the pod was reached at (inbound).
    pub destination: String,
    /// `namespace/name` of the destination workload, if known.
    pub destination_workload: Option<String>,
    /// Host name of the service that the client addressed, if it did.
    pub destination_service: Option<String>,
    /// Address of the upstream socket's peer.
    pub upstream: String,
    /// `hbone`, `plain` or `local` (both pods on this node).
    pub transport: String,
    /// Policy that allowed it, if one had to.
    pub policy: Option<String>,
    /// Seconds since it was accepted.
    pub age_seconds: u64,
}

/// One item of `GET /workloads`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct WorkloadStatus {
    /// Unique key of the workload.
    pub uid: String,
    /// Namespace.
    pub namespace: String,
    /// Name of the pod or entry.
    pub name: String,
    /// Addresses.
    pub addresses: Vec<String>,
    /// Node it runs on.
    pub node: String,
    /// `hbone` or `plain`.
    pub tunnel: String,
    /// SPIFFE id.
    pub identity: String,
    /// Ready to serve.
    pub healthy: bool,
    /// `namespace/hostname` of its services.
    pub services: Vec<String>,
}

/// One item of `GET /services`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ServiceStatus {
    /// Namespace.
    pub namespace: String,
    /// Host name.
    pub hostname: String,
    /// Virtual addresses; none for a headless service.
    pub addresses: Vec<String>,
    /// `port` or `port:target`.
    pub ports: Vec<String>,
    /// Endpoints that are ready.
    pub ready_endpoints: usize,
    /// Endpoints in all.
    pub endpoints: usize,
}

/// One item of `GET /policies`.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// Namespace (the root namespace for mesh-wide ones).
    pub namespace: String,
    /// Name.
    pub name: String,
    /// `mesh`, `namespace` or `workload`.
    pub scope: String,
    /// `ALLOW`, `DENY` or `AUDIT`.
    pub action: String,
    /// Evaluated and logged only.
    pub dry_run: bool,
    /// Number of rules.
    pub rules: usize,
    /// Workloads of this node that it applies to.
    pub workloads: usize,
    /// The same by namespace, where there is any.
    #[serde(default)]
    pub by_namespace: BTreeMap<String, usize>,
}

/// `GET /resources` of the control plane: what became of what people wrote for the mesh.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceReport {
    /// Every resource of the kinds that the mesh reads.
    pub resources: Vec<ResourceStatus>,
    /// Kinds for a mesh that the cluster has and this one does not read, if there is any object of them.
    pub unread: Vec<UnreadKind>,
    /// Namespace whose policies apply to the whole mesh.
    #[serde(default)]
    pub root_namespace: String,
}

/// A resource that somebody wrote for the mesh.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceStatus {
    /// A kind that is written for a mesh; `Service` or `Pod` of one that can be reached past the mesh.
    pub kind: Kind,
    /// Namespace.
    pub namespace: String,
    /// Name.
    pub name: String,
    /// What it says in a word: the action, the mode of mutual TLS, the host.
    pub says: String,
    /// How much of it is in force.
    pub in_force: InForce,
    /// What is not, or not as written.
    pub parts: Vec<UnenforcedPart>,
    /// Of a route of the Gateway API: what its status says of each of its parents in the mesh.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub parents: Vec<ParentStatus>,
}

/// What the status of a route of the Gateway API says of one of its parents.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// Where in `spec.parentRefs` the parent stands.
    pub index: usize,
    /// Why the route is not attached to it; none: it is.
    pub refused: Option<ParentFault>,
    /// Why something that the route names can't be used; none: all can.
    pub unresolved: Option<ParentFault>,
}

/// Why a condition of a route's status is not true.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentFault {
    /// The reason, as the Gateway API calls it.
    pub reason: String,
    /// The same in words.
    pub message: String,
}

/// How much of a resource is in force.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum InForce {
    /// All of it, as it was written.
    AsWritten,
    /// Something has no effect, or another one than was written.
    Partly,
    /// Nothing.
    No,
    /// The present version can't be read: the last one that could be is in force.
    Earlier,
}

/// Something that a resource says and the mesh does not do, or does otherwise.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnenforcedPart {
    /// Path of the field.
    pub field: String,
    /// What it comes to, and why.
    pub meaning: String,
    /// What to write instead.
    pub fix: String,
}

/// A kind of objects that the mesh does not read.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct UnreadKind {
    /// The kind.
    pub kind: String,
    /// Its API group.
    pub group: String,
    /// Objects of it.
    pub objects: usize,
    /// `namespace/name` of some of them.
    pub examples: Vec<String>,
}

impl ResourceStatus {
    /// Whether somebody wrote it for the mesh.
    pub fn is_policy(&self) -> bool {
        self.kind.is_policy()
    }

    /// Which resource it is of.
    pub fn key(&self) -> ObjectKey {
        ObjectKey { kind: self.kind, namespace: self.namespace.clone(), name: self.name.clone() }
    }
}

impl fmt::Display for InForce {
    /// In a word, as the lists have it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AsWritten => "yes",
            Self::Partly => "partly",
            Self::No => "no",
            Self::Earlier => "as before",
        })
    }
}

impl fmt::Display for UnenforcedPart {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}; fix: {}", self.field, self.meaning, self.fix)
    }
}

/// `GET /status` of the control plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ControlStatus {
    /// Version of the control plane.
    pub version: String,
    /// Where configuration comes from, as given on the command line.
    pub source: String,
    /// Objects held.
    pub objects: usize,
    /// Documents that were rejected and are reported by `GET /errors`.
    pub errors: usize,
    /// Subject key fingerprints (SHA-256, hexadecimal) of the roots in the trust bundle; the signing one
    /// first.
    pub roots: Vec<String>,
    /// Agents connected now.
    pub agents: Vec<ConnectedAgent>,
}

/// One agent connected to the control plane.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ConnectedAgent {
    /// Node that the agent authenticated as.
    pub node: String,
    /// Remote address.
    pub address: String,
    /// Seconds since the stream was opened.
    pub connected_seconds: u64,
    /// Resources sent but not yet acknowledged.
    pub unacknowledged: usize,
    /// Text of the last rejection that the agent sent, if any.
    pub last_nack: Option<String>,
}
