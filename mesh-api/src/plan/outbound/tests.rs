use super::*;
use crate::plan::fixture::{
    address_bytes, as_web_member, pod, pod_resource, service, service_resource,
    service_with_traffic_policies, snapshot, web,
};
use crate::plan::{EndpointId, Store, WaypointHandling};
use crate::wire::workload as wire;
use crate::wire::workload::gateway_address;
use crate::wire::workload::load_balancing::{HealthPolicy, Mode, Scope};
use crate::wire::workload::{LoadBalancing, Port};
use crate::wire::xds::Resource;
use crate::wire::{ext, type_url};

const VIP: &str = "10.96.0.1";
const VIP6: &str = "fd00:96::1";

/// A client pod, at no locality but on `node1`.
fn client() -> wire::Workload {
    pod("client", &["10.244.1.9"])
}

fn goes_to(source: wire::Workload, mut resources: Vec<Resource>, destination: &str) -> Destination {
    let uid = source.uid.clone();
    resources.push(pod_resource(source));
    let snapshot = snapshot(resources);
    destination_of(&snapshot, &snapshot.workload(&uid).unwrap(), destination.parse().unwrap())
}

/// The endpoints' addresses, or where it goes instead.
fn addresses(found: &Destination) -> Vec<String> {
    match found {
        Destination::Service { endpoints, .. } => {
            endpoints.iter().map(|endpoint| endpoint.address.to_string()).collect()
        }
        other => vec![other.to_string()],
    }
}

/// Asks for `web` at port 80 as `client`, given the service and its pods.
fn ask(service: wire::Service, pods: Vec<wire::Workload>, vip: &str) -> Destination {
    let resources = pods.into_iter().map(pod_resource).chain([service_resource(service)]).collect();
    goes_to(client(), resources, &SocketAddr::new(vip.parse().unwrap(), 80).to_string())
}

fn in_zone(mut pod: wire::Workload, region: &str, zone: &str, node: &str) -> wire::Workload {
    pod.locality = Some(wire::Locality { region: region.into(), zone: zone.into(), subzone: String::new() });
    pod.node = node.into();
    pod
}

#[test]
fn unknown_addresses_pass_through() {
    for destination in ["192.0.2.1:80", "[2001:db8::1]:80", "10.96.0.1:80"] {
        assert!(matches!(goes_to(client(), vec![], destination), Destination::Passthrough), "{destination}");
    }
    let mut host = pod("host", &["172.30.0.11"]);
    host.network_mode = wire::NetworkMode::HostNetwork.into();
    let to_node = goes_to(client(), vec![pod_resource(host)], "172.30.0.11:80");
    assert!(matches!(to_node, Destination::Passthrough), "a node's address is no workload's");
}

#[test]
fn pod_addresses_lead_to_the_pod() {
    let mut plain = pod("plain", &["10.244.2.4", "fd00:244:2::4"]);
    plain.tunnel_protocol = wire::TunnelProtocol::None.into();
    let pods = || vec![pod_resource(pod("db", &["10.244.2.3"])), pod_resource(plain.clone())];
    let cases = [
        ("10.244.2.3:5432", "10.244.2.3:5432", TunnelProtocol::Hbone),
        ("[::ffff:10.244.2.3]:5432", "10.244.2.3:5432", TunnelProtocol::Hbone),
        ("10.244.2.4:1", "10.244.2.4:1", TunnelProtocol::Plain),
        ("[fd00:244:2::4]:1", "[fd00:244:2::4]:1", TunnelProtocol::Plain),
        ("10.244.2.4:15008", "10.244.2.4:15008", TunnelProtocol::Plain),
    ];
    for (destination, address, tunnel) in cases {
        let Destination::Workload(endpoint) = goes_to(client(), pods(), destination) else {
            panic!("{destination}")
        };
        assert_eq!(
            (endpoint.address, endpoint.tunnel_protocol),
            (address.parse().unwrap(), tunnel),
            "{destination}"
        );
        assert_eq!(*endpoint.expected_identities, *std::slice::from_ref(&endpoint.workload.identity));
    }
}

