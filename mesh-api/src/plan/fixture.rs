//! What the tests of this module are made of: resources as a control plane would send them.

use std::net::IpAddr;

use prost::Message;
use prost_types::Any;

use super::{Snapshot, Store};
use crate::wire::security::Authorization;
use crate::wire::workload::address::Type;
use crate::wire::workload::{
    Address, Extension, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload,
};
use crate::wire::xds::Resource;
use crate::wire::{ext, type_url};

/// A healthy pod `shop/<name>` on `node1`, reached over HBONE, with an account of its own name.
pub(super) fn pod(name: &str, ips: &[&str]) -> Workload {
    Workload {
        uid: format!("cluster//Pod/shop/{name}"),
        name: name.into(),
        namespace: "shop".into(),
        service_account: name.into(),
        addresses: ips.iter().map(|ip| address_bytes(ip)).collect(),
        node: "node1".into(),
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        ..Workload::default()
    }
}

/// Makes a pod a member of the service `shop/web`, with the service's port 80 at one of its own (0: named).
pub(super) fn as_web_member(mut pod: Workload, target_port: u32) -> Workload {
    let ports = PortList { ports: vec![Port { service_port: 80, target_port, app_protocol: 0 }] };
    pod.services.insert(WEB_KEY.into(), ports);
    pod
}

/// Key of the service that [`web`] makes.
pub(super) const WEB_KEY: &str = "shop/web.shop.svc.cluster.local";

/// The service `shop/web` with port 80, whose target is named, and these virtual addresses.
pub(super) fn web(vips: &[&str]) -> Service {
    service("shop", "web", vips)
}

/// A service like [`web`] of any namespace and name.
pub(super) fn service(namespace: &str, name: &str, vips: &[&str]) -> Service {
    Service {
        name: name.into(),
        namespace: namespace.into(),
        hostname: format!("{name}.{namespace}.svc.cluster.local"),
        addresses: vips.iter().map(|vip| vip_of(vip)).collect(),
        ports: vec![Port { service_port: 80, target_port: 0, app_protocol: 0 }],
        canonical: true,
        ..Service::default()
    }
}

/// Gives a service traffic policies.
pub(super) fn service_with_traffic_policies(
    mut service: Service,
    policies: Vec<ext::TrafficPolicy>,
) -> Service {
    let policies = ext::TrafficPolicies { policies };
    service.extensions.push(Extension {
        name: ext::TRAFFIC_POLICIES.into(),
        config: Some(any(type_url::TRAFFIC_POLICIES, &policies)),
    });
    service
}

/// A service with routes.
pub(super) fn service_with_http_routes(mut service: Service, tables: Vec<ext::HttpRouteTable>) -> Service {
    let config = any(type_url::HTTP_ROUTES, &ext::HttpRoutes { tables });
    service.extensions.push(Extension { name: ext::HTTP_ROUTES.into(), config: Some(config) });
    service
}

pub(super) fn pod_resource(pod: Workload) -> Resource {
    let name = pod.uid.clone();
    resource(type_url::ADDRESS, &name, &Address { r#type: Some(Type::Workload(pod)) })
}

pub(super) fn service_resource(service: Service) -> Resource {
    let name = format!("{}/{}", service.namespace, service.hostname);
    resource(type_url::ADDRESS, &name, &Address { r#type: Some(Type::Service(service)) })
}

pub(super) fn policy_resource(policy: &Authorization) -> Resource {
    resource(type_url::AUTHORIZATION, &format!("{}/{}", policy.namespace, policy.name), policy)
}

/// A store that took everything.
pub(super) fn store(addresses: Vec<Resource>, policies: &[Authorization]) -> Store {
    let mut store = Store::default();
    assert_eq!(store.apply_response(type_url::ADDRESS, addresses, Vec::new()), []);
    let policies = policies.iter().map(policy_resource).collect();
    assert_eq!(store.apply_response(type_url::AUTHORIZATION, policies, Vec::new()), []);
    store
}

/// A snapshot of such a store.
pub(super) fn snapshot(addresses: Vec<Resource>) -> Snapshot {
    store(addresses, &[]).snapshot()
}

pub(super) fn resource(type_url: &str, name: &str, content: &impl Message) -> Resource {
    Resource {
        version: "1".into(),
        resource: Some(any(type_url, content)),
        name: name.into(),
        aliases: Vec::new(),
    }
}

pub(super) fn address_bytes(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

fn vip_of(text: &str) -> NetworkAddress {
    let (ip, length) = text.split_once('/').map_or((text, None), |(ip, length)| (ip, Some(length)));
    NetworkAddress {
        network: String::new(),
        address: address_bytes(ip),
        length: length.map(|length| length.parse().unwrap()),
    }
}

fn any(type_url: &str, content: &impl Message) -> Any {
    Any { type_url: type_url.into(), value: content.encode_to_vec() }
}
