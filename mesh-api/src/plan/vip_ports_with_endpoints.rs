//! The ports of a service's virtual address that have an endpoint, as seen from a node. Its kernel refuses
//! connections to others at once, as it would without a mesh.

use std::collections::{BTreeSet, HashSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::endpoints;
use super::http_routes::HttpRoutes;
use super::locality_preference::LocalityPreference;
use super::service::{Service, Visibility};
use super::snapshot::Snapshot;
use super::traffic_policy::{ClientTrafficPolicy, LoadBalancer};
use super::workload::Workload;
use crate::wire::workload::load_balancing::Scope;

/// Which ports of an address of the mesh have an endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum KnownServedPorts {
    /// Only trying tells: it is a workload's, or differs between clients.
    Unknown,
    /// It is a service's, and only these of its ports have endpoints, or routes of some clients' HTTP
    /// requests, which decide where these go.
    Only(BTreeSet<u16>),
}

impl Snapshot {
    /// Returns the ports of an address that have an endpoint for the pods of a node; none if the mesh does
    /// not know it.
    pub fn known_served_ports(&self, ip: IpAddr, node: &str) -> Option<KnownServedPorts> {
        let ip = ip.to_canonical();
        let mut services = self.index.vips.services_at(ip);
        match (services.next(), services.next(), self.index.workload_by_address(ip)) {
            (None, _, None) => None,
            (Some(service), None, None) => Some(self.ports_with_endpoints_of(&service, node)),
            _ => Some(KnownServedPorts::Unknown),
        }
    }

    fn ports_with_endpoints_of(&self, service: &Service, node: &str) -> KnownServedPorts {
        let passes = ClientTrafficPolicy::policies_outside_subsets(&service.traffic)
            .any(|it| it.lb == LoadBalancer::Passthrough);
        if passes
            || service.preference == LocalityPreference::Passthrough
            || service.visibility != Visibility::Public
        {
            return KnownServedPorts::Unknown;
        }
        let entry = self.service_with_workloads(service);
        let somebody = |port: &u16| {
            entry.is_some_and(|entry| entry.has_workload_where(|member| takes(service, *port, member, node)))
        };
        let is_served = |port: &u16| HttpRoutes::may_be_routed(service, *port) || somebody(port);
        KnownServedPorts::Only(service.ports.iter().map(|port| port.port).filter(is_served).collect())
    }

    /// Returns addresses whose [`Self::known_served_ports`] may differ from that in an older state. Parts
    /// that both states share are skipped.
    pub fn addresses_with_changed_ports_since(&self, older: &Self) -> HashSet<IpAddr> {
        let (come, gone) = self.added_and_removed_addresses_since(older);
        let entries = self.index.services.changes_since(&older.index.services, Arc::ptr_eq);
        let services = entries.come.into_iter().chain(entries.gone).filter_map(|it| it.service.as_ref());
        let addresses = services.flat_map(|compact| compact.addresses.iter().map(IpNet::addr));
        come.into_iter().chain(gone).chain(addresses).collect()
    }
}