#[test]
fn ports_of_the_mesh_are_not_for_connecting_to() {
    for port in [15001, 15006, 15008] {
        let destination = format!("10.244.2.3:{port}");
        let found = goes_to(client(), vec![pod_resource(pod("db", &["10.244.2.3"]))], &destination);
        let Destination::Reject(reject) = found else { panic!("{found}") };
        assert_eq!(reject.to_string(), format!("{destination} is a port of the mesh itself"));
    }
}

#[test]
fn a_service_leads_to_its_endpoints() {
    let found = ask(
        wire::Service {
            subject_alt_names: vec!["spiffe://td/ns/a/sa/b".into(), "web.example.org".into()],
            ..web(&[VIP])
        },
        vec![as_web_member(pod("b", &["10.244.1.2"]), 8080), as_web_member(pod("a", &["10.244.2.1"]), 8081)],
        VIP,
    );
    assert_eq!(addresses(&found), ["10.244.2.1:8081", "10.244.1.2:8080"], "in the order of the uids");
    let Destination::Service { service, port, policy, endpoints } = &found else { panic!("{found}") };
    assert_eq!((&*service.key, *port), ("shop/web.shop.svc.cluster.local", 80));
    assert_eq!(**policy, PortPolicy::default());
    let identities: Vec<_> = endpoints[0].expected_identities.iter().map(ToString::to_string).collect();
    assert_eq!(identities, ["spiffe://cluster.local/ns/shop/sa/a", "spiffe://td/ns/a/sa/b"]);
    assert_eq!(endpoints[0].weight, 1);
    assert_eq!(
        endpoints[0].key(),
        EndpointId { workload: "cluster//Pod/shop/a".into(), address: "10.244.2.1:8081".parse().unwrap() }
    );
    let snapshot_again = ask(web(&[VIP]), vec![as_web_member(pod("a", &["10.244.2.1"]), 8081)], VIP);
    let Destination::Service { endpoints: again, .. } = &snapshot_again else { panic!("{snapshot_again}") };
    assert_eq!(again[0].key(), endpoints[0].key(), "the key outlives a snapshot");
}

#[test]
fn workloads_that_are_no_endpoints() {
    let unready = || {
        let mut pod = as_web_member(pod("unready", &["10.244.1.1"]), 80);
        pod.status = wire::WorkloadStatus::Unhealthy.into();
        pod
    };
    let idle = wire::Workload { capacity: Some(0), ..as_web_member(pod("idle", &["10.244.1.2"]), 80) };
    let unnamed = as_web_member(pod("unnamed", &["10.244.1.3"]), 0);
    let nowhere = as_web_member(pod("nowhere", &[]), 80);
    let good = wire::Workload { capacity: Some(7), ..as_web_member(pod("good", &["10.244.1.4"]), 80) };
    let bad = || vec![unready(), idle.clone(), unnamed.clone(), nowhere.clone()];
    let found = ask(web(&[VIP]), [bad(), vec![good]].concat(), VIP);
    assert_eq!(addresses(&found), ["10.244.1.4:80"]);
    assert!(matches!(&found, Destination::Service { endpoints, .. } if endpoints[0].weight == 7));
    assert_eq!(
        ask(web(&[VIP]), bad(), VIP).to_string(),
        "nowhere: service shop/web.shop.svc.cluster.local:80 has no endpoint: of its workloads, 1 not ready, \
         1 without that port, 1 without a usable address, 1 with capacity 0"
    );
    assert_eq!(
        ask(web(&[VIP]), vec![pod("other", &["10.244.1.5"])], VIP).to_string(),
        "nowhere: service shop/web.shop.svc.cluster.local:80 has no workload"
    );
    let all = LoadBalancing { health_policy: HealthPolicy::AllowAll.into(), ..LoadBalancing::default() };
    let tolerant = wire::Service { load_balancing: Some(all), ..web(&[VIP]) };
    assert_eq!(addresses(&ask(tolerant, vec![unready()], VIP)), ["10.244.1.1:80"]);
}

