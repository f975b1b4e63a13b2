//! Which workloads are behind which service, and on which of their ports.
//!
//! Where a service has endpoint slices, they decide, since whoever writes them knows best. Where it has none, its
//! selector does. An endpoint that is no pod becomes a workload of its own.

use std::{
    collections::{BTreeMap, HashMap},
    net::IpAddr,
};

use super::{MeshConfig, World, host, service};
use crate::{
    resource::{
        Endpoint, EndpointSlice, Pod, Service, ServicePort,
        pod::{PortRef, Protocol},
    },
    wire::workload::{Port, PortList},
};

/// By `namespace/hostname` of a service: the ports that a workload serves it on.
pub(super) type Services = BTreeMap<String, PortList>;

/// Who is behind what.
#[derive(Default)]
pub(super) struct Membership<'a> {
    /// By namespace and name of the pod.
    pub pods: HashMap<(&'a str, &'a str), Services>,
    /// Endpoints that are no pods.
    pub others: Vec<Other<'a>>,
}

/// An endpoint that is no pod.
pub(super) struct Other<'a> {
    pub slice: &'a EndpointSlice,
    pub address: IpAddr,
    pub ready: bool,
    pub services: Services,
}

/// Finds out for all services.
pub(super) fn find<'a>(world: &World<'a>, mesh: &MeshConfig) -> Membership<'a> {
    let mut slices: HashMap<(&str, &str), Vec<&'a EndpointSlice>> = HashMap::new();
    for slice in &world.slices {
        if let Some(service) = slice.service_name() {
            slices.entry((&slice.metadata.namespace, service)).or_default().push(slice);
        }
    }
    let by_address = pods_by_address(world);
    let mut membership = Membership::default();
    for service in world.services.iter().copied().filter(|service| !service.is_external_name()) {
        let metadata = &service.metadata;
        let hostname = host::of_service(&metadata.name, &metadata.namespace, mesh);
        let of = Of { service, key: format!("{}/{hostname}", metadata.namespace) };
        match slices.get(&(metadata.namespace.as_str(), metadata.name.as_str())) {
            Some(slices) => {
                for slice in slices {
                    membership.add_slice(&of, slice, world, &by_address);
                }
            }
            None => membership.add_selected(&of, world),
        }
    }
    membership
}

/// Addresses that belong to one pod alone.
fn pods_by_address<'a>(world: &World<'a>) -> HashMap<IpAddr, &'a Pod> {
    let own = world.live_pods().filter(|pod| !pod.spec.host_network);
    own.flat_map(|pod| pod.addresses().into_iter().map(move |address| (address, pod))).collect()
}

/// A service and its key.
struct Of<'a> {
    service: &'a Service,
    key: String,
}

impl<'a> Membership<'a> {
    fn add_selected(&mut self, of: &Of<'a>, world: &World<'a>) {
        let spec = &of.service.spec;
        if spec.selector.is_empty() {
            return;
        }
        for pod in world.live_pods_in(&of.service.metadata.namespace) {
            if spec.selector.iter().all(|(key, value)| pod.metadata.labels.get(key) == Some(value)) {
                self.add_pod(of, pod, ports(of.service, |port| target_on(pod, port)));
            }
        }
    }

    fn add_slice(
        &mut self,
        of: &Of<'a>,
        slice: &'a EndpointSlice,
        world: &World<'a>,
        by_address: &HashMap<IpAddr, &'a Pod>,
    ) {
        for endpoint in &slice.endpoints {
            let ports = || ports(of.service, |port| target_in(slice, &port.name));
            match &endpoint.target_ref {
                Some(target) if target.kind == "Pod" => {
                    // The slice's own namespace, whatever the reference says: a slice may only name its neighbours.
                    let key = (slice.metadata.namespace.as_str(), target.name.as_str());
                    if let Some(pod) = world.pods.get(&key).filter(|pod| !pod.is_terminal()) {
                        self.add_endpoint_pod(of, endpoint, pod, ports());
                    }
                }
                _ => {
                    for address in endpoint.ip_addresses() {
                        match by_address.get(&address) {
                            Some(pod) => self.add_endpoint_pod(of, endpoint, pod, ports()),
                            None => self.add_other(of, slice, endpoint, address, ports()),
                        }
                    }
                }
            }
        }
    }

    /// A pod's readiness is its own, the same for all its services. A slice that holds back a pod that is ready
    /// means this one service, so the pod is no member of it.
    fn add_endpoint_pod(&mut self, of: &Of<'a>, endpoint: &Endpoint, pod: &'a Pod, ports: Vec<Port>) {
        let held_back =
            !endpoint.is_ready() && pod.is_ready() && !of.service.spec.publish_not_ready_addresses;
        if !held_back {
            self.add_pod(of, pod, ports);
        }
    }

    fn add_pod(&mut self, of: &Of<'a>, pod: &'a Pod, ports: Vec<Port>) {
        let key = (pod.metadata.namespace.as_str(), pod.metadata.name.as_str());
        let list = self.pods.entry(key).or_default().entry(of.key.clone()).or_default();
        // A pod of two families is in two slices of the service.
        for port in ports {
            if !list.ports.contains(&port) {
                list.ports.push(port);
            }
        }
    }

    fn add_other(
        &mut self,
        of: &Of<'a>,
        slice: &'a EndpointSlice,
        endpoint: &Endpoint,
        address: IpAddr,
        ports: Vec<Port>,
    ) {
        let services = Services::from([(of.key.clone(), PortList { ports })]);
        self.others.push(Other { slice, address, ready: endpoint.is_ready(), services });
    }
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
