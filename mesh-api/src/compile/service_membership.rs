//! Which workloads are behind which service, and on which of their ports.
//!
//! Where a service has endpoint slices, they decide, since whoever writes them knows best. Where it has none,
//! its selector does. An endpoint that is no pod becomes a workload of its own.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::object_index::{pod_name_of_endpoint, service_name_of_slice};
use super::object_store::{NamespacedName, ObjectStore, namespaced_name};
use super::{MeshConfig, service, service_host};
use crate::{
    resource::{
        Endpoint, EndpointSlice, Pod, Service, ServicePort,
        pod::{PortRef, Protocol},
    },
    wire::workload::{Port, PortList},
};

/// By `namespace/hostname` of a service: the ports that a workload serves it on.
pub(super) type PortsByService = BTreeMap<String, PortList>;

/// An endpoint that is no pod.
pub(super) struct NonPodEndpoint<'a> {
    pub slice: &'a EndpointSlice,
    pub address: IpAddr,
    pub ready: bool,
    /// See [`Endpoint::is_last_resort`].
    pub terminating: bool,
    pub services: PortsByService,
}

/// The services that a live pod is behind.
pub(super) fn services_of_pod(objects: &ObjectStore, mesh: &MeshConfig, pod: &Pod) -> PortsByService {
    let mut services = PortsByService::new();
    for service in objects.index.services_selecting(&pod.metadata) {
        if !service.is_external_name() && !objects.index.has_slices(&namespaced_name(&service.metadata)) {
            add(&mut services, key(service, mesh), ports(service, |port| target_on(pod, port)));
        }
    }
    for slice in slices_of(objects, pod) {
        let Some(service) = service_of_slice(objects, slice) else { continue };
        for endpoint in slice.endpoints.iter().filter(|endpoint| means(objects, endpoint, pod)) {
            if !is_held_back(service, endpoint, pod) {
                add(&mut services, key(service, mesh), ports(service, |port| target_in(slice, &port.name)));
            }
        }
    }
    services
}

/// The endpoints of a slice that are no pods.
pub(super) fn non_pod_endpoints_of_slice<'a>(
    objects: &ObjectStore,
    mesh: &MeshConfig,
    slice: &'a EndpointSlice,
) -> Vec<NonPodEndpoint<'a>> {
    let Some(service) = service_of_slice(objects, slice) else { return Vec::new() };
    let unnamed = slice.endpoints.iter().filter(|endpoint| pod_name_of_endpoint(endpoint).is_none());
    let addresses = unnamed.flat_map(|it| it.ip_addresses().into_iter().map(move |address| (it, address)));
    let others = addresses.filter(|(_, address)| objects.pod_with_address(*address).is_none());
    let other = |(endpoint, address): (&Endpoint, IpAddr)| {
        let ports = ports(service, |port| target_in(slice, &port.name));
        let services = PortsByService::from([(key(service, mesh), PortList { ports })]);
        let (ready, terminating) = (endpoint.is_ready(), endpoint.is_last_resort());
        NonPodEndpoint { slice, address, ready, terminating, services }
    };
    others.map(other).collect()
}

/// The slices that have a pod, each once, the oldest first.
fn slices_of<'a>(objects: &'a ObjectStore, pod: &Pod) -> Vec<&'a EndpointSlice> {
    let mut slices: Vec<_> = objects.index.slices_naming_pod(&pod.metadata).collect();
    if !pod.spec.host_network {
        slices.extend(
            pod.addresses().into_iter().flat_map(|address| objects.index.slices_with_address(address)),
        );
    }
    slices.sort_by(|a, b| a.metadata.age_key().cmp(&b.metadata.age_key()));
    slices.dedup_by(|a, b| std::ptr::eq(*a, *b));
    slices
}

/// The service of a slice, unless it stands for a name elsewhere.
fn service_of_slice<'a>(objects: &'a ObjectStore, slice: &EndpointSlice) -> Option<&'a Service> {
    objects.service(&service_name_of_slice(slice)?).filter(|service| !service.is_external_name())
}

/// Whether an endpoint is the pod: named, in the slice's own namespace whatever the reference says, or by an
/// address.
fn means(objects: &ObjectStore, endpoint: &Endpoint, pod: &Pod) -> bool {
    match pod_name_of_endpoint(endpoint) {
        Some(name) => name == pod.metadata.name,
        None => endpoint.ip_addresses().into_iter().any(|address| {
            let owner = objects.pod_with_address(address).map(|owner| &owner.metadata);
            owner.is_some_and(|owner| {
                owner.namespace == pod.metadata.namespace && owner.name == pod.metadata.name
            })
        }),
    }
}

/// A pod's readiness is its own, the same for all its services. A slice that holds back a pod that is ready
/// means this one service, so the pod is no member of it. One that is about to end is held back from all of
/// them, and serving still.
fn is_held_back(service: &Service, endpoint: &Endpoint, pod: &Pod) -> bool {
    !endpoint.is_serving() && pod.is_ready() && !service.spec.publish_not_ready_addresses
}

fn add(services: &mut PortsByService, key: String, ports: Vec<Port>) {
    let list = services.entry(key).or_default();
    // A pod of two families is in two slices of the service.
    for port in ports {
        if !list.ports.contains(&port) {
            list.ports.push(port);
        }
    }
}

fn key(service: &Service, mesh: &MeshConfig) -> String {
    service_key(&namespaced_name(&service.metadata), mesh)
}

/// `namespace/hostname` of a service.
pub(super) fn service_key((namespace, name): &NamespacedName, mesh: &MeshConfig) -> String {
    format!("{namespace}/{}", service_host::service_hostname(name, namespace, mesh))
}

/// The service's TCP ports, each with what `target` gives; ports without a target are not served.
fn ports(service: &Service, target: impl Fn(&ServicePort) -> Option<u16>) -> Vec<Port> {
    let tcp = service.spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    tcp.filter_map(|port| {
        Some(Port {
            service_port: port.port.into(),
            target_port: target(port)?.into(),
            app_protocol: service::app_protocol(port).into(),
        })
    })
    .collect()
}

/// The number that a service's port has on a pod.
fn target_on(pod: &Pod, port: &ServicePort) -> Option<u16> {
    match &port.target_port {
        None => Some(port.port),
        Some(PortRef::Number(number)) => Some(*number),
        Some(PortRef::Name(name)) => pod.named_port(name),
    }
}

/// The number that a service's port has on the endpoints of a slice.
fn target_in(slice: &EndpointSlice, name: &str) -> Option<u16> {
    let port = slice.ports.iter().find(|port| port.name == name && port.protocol == Protocol::Tcp);
    port.and_then(|port| port.port)
}