/// Kubernetes' KEP-1669: what ends is for those who would find nobody else.
#[test]
fn who_is_about_to_end_serves_where_there_is_no_other() {
    let last = |name: &str, ip: &str| {
        let mut pod = as_web_member(pod(name, &[ip]), 80);
        pod.status = wire::WorkloadStatus::Unhealthy.into();
        pod.extensions.push(wire::Extension { name: ext::TERMINATING.into(), config: None });
        pod
    };
    let unready = wire::Workload { extensions: Vec::new(), ..last("unready", "10.244.1.3") };
    let ready = as_web_member(pod("ready", &["10.244.2.1"]), 80);
    let ending = || vec![last("ending", "10.244.1.1"), unready.clone()];
    assert_eq!(addresses(&ask(web(&[VIP]), ending(), VIP)), ["10.244.1.1:80"]);
    assert_eq!(
        addresses(&ask(web(&[VIP]), [ending(), vec![ready.clone()]].concat(), VIP)),
        ["10.244.2.1:80"]
    );
    let on_the_node = LoadBalancing {
        routing_preference: vec![Scope::Node.into()],
        mode: Mode::Strict.into(),
        ..LoadBalancing::default()
    };
    let local = || wire::Service { load_balancing: Some(on_the_node.clone()), ..web(&[VIP]) };
    let elsewhere = wire::Workload { node: "node2".into(), ..ready };
    let pods = [ending(), vec![elsewhere]].concat();
    assert_eq!(addresses(&ask(local(), pods, VIP)), ["10.244.1.1:80"], "none is ready on this node");
    let all = LoadBalancing { health_policy: HealthPolicy::AllowAll.into(), ..LoadBalancing::default() };
    let tolerant = wire::Service { load_balancing: Some(all), ..web(&[VIP]) };
    assert_eq!(addresses(&ask(tolerant, ending(), VIP)), ["10.244.1.1:80", "10.244.1.3:80"]);
}

#[test]
fn a_client_keeps_its_endpoint_unless_a_rule_names_a_balancer() {
    let sticky = || {
        let mut service = web(&[VIP]);
        let value = prost::Message::encode_to_vec(&ext::SessionAffinity { timeout: None });
        let config = Some(prost_types::Any { type_url: type_url::SESSION_AFFINITY.into(), value });
        service.extensions.push(wire::Extension { name: ext::SESSION_AFFINITY.into(), config });
        service
    };
    let kept = |service| {
        let found = ask(service, vec![as_web_member(pod("a", &["10.244.1.1"]), 80)], VIP);
        let Destination::Service { service, policy, .. } = &found else { panic!("{found}") };
        (service.affinity_timeout(policy).map(|timeout| timeout.as_secs()), found.to_string())
    };
    let (timeout, said) = kept(sticky());
    assert_eq!(timeout, Some(10_800));
    assert!(said.contains("always one (sessionAffinity) of 1 endpoint"), "{said}");
    let rule = |lb: ext::LoadBalancer| ext::TrafficPolicy {
        default: Some(ext::PortPolicy { lb: lb.into(), ..ext::PortPolicy::default() }),
        ..ext::TrafficPolicy::default()
    };
    assert_eq!(
        kept(service_with_traffic_policies(sticky(), vec![rule(ext::LoadBalancer::RoundRobin)])).0,
        None
    );
    assert_eq!(
        kept(service_with_traffic_policies(sticky(), vec![rule(ext::LoadBalancer::Unspecified)])).0,
        Some(10_800)
    );
    assert_eq!(kept(web(&[VIP])).0, None);
}

#[test]
fn target_ports() {
    let cases = [
        (8080, 9090, "10.244.1.1:8080", "the workload's own port comes first"),
        (0, 9090, "10.244.1.1:9090", "the service's, if the workload does not say"),
        (8080, 0, "10.244.1.1:8080", "a named port is the workload's"),
    ];
    for (of_workload, of_service, expected, why) in cases {
        let mut service = web(&[VIP]);
        service.ports[0].target_port = of_service;
        let found = ask(service, vec![as_web_member(pod("a", &["10.244.1.1"]), of_workload)], VIP);
        assert_eq!(addresses(&found), [expected], "{why}");
    }
    let resources =
        vec![service_resource(web(&[VIP])), pod_resource(as_web_member(pod("a", &["10.244.1.1"]), 80))];
    assert_eq!(
        goes_to(client(), resources, "10.96.0.1:81").to_string(),
        "nowhere: service shop/web.shop.svc.cluster.local has no port 81"
    );
    let mut more = web(&[VIP]);
    more.ports.push(Port { service_port: 81, target_port: 81, app_protocol: 0 });
    let resources = vec![service_resource(more), pod_resource(as_web_member(pod("a", &["10.244.1.1"]), 80))];
    let found = goes_to(client(), resources, "10.96.0.1:81");
    assert!(found.to_string().ends_with("1 without that port"), "{found}");
}

