//! A workload: a pod, or something that is treated like one.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::field_parsing::{self, Invalid};
use super::locality_preference::Locality;
use super::waypoint_reference::Waypoint;
use crate::identity::SpiffeId;
use crate::wire::{ext, type_url, workload as wire};

/// Default trust domain, Istio's.
const DEFAULT_TRUST_DOMAIN: &str = "cluster.local";
/// Default service account, Kubernetes'.
const DEFAULT_ACCOUNT: &str = "default";

/// A workload, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Workload {
    /// Uid, unique and opaque.
    pub uid: Arc<str>,
    /// Name of the pod or entry.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// SPIFFE ID.
    pub identity: SpiffeId,
    /// Addresses, canonical; may be empty.
    pub addresses: Box<[IpAddr]>,
    /// Where it runs.
    pub locality: Locality,
    /// Name of its node; empty if it has none.
    pub node: Arc<str>,
    /// Name of its cluster; may be empty.
    pub cluster: Arc<str>,
    /// The protocol that it is reached by.
    pub tunnel_protocol: TunnelProtocol,
    /// Whether it is ready.
    pub health: Health,
    /// Whether its addresses are its own.
    pub network_mode: NetworkMode,
    /// Canonical service name, for telemetry.
    pub canonical_name: Arc<str>,
    /// Canonical revision, for telemetry.
    pub canonical_revision: Arc<str>,
    /// Name of its owner, such as a Deployment.
    pub workload_name: Arc<str>,
    /// Weight among the endpoints of a service; 0: never chosen.
    pub capacity: u32,
    /// `namespace/name` of the policies that select it.
    pub policies: Box<[Arc<str>]>,
    /// `namespace/hostname` of the services that it belongs to, and its ports there.
    pub services: BTreeMap<Arc<str>, Box<[PortMapping]>>,
    /// Waypoints that connections to its own addresses should go through.
    pub waypoints: Box<[Waypoint]>,
    /// The labels that traffic policies select by.
    pub labels: BTreeMap<String, String>,
}

/// The protocol that a workload is reached by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum TunnelProtocol {
    /// HTTP/2 CONNECT over mutual TLS.
    Hbone,
    /// Plain TCP.
    Plain,
}

/// Whether a workload is ready to serve.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Health {
    /// Ready.
    Healthy,
    /// About to end and still serving: an endpoint if there is no other (Kubernetes' KEP-1669).
    Terminating,
    /// Not ready.
    Unhealthy,
}

/// Whether a workload's addresses are its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NetworkMode {
    /// They are its own.
    Standard,
    /// They are its node's, and do not tell which workload is meant: it is never found by address.
    Host,
}

/// A port of a service on one workload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PortMapping {
    /// Port of the service.
    pub service: u16,
    /// Port of the workload; none if only the service can tell.
    pub target: Option<u16>,
}

impl Workload {
    /// Returns the workload's port for a port of one of its services (key `namespace/hostname`).
    pub fn port_mapping(&self, service: &str, port: u16) -> Option<PortMapping> {
        self.services.get(service)?.iter().find(|mapping| mapping.service == port).copied()
    }
}

impl TryFrom<wire::Workload> for Workload {
    type Error = Invalid;

    fn try_from(from: wire::Workload) -> Result<Self, Invalid> {
        let namespace = field_parsing::require_non_empty("namespace", &from.namespace)?;
        let identity = SpiffeId::new(
            or(&from.trust_domain, DEFAULT_TRUST_DOMAIN),
            namespace,
            or(&from.service_account, DEFAULT_ACCOUNT),
        )?;
        let addresses = from.addresses.iter().map(|bytes| field_parsing::parse_address("addresses", bytes));
        let locality = Locality::of(&from);
        Ok(Self {
            uid: field_parsing::require_non_empty("uid", &from.uid)?.into(),
            identity,
            namespace: namespace.into(),
            addresses: addresses.collect::<Result<_, _>>()?,
            node: locality.node.clone(),
            cluster: locality.cluster.clone(),
            locality,
            tunnel_protocol: tunnel_protocol(from.tunnel_protocol)?,
            health: health(from.status, &from.extensions)?,
            network_mode: network_mode(from.network_mode)?,
            capacity: from.capacity.unwrap_or(1),
            policies: from.authorization_policies.iter().map(|name| name.as_str().into()).collect(),
            services: services(&from.services)?,
            waypoints: Waypoint::references_in_wire_workload(&from),
            labels: labels(&from.extensions)?,
            name: from.name.into(),
            canonical_name: from.canonical_name.into(),
            canonical_revision: from.canonical_revision.into(),
            workload_name: from.workload_name.into(),
        })
    }
}

fn or<'a>(text: &'a str, default: &'a str) -> &'a str {
    if text.is_empty() { default } else { text }
}

fn tunnel_protocol(value: i32) -> Result<TunnelProtocol, Invalid> {
    match field_parsing::parse_enum("tunnel_protocol", value)? {
        wire::TunnelProtocol::None => Ok(TunnelProtocol::Plain),
        wire::TunnelProtocol::Hbone => Ok(TunnelProtocol::Hbone),
        wire::TunnelProtocol::LegacyIstioMtls => Err(Invalid::LegacyTunnel),
    }
}

fn health(value: i32, extensions: &[wire::Extension]) -> Result<Health, Invalid> {
    let terminates = || extensions.iter().any(|extension| extension.name == ext::TERMINATING);
    Ok(match field_parsing::parse_enum("status", value)? {
        wire::WorkloadStatus::Healthy => Health::Healthy,
        wire::WorkloadStatus::Unhealthy if terminates() => Health::Terminating,
        wire::WorkloadStatus::Unhealthy => Health::Unhealthy,
    })
}

fn network_mode(value: i32) -> Result<NetworkMode, Invalid> {
    Ok(match field_parsing::parse_enum("network_mode", value)? {
        wire::NetworkMode::Standard => NetworkMode::Standard,
        wire::NetworkMode::HostNetwork => NetworkMode::Host,
    })
}

fn services(
    from: &BTreeMap<String, wire::PortList>,
) -> Result<BTreeMap<Arc<str>, Box<[PortMapping]>>, Invalid> {
    let mapping = |port: &wire::Port| {
        let target = (port.target_port > 0).then_some(port.target_port);
        Ok::<_, Invalid>(PortMapping {
            service: field_parsing::parse_port("services.service_port", port.service_port)?,
            target: target
                .map(|target| field_parsing::parse_port("services.target_port", target))
                .transpose()?,
        })
    };
    from.iter()
        .map(|(key, list)| {
            Ok((key.as_str().into(), list.ports.iter().map(mapping).collect::<Result<_, _>>()?))
        })
        .collect()
}

fn labels(extensions: &[wire::Extension]) -> Result<BTreeMap<String, String>, Invalid> {
    let Some(extension) = extensions.iter().find(|extension| extension.name == ext::LABELS) else {
        return Ok(BTreeMap::new());
    };
    let config = extension.config.as_ref().ok_or(Invalid::NoContent)?;
    Ok(field_parsing::unpack_any::<ext::Labels>(config, type_url::LABELS)?.labels)
}
