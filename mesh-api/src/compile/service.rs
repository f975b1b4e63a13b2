//! Services as agents see them.

use prost::Message;

use super::destination_rules::ResolvedRules;
use super::gateway_routes::{ResolvedGatewayRoutes, is_for_all};
use super::traffic_policies::encoded_extension;
use super::virtual_services::ResolvedRoutes;
use super::{Condition, ConditionEffect, MeshConfig, octets, service_host};
use crate::{
    manifest::Kind,
    resource::{
        InternalTrafficPolicy, IpFamily, Service, ServicePort, SessionAffinity, TrafficDistribution,
        pod::{PortRef, Protocol},
    },
    wire::workload::{
        self as wire, AppProtocol, IpFamilies, LoadBalancing,
        load_balancing::{HealthPolicy, Mode, Scope},
    },
    wire::{ext, type_url},
};

/// A service; nothing if it stands for a name elsewhere.
pub(super) fn compile_service(
    service: &Service,
    mesh: &MeshConfig,
    traffic: &ResolvedRules,
    routes: (&ResolvedGatewayRoutes, &ResolvedRoutes),
) -> Option<wire::Service> {
    (!service.is_external_name()).then(|| one(service, mesh, traffic, routes))
}

/// Where requests to a service go: routes of the Gateway API, and virtual services for whom these leave.
fn http_routes(
    service: &Service,
    hostname: &str,
    (gateway_routes, routes): (&ResolvedGatewayRoutes, &ResolvedRoutes),
) -> impl Iterator<Item = wire::Extension> {
    let first = gateway_routes.tables(&service.metadata).to_vec();
    let rest = if first.iter().any(is_for_all) { Vec::new() } else { routes.tables(hostname) };
    let all = [(ext::GATEWAY_ROUTES, first), (ext::HTTP_ROUTES, rest)];
    all.into_iter().filter(|(_, tables)| !tables.is_empty()).map(|(name, tables)| {
        encoded_extension(name, type_url::HTTP_ROUTES, ext::HttpRoutes { tables }.encode_to_vec())
    })
}

/// What of a service has no effect: addresses that are not the mesh's.
pub(super) fn bypass_conditions(service: &Service) -> Vec<Condition> {
    let outside = service.outside().into_iter();
    let condition = |(field, addresses): (&str, Vec<&str>)| {
        let words = bypass_reason_and_fix(&addresses.join(", "), "let pods use the Service's name");
        Condition::new(Kind::Service, &service.metadata, field, ConditionEffect::Ignored, words)
    };
    outside.map(condition).collect()
}

/// What becomes of connections to a place, and what to do instead.
pub(super) fn bypass_reason_and_fix(place: &str, fix: &'static str) -> (String, &'static str) {
    let reason = format!(
        "pods of the mesh that connect to {place} go past the mesh, in plaintext, and are refused where the server is STRICT"
    );
    (reason, fix)
}

fn one(
    service: &Service,
    mesh: &MeshConfig,
    traffic: &ResolvedRules,
    routes: (&ResolvedGatewayRoutes, &ResolvedRoutes),
) -> wire::Service {
    let metadata = &service.metadata;
    let hostname = service_host::service_hostname(&metadata.name, &metadata.namespace, mesh);
    let addresses = if service.is_headless() { Vec::new() } else { service.cluster_ips() };
    let network_address = |address| wire::NetworkAddress {
        network: mesh.network.clone(),
        address: octets(address),
        length: None,
    };
    wire::Service {
        name: metadata.name.clone(),
        namespace: metadata.namespace.clone(),
        extensions: traffic
            .traffic_policies_extension(&metadata.namespace, &hostname, mesh)
            .into_iter()
            .chain(http_routes(service, &hostname, routes))
            .chain(session_affinity(service))
            .collect(),
        hostname,
        addresses: addresses.into_iter().map(network_address).collect(),
        ports: service.spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp).map(port).collect(),
        load_balancing: load_balancing(service),
        ip_families: ip_families(&service.spec.ip_families).into(),
        canonical: true,
        ..wire::Service::default()
    }
}

fn port(port: &ServicePort) -> wire::Port {
    let target = match &port.target_port {
        None => port.port,
        Some(PortRef::Number(number)) => *number,
        // Zero: every workload has its own number for the name.
        Some(PortRef::Name(_)) => 0,
    };
    wire::Port {
        service_port: port.port.into(),
        target_port: target.into(),
        app_protocol: app_protocol(port).into(),
    }
}

/// What a port speaks: `appProtocol`, else the port's name up to the first dash.
pub(super) fn app_protocol(port: &ServicePort) -> AppProtocol {
    let from_name = || port.name.split('-').next().unwrap_or_default();
    let text = if port.app_protocol.is_empty() { from_name() } else { &port.app_protocol };
    match text.to_ascii_lowercase().as_str() {
        "http" | "kubernetes.io/ws" => AppProtocol::Http11,
        "http2" | "kubernetes.io/h2c" => AppProtocol::Http2,
        "grpc" => AppProtocol::Grpc,
        "https" | "tls" | "kubernetes.io/wss" => AppProtocol::Tls,
        "tcp" => AppProtocol::Tcp,
        _ => AppProtocol::Unknown,
    }
}

fn ip_families(families: &[IpFamily]) -> IpFamilies {
    match (families.contains(&IpFamily::IPv4), families.contains(&IpFamily::IPv6)) {
        (true, true) => IpFamilies::Dual,
        (true, false) => IpFamilies::Ipv4Only,
        (false, true) => IpFamilies::Ipv6Only,
        (false, false) => IpFamilies::Automatic,
    }
}

fn session_affinity(service: &Service) -> Option<wire::Extension> {
    let spec = &service.spec;
    (spec.session_affinity == SessionAffinity::ClientIP).then(|| {
        let seconds = spec.session_affinity_config.client_ip.timeout_seconds;
        let timeout = seconds.map(|seconds| prost_types::Duration { seconds: seconds.into(), nanos: 0 });
        let value = ext::SessionAffinity { timeout }.encode_to_vec();
        encoded_extension(ext::SESSION_AFFINITY, type_url::SESSION_AFFINITY, value)
    })
}

fn load_balancing(service: &Service) -> Option<LoadBalancing> {
    let spec = &service.spec;
    let (mode, preference): (_, &[Scope]) = match (spec.internal_traffic_policy, spec.traffic_distribution) {
        (InternalTrafficPolicy::Local, _) => (Mode::Strict, &[Scope::Node]),
        (_, Some(TrafficDistribution::PreferClose | TrafficDistribution::PreferSameZone)) => {
            (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone])
        }
        (_, Some(TrafficDistribution::PreferSameNode)) => {
            (Mode::Failover, &[Scope::Network, Scope::Region, Scope::Zone, Scope::Subzone, Scope::Node])
        }
        (InternalTrafficPolicy::Cluster, None) => (Mode::UnspecifiedMode, &[]),
    };
    let health =
        if spec.publish_not_ready_addresses { HealthPolicy::AllowAll } else { HealthPolicy::OnlyHealthy };
    let says_something = mode != Mode::UnspecifiedMode || health != HealthPolicy::OnlyHealthy;
    says_something.then(|| LoadBalancing {
        routing_preference: preference.iter().map(|scope| i32::from(*scope)).collect(),
        mode: mode.into(),
        health_policy: health.into(),
    })
}