#[test]
fn families() {
    use wire::IpFamilies::{Automatic, Dual, Ipv4Only, Ipv6Only};
    let pods = || {
        vec![
            as_web_member(pod("both", &["10.244.1.1", "fd00:244:1::1"]), 80),
            as_web_member(pod("four", &["10.244.1.2"]), 80),
        ]
    };
    let of = |families: wire::IpFamilies, vip| {
        let service = wire::Service { ip_families: families.into(), ..web(&[VIP, VIP6]) };
        addresses(&ask(service, pods(), vip))
    };
    assert_eq!(of(Automatic, VIP), ["10.244.1.1:80", "10.244.1.2:80"]);
    assert_eq!(of(Automatic, VIP6), ["[fd00:244:1::1]:80", "10.244.1.2:80"]);
    assert_eq!(of(Dual, VIP6), ["[fd00:244:1::1]:80", "10.244.1.2:80"]);
    assert_eq!(of(Ipv4Only, VIP6), ["10.244.1.1:80", "10.244.1.2:80"]);
    assert_eq!(of(Ipv6Only, VIP), ["[fd00:244:1::1]:80"]);
    assert_eq!(of(Automatic, "::ffff:10.96.0.1"), ["10.244.1.1:80", "10.244.1.2:80"]);
}

#[test]
fn places() {
    let pods = || {
        let at =
            |name, ip, region, zone, node| in_zone(as_web_member(pod(name, &[ip]), 80), region, zone, node);
        vec![
            at("node", "10.0.0.1", "r1", "z1", "node1"),
            at("zone", "10.0.0.2", "r1", "z1", "node2"),
            at("region", "10.0.0.3", "r1", "z2", "node3"),
            at("far", "10.0.0.4", "r2", "z1", "node4"),
        ]
    };
    let of = |mode: Mode, scopes: &[Scope], client: wire::Workload| {
        let balancing = LoadBalancing {
            mode: mode.into(),
            routing_preference: scopes.iter().map(|scope| (*scope).into()).collect(),
            ..LoadBalancing::default()
        };
        let service = wire::Service { load_balancing: Some(balancing), ..web(&[VIP]) };
        let resources = pods().into_iter().map(pod_resource).chain([service_resource(service)]).collect();
        addresses(&goes_to(client, resources, "10.96.0.1:80"))
    };
    let near = || in_zone(client(), "r1", "z1", "node1");
    let beside = || in_zone(client(), "r1", "z1", "node9");
    let abroad = || in_zone(client(), "r3", "z1", "node4");
    let other_network = || wire::Workload { network: "n2".into(), ..near() };
    let close = [Scope::Network, Scope::Region, Scope::Zone];
    let same_node = [Scope::Network, Scope::Region, Scope::Zone, Scope::Node];
    let everywhere = ["10.0.0.4:80", "10.0.0.1:80", "10.0.0.3:80", "10.0.0.2:80"];
    assert_eq!(of(Mode::UnspecifiedMode, &[Scope::Node], near()), everywhere);
    assert_eq!(of(Mode::Failover, &[], near()), everywhere);
    assert_eq!(of(Mode::Strict, &[], near()), everywhere);
    assert_eq!(of(Mode::Strict, &[Scope::Node], near()), ["10.0.0.1:80"]);
    assert_eq!(of(Mode::Failover, &close, near()), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(of(Mode::Failover, &same_node, near()), ["10.0.0.1:80"]);
    assert_eq!(of(Mode::Failover, &same_node, beside()), ["10.0.0.1:80", "10.0.0.2:80"]);
    assert_eq!(
        of(Mode::Failover, &same_node, abroad()),
        everywhere,
        "zone and node do not count after a region"
    );
    assert_eq!(
        of(Mode::Failover, &same_node, other_network()),
        ["10.0.0.1:80"],
        "the rest counts all the same"
    );
    assert!(of(Mode::Strict, &close, other_network())[0].contains("4 not where this service admits"));
    assert!(of(Mode::Strict, &[Scope::Node], beside())[0].ends_with("for this client"));
}

/// Choices by locality are remembered; one client's must not be another's.
#[test]
fn places_of_several_clients() {
    let balancing = LoadBalancing {
        mode: Mode::Failover.into(),
        routing_preference: vec![Scope::Node.into()],
        ..LoadBalancing::default()
    };
    let at = |name, ips: &[&str], node| in_zone(as_web_member(pod(name, ips), 80), "", "", node);
    let snapshot = snapshot(vec![
        service_resource(wire::Service { load_balancing: Some(balancing), ..web(&[VIP, VIP6]) }),
        pod_resource(at("a", &["10.0.0.1", "fd00::1"], "node1")),
        pod_resource(at("b", &["10.0.0.2", "fd00::2"], "node2")),
    ]);
    for _ in 0..2 {
        for (client, vip, expected) in [
            ("a", VIP, "10.0.0.1:80"),
            ("b", VIP, "10.0.0.2:80"),
            ("a", VIP6, "[fd00::1]:80"),
            ("b", VIP6, "[fd00::2]:80"),
        ] {
            let client = snapshot.workload(&format!("cluster//Pod/shop/{client}")).unwrap();
            let found = destination_of(&snapshot, &client, SocketAddr::new(vip.parse().unwrap(), 80));
            assert_eq!(addresses(&found), [expected]);
        }
    }
}

#[test]
fn passthrough_services_keep_the_address() {
    let balancing = LoadBalancing { mode: Mode::Passthrough.into(), ..LoadBalancing::default() };
    let by_mode = wire::Service { load_balancing: Some(balancing), ..web(&["10.244.0.0/16"]) };
    let lb = ext::PortPolicy { lb: ext::LoadBalancer::Passthrough.into(), ..ext::PortPolicy::default() };
    let rule = ext::TrafficPolicy { default: Some(lb), ..ext::TrafficPolicy::default() };
    let by_rule = service_with_traffic_policies(web(&["10.244.0.0/16"]), vec![rule]);
    for service in [by_mode, by_rule] {
        let at = |destination| {
            let resources = vec![service_resource(service.clone()), pod_resource(pod("a", &["10.244.1.1"]))];
            goes_to(client(), resources, destination)
        };
        assert!(matches!(at("10.244.7.7:80"), Destination::Passthrough));
        assert!(matches!(at("10.244.1.1:80"), Destination::Workload(_)), "a workload there is still known");
    }
}

#[test]
fn the_first_traffic_policy_that_covers_the_client_is_used() {
    let limit = |max_connections| ext::PortPolicy {
        pool: Some(ext::ConnectionPool { max_connections, ..ext::ConnectionPool::default() }),
        ..ext::PortPolicy::default()
    };
    let rule = |namespaces: &[&str], labels: &[(&str, &str)], default, port| ext::TrafficPolicy {
        client_namespaces: namespaces.iter().map(|namespace| (*namespace).into()).collect(),
        client_labels: labels.iter().map(|(key, value)| ((*key).into(), (*value).into())).collect(),
        default: Some(limit(default)),
        ports: [(81, limit(port))].into(),
        subsets: BTreeMap::new(),
    };
    let mut service = service_with_traffic_policies(
        web(&[VIP]),
        vec![
            rule(&["ops"], &[], 1, 2),
            rule(&["shop"], &[("tier", "gold")], 3, 4),
            rule(&["shop", "x"], &[], 5, 6),
            rule(&[], &[], 7, 8),
        ],
    );
    service.ports.push(Port { service_port: 81, target_port: 80, app_protocol: 0 });
    let snapshot = snapshot(vec![service_resource(service)]);
    let service = snapshot.service_by_name("shop", "web.shop.svc.cluster.local").unwrap();
    let limit_of = |namespace: &str, label: Option<(&str, &str)>, port| {
        let mut client = Workload::try_from(client()).unwrap();
        client.namespace = namespace.into();
        client.labels = label.into_iter().map(|(key, value)| (key.into(), value.into())).collect();
        ClientTrafficPolicy::policy_or_default_for(&service.traffic, &client, port)
            .pool
            .max_connections
            .unwrap()
            .get()
    };
    assert_eq!(limit_of("ops", None, 80), 1);
    assert_eq!(limit_of("ops", None, 81), 2);
    assert_eq!(limit_of("shop", Some(("tier", "gold")), 80), 3);
    assert_eq!(limit_of("shop", Some(("tier", "tin")), 80), 5);
    assert_eq!(limit_of("shop", None, 81), 6);
    assert_eq!(limit_of("other", None, 80), 7);
}

#[test]
fn of_several_services_at_an_address_the_nearest_is_meant() {
    let hidden = |namespace: &str, name: &str, vips: &[&str]| wire::Service {
        visibility: wire::service::Visibility::Namespace.into(),
        ..service(namespace, name, vips)
    };
    let unofficial = |namespace: &str, name: &str, vips: &[&str]| wire::Service {
        canonical: false,
        ..service(namespace, name, vips)
    };
    let found = |services: Vec<wire::Service>, namespace: &str| {
        let snapshot = snapshot(services.into_iter().map(service_resource).collect());
        let found = snapshot.service_by_vip("10.0.0.1".parse().unwrap(), namespace);
        found.map(|service| format!("{}/{}", service.namespace, service.name))
    };
    let cases: [(&str, Vec<wire::Service>, Option<&str>); 8] = [
        ("own", vec![service("a", "x", &["10.0.0.1"]), service("me", "x", &["10.0.0.1"])], Some("me/x")),
        ("range", vec![service("a", "x", &["10.0.0.0/24"])], Some("a/x")),
        ("exact", vec![service("a", "x", &["10.0.0.1"]), service("me", "x", &["10.0.0.0/31"])], Some("a/x")),
        (
            "own range",
            vec![service("a", "x", &["10.0.0.0/31"]), service("me", "x", &["10.0.0.0/8"])],
            Some("me/x"),
        ),
        (
            "longest",
            vec![service("a", "x", &["10.0.0.0/8"]), service("b", "x", &["10.0.0.0/24"])],
            Some("b/x"),
        ),
        (
            "canonical",
            vec![unofficial("a", "x", &["10.0.0.1"]), service("b", "x", &["10.0.0.1"])],
            Some("b/x"),
        ),
        ("hidden", vec![hidden("a", "x", &["10.0.0.1"]), service("b", "x", &["10.0.0.0/8"])], Some("b/x")),
        ("hidden, alone", vec![hidden("a", "x", &["10.0.0.1"])], None),
    ];
    for (name, services, expected) in cases {
        assert_eq!(found(services, "me").as_deref(), expected, "{name}");
    }
    assert_eq!(found(vec![hidden("me", "x", &["10.0.0.1"])], "me").as_deref(), Some("me/x"));
}

#[test]
fn routes_read_well() {
    let mut plain = as_web_member(pod("b", &["10.244.1.2"]), 80);
    plain.tunnel_protocol = wire::TunnelProtocol::None.into();
    let found = ask(web(&[VIP]), vec![as_web_member(pod("a", &["10.244.1.1"]), 8080), plain], VIP);
    assert_eq!(
        found.to_string(),
        "to service shop/web.shop.svc.cluster.local:80, default balancing over 2 endpoints: shop/a at 10.244.1.1:8080 \
         over mutual TLS with spiffe://cluster.local/ns/shop/sa/a; shop/b at 10.244.1.2:80 in plaintext"
    );
    assert_eq!(
        goes_to(client(), vec![], "192.0.2.1:1").to_string(),
        "past the mesh, to the address that the client used"
    );
}

/// A gateway's address: of a service `NAMESPACE/NAME`, or an IP address.
fn waypoint(at: &str) -> wire::GatewayAddress {
    let destination = match at.split_once('/') {
        Some((namespace, name)) => gateway_address::Destination::Hostname(wire::NamespacedHostname {
            namespace: namespace.into(),
            hostname: format!("{name}.{namespace}.svc.cluster.local"),
        }),
        None => {
            let address = address_bytes(at);
            gateway_address::Destination::Address(wire::NetworkAddress {
                address,
                ..wire::NetworkAddress::default()
            })
        }
    };
    wire::GatewayAddress { destination: Some(destination), hbone_mtls_port: 15008 }
}

/// A service and a workload behind waypoints, with a plain one beside them.
fn behind_waypoints(of_the_service: wire::Service) -> Vec<Resource> {
    let mut db = pod("db", &["10.244.2.3"]);
    db.waypoint = Some(waypoint("shop/gate"));
    let server = as_web_member(pod("a", &["10.244.2.1"]), 8080);
    vec![
        service_resource(of_the_service),
        pod_resource(db),
        pod_resource(server),
        service_resource(service("shop", "gate", &[])),
    ]
}

#[test]
fn what_is_behind_a_waypoint_is_not_reached_past_it() {
    let one = || wire::Service { waypoint: Some(waypoint("shop/gate")), ..web(&[VIP]) };
    let share = |at: &str| wire::WeightedWaypoint { destination: Some(waypoint(at)), weight: 1 };
    let shares =
        || wire::Service { weighted_waypoints: vec![share("10.96.0.7"), share("shop/gate")], ..web(&[VIP]) };
    let unreadable = || wire::Service { waypoint: Some(wire::GatewayAddress::default()), ..web(&[VIP]) };
    for (service, destination, said) in [
        (one(), "10.96.0.1:80", "service shop/web.shop.svc.cluster.local is behind waypoint shop/gate.shop"),
        (one(), "10.96.0.1:81", "is behind waypoint"),
        (shares(), "10.96.0.1:80", "is behind waypoint 10.96.0.7, "),
        (unreadable(), "10.96.0.1:80", "is behind waypoint of an unknown kind"),
        (one(), "10.244.2.3:5432", "workload shop/db is behind waypoint shop/gate.shop.svc.cluster.local, "),
    ] {
        let found = goes_to(client(), behind_waypoints(service), destination);
        let Destination::Reject(reject @ Reject::Waypoint { .. }) = &found else {
            panic!("{destination}: {found}")
        };
        let text = reject.to_string();
        assert!(text.contains(said) && text.ends_with("only with --waypoints ignore"), "{text}");
    }
}

/// A waypoint of a service is for connections to that, not for those to its pods, and the other way round.
#[test]
fn a_waypoint_is_in_the_way_of_what_has_it_and_of_nothing_else() {
    let service = || wire::Service { waypoint: Some(waypoint("shop/gate")), ..web(&[VIP]) };
    let to_a_pod_of_it = goes_to(client(), behind_waypoints(service()), "10.244.2.1:8080");
    assert!(matches!(to_a_pod_of_it, Destination::Workload(_)), "{to_a_pod_of_it}");
    let mut server = as_web_member(pod("a", &["10.244.2.1"]), 8080);
    server.waypoint = Some(waypoint("shop/gate"));
    assert_eq!(addresses(&ask(web(&[VIP]), vec![server], VIP)), ["10.244.2.1:8080"]);
}

#[test]
fn a_waypoint_itself_connects_on() {
    let mut gate = pod("gate", &["10.244.1.8"]);
    gate.services.insert("shop/gate.shop.svc.cluster.local".into(), wire::PortList::default());
    for at in ["shop/gate", "10.244.1.8", "10.96.0.7"] {
        let mut resources = behind_waypoints(wire::Service { waypoint: Some(waypoint(at)), ..web(&[VIP]) });
        resources.push(service_resource(service("shop", "gate", &["10.96.0.7"])));
        let found = goes_to(gate.clone(), resources, "10.96.0.1:80");
        assert_eq!(addresses(&found), ["10.244.2.1:8080"], "{at}");
    }
}

#[test]
fn waypoints_that_are_ignored_are_gone_past() {
    let service = wire::Service { waypoint: Some(waypoint("shop/gate")), ..web(&[VIP]) };
    let mut resources = behind_waypoints(service);
    resources.push(pod_resource(client()));
    let mut store = Store::default().with_waypoint_handling(WaypointHandling::Ignore);
    assert_eq!(store.apply_response(type_url::ADDRESS, resources, Vec::new()), []);
    let snapshot = store.snapshot();
    let source = snapshot.workload(&client().uid).unwrap();
    let to = |destination: &str| destination_of(&snapshot, &source, destination.parse().unwrap());
    assert_eq!(addresses(&to("10.96.0.1:80")), ["10.244.2.1:8080"]);
    assert!(matches!(to("10.244.2.3:5432"), Destination::Workload(_)));
}
