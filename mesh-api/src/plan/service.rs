//! A service: a name and virtual addresses for a set of workloads.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ipnet::IpNet;

use super::field_parsing::{self, Invalid};
use super::http_routes::HttpRouteTable;
use super::locality_preference::LocalityPreference;
use super::traffic_policy::{self, ClientTrafficPolicy, LoadBalancer, PortPolicy};
use super::waypoint_reference::Waypoint;
use crate::identity::SpiffeId;
use crate::wire::workload as wire;
pub use crate::wire::workload::AppProtocol;
use crate::wire::workload::load_balancing::HealthPolicy;
use crate::wire::{ext, type_url};

/// Default of Kubernetes' `sessionAffinityConfig.clientIP.timeoutSeconds`.
const AFFINITY_TIMEOUT: Duration = Duration::from_hours(3);

/// A service, checked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    /// `namespace/hostname`, unique.
    pub key: Arc<str>,
    /// Name of the object.
    pub name: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Host name, fully qualified and in lower case; or a wildcard (`*.example.org`).
    pub hostname: Arc<str>,
    /// Virtual addresses; none for a headless service.
    pub addresses: Box<[IpNet]>,
    /// Ports.
    pub ports: Box<[ServicePort]>,
    /// Identities that its servers may have besides their own.
    pub identities: Box<[SpiffeId]>,
    /// How a client prefers endpoints by locality.
    pub preference: LocalityPreference,
    /// Session affinity: how long a client that makes no connections keeps its endpoint (Kubernetes'
    /// `sessionAffinity: ClientIP`); none without affinity.
    pub affinity: Option<Duration>,
    /// Whether endpoints that are not ready count too.
    pub unready_too: bool,
    /// Address families that it is served on.
    pub families: IpFamilies,
    /// Whether it is preferred where several namespaces define the host.
    pub canonical: bool,
    /// Who may resolve it.
    pub visibility: Visibility,
    /// Waypoints that connections to it should go through.
    pub waypoints: Box<[Waypoint]>,
    /// Traffic policies for its clients, most specific first.
    pub traffic: Box<[ClientTrafficPolicy]>,
    /// Routes of its clients' HTTP requests; the first table that covers a client counts.
    pub http_routes: Box<[Arc<HttpRouteTable>]>,
}

/// One port of a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ServicePort {
    /// Port of the service.
    pub port: u16,
    /// Port of its workloads; none if it is named, so that each workload tells its own.
    pub target: Option<u16>,
    /// The application's protocol.
    pub protocol: AppProtocol,
}

impl AppProtocol {
    /// Whether connections may be of HTTP in the clear: declared so, or nothing is declared.
    pub fn may_be_http(self) -> bool {
        matches!(self, Self::Http11 | Self::Http2 | Self::Grpc | Self::Unknown)
    }
}

/// Address families that a service is served on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum IpFamilies {
    /// Any.
    Any,
    /// IPv4 only.
    V4,
    /// IPv6 only.
    V6,
}

impl IpFamilies {
    /// Whether an address is of one of these families.
    pub fn allows(self, address: IpAddr) -> bool {
        match self {
            Self::Any => true,
            Self::V4 => address.is_ipv4(),
            Self::V6 => address.is_ipv6(),
        }
    }
}

/// Who may resolve a service.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Visibility {
    /// Everybody.
    Public,
    /// Its own namespace.
    Namespace,
}

impl Service {
    /// Returns the service's port with that number.
    pub fn port(&self, port: u16) -> Option<&ServicePort> {
        self.ports.iter().find(|candidate| candidate.port == port)
    }

    /// Returns how long a client keeps its endpoint under a policy, if it keeps one. A load balancer of a
    /// `DestinationRule` beats the service's affinity.
    pub fn affinity_timeout(&self, policy: &PortPolicy) -> Option<Duration> {
        self.affinity.filter(|_| policy.lb == LoadBalancer::Unspecified)
    }