/// Whether a workload accepts connections to a port of a service from some pod of a node.
fn takes(service: &Service, port: u16, member: &Workload, node: &str) -> bool {
    let in_place = match &service.preference {
        // The proxy checks whether other scopes are shared.
        LocalityPreference::Strict(scopes) if scopes.contains(&Scope::Node) => *member.locality.node == *node,
        _ => true,
    };
    in_place && endpoints::ineligible_reason(service, port, member).is_none()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::fixture::{
        as_web_member, pod, pod_resource, service_resource, service_with_http_routes,
        service_with_traffic_policies, snapshot, store, web,
    };
    use crate::wire::workload::load_balancing::Mode;
    use crate::wire::workload::{self as wire, LoadBalancing};
    use crate::wire::{ext, type_url};

    const VIP: &str = "10.96.0.1";

    fn at(snapshot: &Snapshot, ip: &str) -> Option<KnownServedPorts> {
        snapshot.known_served_ports(ip.parse().unwrap(), "node1")
    }

    fn ports(ports: &[u16]) -> KnownServedPorts {
        KnownServedPorts::Only(ports.iter().copied().collect())
    }

    /// What there is at the service, given it and its pods.
    fn of(service: wire::Service, pods: Vec<wire::Workload>) -> Option<KnownServedPorts> {
        at(&snapshot(pods.into_iter().map(pod_resource).chain([service_resource(service)]).collect()), VIP)
    }

    fn local(service: wire::Service) -> wire::Service {
        let scopes = vec![Scope::Node.into()];
        let balancing = LoadBalancing {
            routing_preference: scopes,
            mode: Mode::Strict.into(),
            ..LoadBalancing::default()
        };
        wire::Service { load_balancing: Some(balancing), ..service }
    }

    #[test]
    fn services_have_the_ports_behind_which_somebody_is() {
        let ready = || as_web_member(pod("web", &["10.244.1.1"]), 8080);
        let unready = || wire::Workload {
            status: wire::WorkloadStatus::Unhealthy.into(),
            ..as_web_member(pod("web", &["10.244.1.1"]), 80)
        };
        let far = || as_web_member(pod("far", &["10.244.2.1"]), 8080);
        let elsewhere = || wire::Workload { node: "node2".into(), ..far() };
        assert_eq!(of(web(&[VIP]), vec![]), Some(ports(&[])), "no workload at all");
        assert_eq!(of(web(&[VIP]), vec![unready()]), Some(ports(&[])), "none that is ready");
        assert_eq!(
            of(web(&[VIP]), vec![pod("web", &["10.244.1.1"])]),
            Some(ports(&[])),
            "none with the port"
        );
        assert_eq!(of(web(&[VIP]), vec![ready()]), Some(ports(&[80])));
        assert_eq!(of(web(&[VIP]), vec![elsewhere()]), Some(ports(&[80])));
        assert_eq!(of(local(web(&[VIP])), vec![elsewhere()]), Some(ports(&[])), "none on this node");
        assert_eq!(of(local(web(&[VIP])), vec![ready(), elsewhere()]), Some(ports(&[80])));
    }

    #[test]
    fn routes_may_lead_to_endpoints_from_the_ports_that_they_are_for() {
        let port = |service_port, app_protocol| wire::Port { service_port, target_port: 0, app_protocol };
        let of_http = wire::AppProtocol::Http11.into();
        let routed = |ports: &[u32]| {
            let action = Some(ext::http_route::Action::Forward(ext::HttpForward::default()));
            let routes = vec![ext::HttpRoute { action, ..ext::HttpRoute::default() }];
            let table =
                ext::HttpRouteTable { ports: ports.to_vec(), routes, ..ext::HttpRouteTable::default() };
            let ports = vec![port(80, of_http), port(81, of_http), port(82, wire::AppProtocol::Tcp.into())];
            service_with_http_routes(wire::Service { ports, ..web(&[VIP]) }, vec![table])
        };
        assert_eq!(of(routed(&[]), vec![]), Some(ports(&[80, 81])));
        assert_eq!(of(routed(&[81]), vec![]), Some(ports(&[81])));
        assert_eq!(
            of(routed(&[81]), vec![as_web_member(pod("web", &["10.244.1.1"]), 8080)]),
            Some(ports(&[80, 81]))
        );
    }

    #[test]
    fn what_clients_may_mean_differently_has_to_be_tried() {
        let snapshot_of = |services: Vec<wire::Service>| {
            snapshot(
                services
                    .into_iter()
                    .map(service_resource)
                    .chain([pod_resource(pod("db", &["10.244.1.2"]))])
                    .collect(),
            )
        };
        assert_eq!(at(&snapshot_of(vec![]), "192.0.2.1"), None);
        assert_eq!(at(&snapshot_of(vec![]), "10.244.1.2"), Some(KnownServedPorts::Unknown), "a pod");
        assert_eq!(
            at(&snapshot_of(vec![web(&["10.244.1.2"])]), "10.244.1.2"),
            Some(KnownServedPorts::Unknown),
            "both"
        );
        let other = wire::Service { hostname: "other.shop.svc.cluster.local".into(), ..web(&[VIP]) };
        assert_eq!(
            at(&snapshot_of(vec![web(&[VIP]), other]), VIP),
            Some(KnownServedPorts::Unknown),
            "two services"
        );
        let hidden = wire::Service { visibility: wire::service::Visibility::Namespace.into(), ..web(&[VIP]) };
        assert_eq!(at(&snapshot_of(vec![hidden]), VIP), Some(KnownServedPorts::Unknown));
        let passes = LoadBalancing { mode: Mode::Passthrough.into(), ..LoadBalancing::default() };
        let passing = wire::Service { load_balancing: Some(passes), ..web(&[VIP]) };
        assert_eq!(at(&snapshot_of(vec![passing]), VIP), Some(KnownServedPorts::Unknown));
        let lb = ext::PortPolicy { lb: ext::LoadBalancer::Passthrough.into(), ..ext::PortPolicy::default() };
        let policy = ext::TrafficPolicy { default: Some(lb), ..ext::TrafficPolicy::default() };
        let ruled = service_with_traffic_policies(web(&[VIP]), vec![policy]);
        assert_eq!(at(&snapshot_of(vec![ruled]), VIP), Some(KnownServedPorts::Unknown));
    }

    #[test]
    fn a_change_touches_the_services_that_it_is_about() {
        let mut store =
            store(vec![service_resource(web(&[VIP])), pod_resource(pod("db", &["10.244.1.2"]))], &[]);
        let before = store.snapshot();
        assert_eq!(at(&before, VIP), Some(ports(&[])));
        let ready = as_web_member(pod("web", &["10.244.1.1"]), 8080);
        store.apply_response(type_url::ADDRESS, vec![pod_resource(ready)], vec![]);
        let after = store.snapshot();
        let touched: BTreeSet<_> = after.addresses_with_changed_ports_since(&before).into_iter().collect();
        let expected: [IpAddr; 2] = ["10.96.0.1".parse().unwrap(), "10.244.1.1".parse().unwrap()];
        assert_eq!(touched, expected.into(), "the service, and the pod that came");
        assert_eq!(at(&after, VIP), Some(ports(&[80])));
        assert_eq!(after.addresses_with_changed_ports_since(&after), HashSet::new());
    }
}