    /// Whether clients in a namespace may resolve it.
    pub fn is_visible_to(&self, namespace: &str) -> bool {
        self.visibility == Visibility::Public || &*self.namespace == namespace
    }
}

impl TryFrom<wire::Service> for Service {
    type Error = Invalid;

    fn try_from(from: wire::Service) -> Result<Self, Invalid> {
        let namespace = field_parsing::require_non_empty("namespace", &from.namespace)?;
        let hostname = field_parsing::require_non_empty("hostname", &from.hostname)?;
        let addresses = from
            .addresses
            .iter()
            .map(|vip| field_parsing::parse_network("addresses", &vip.address, vip.length));
        let waypoints = Waypoint::references_in_wire_service(&from);
        let balancing = from.load_balancing.unwrap_or_default();
        let health: HealthPolicy =
            field_parsing::parse_enum("load_balancing.health_policy", balancing.health_policy)?;
        Ok(Self {
            key: format!("{namespace}/{hostname}").into(),
            name: from.name.into(),
            namespace: namespace.into(),
            hostname: hostname.to_ascii_lowercase().into(),
            addresses: addresses.collect::<Result<_, _>>()?,
            ports: from.ports.iter().map(ServicePort::try_from).collect::<Result<_, _>>()?,
            // Other names are no identity of a workload, so leaving them out only ever accepts less.
            identities: from.subject_alt_names.iter().filter_map(|name| name.parse().ok()).collect(),
            preference: LocalityPreference::of(&balancing)?,
            affinity: affinity(&from.extensions)?,
            unready_too: health == HealthPolicy::AllowAll,
            families: families(from.ip_families)?,
            canonical: from.canonical,
            visibility: visibility(from.visibility)?,
            waypoints,
            traffic: ClientTrafficPolicy::decode_all_from_extensions(&from.extensions)?,
            http_routes: HttpRouteTable::decode_all_from_extensions(&from.extensions)?,
        })
    }
}

impl TryFrom<&wire::Port> for ServicePort {
    type Error = Invalid;

    fn try_from(from: &wire::Port) -> Result<Self, Invalid> {
        let target = (from.target_port > 0).then_some(from.target_port);
        Ok(Self {
            port: field_parsing::parse_port("ports.service_port", from.service_port)?,
            target: target
                .map(|target| field_parsing::parse_port("ports.target_port", target))
                .transpose()?,
            // A protocol that is not known yet is still bytes over TCP.
            protocol: AppProtocol::try_from(from.app_protocol).unwrap_or_default(),
        })
    }
}

fn families(value: i32) -> Result<IpFamilies, Invalid> {
    Ok(match field_parsing::parse_enum("ip_families", value)? {
        wire::IpFamilies::Automatic | wire::IpFamilies::Dual => IpFamilies::Any,
        wire::IpFamilies::Ipv4Only => IpFamilies::V4,
        wire::IpFamilies::Ipv6Only => IpFamilies::V6,
    })
}

fn affinity(extensions: &[wire::Extension]) -> Result<Option<Duration>, Invalid> {
    let Some(extension) = extensions.iter().find(|extension| extension.name == ext::SESSION_AFFINITY) else {
        return Ok(None);
    };
    let config = extension.config.as_ref().ok_or(Invalid::NoContent)?;
    let affinity: ext::SessionAffinity = field_parsing::unpack_any(config, type_url::SESSION_AFFINITY)?;
    Ok(Some(
        traffic_policy::parse_duration_zero_as_none("timeout", affinity.timeout)?.unwrap_or(AFFINITY_TIMEOUT),
    ))
}

fn visibility(value: i32) -> Result<Visibility, Invalid> {
    Ok(match field_parsing::parse_enum("visibility", value)? {
        wire::service::Visibility::Public => Visibility::Public,
        wire::service::Visibility::Namespace => Visibility::Namespace,
    })
}
