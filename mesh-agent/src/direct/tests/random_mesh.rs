//! What happens to a mesh: workloads, services and policies that come, change and go.

use mesh_api::identity::SpiffeId;
use mesh_api::plan::{OutlierDetection, Snapshot, Store};
use mesh_api::wire::security::{
    self, Authorization, Clause, Match, Rule, ServiceAccountMatch, StringMatch, string_match::MatchType,
};
use mesh_api::wire::workload::{
    Address, Extension, GatewayAddress, NamespacedHostname, NetworkAddress, NetworkMode, Port, PortList,
    Service, TunnelProtocol, Workload, address, gateway_address,
};
use mesh_api::wire::xds::Resource;
use mesh_api::wire::{ext, type_url};
use prost::Message;
use prost_types::Any;
use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use std::net::IpAddr;
use std::num::NonZeroU32;
use std::time::Duration;

use super::Pod;

/// Port of the service as its workloads serve it.
pub const TARGET_PORT: u16 = 8080;

/// The services' outlier detection.
pub const OUTLIER_LIMITS: OutlierDetection = OutlierDetection {
    consecutive_errors: NonZeroU32::new(2),
    consecutive_gateway_errors: None,
    splits_local_origin_errors: false,
    consecutive_local_origin_failures: None,
    http_error_statuses: Vec::new(),
    interval: Duration::from_secs(10),
    base_ejection_time: Duration::from_secs(10),
    max_ejection_percent: 100,
    min_health_percent: 0,
};

/// Pods that may be, by their names. Several share an account.
const PODS: [(&str, &str); 6] = [
    ("client", "client"),
    ("web-1", "web"),
    ("web-2", "web"),
    ("db", "db"),
    ("batch", "client"),
    ("far", "web"),
];
/// Fewer than pods, so that they take them over from each other.
const V4: [&str; 4] = ["10.244.1.1", "10.244.1.2", "10.244.1.3", "10.244.1.4"];
const V6: [&str; 3] = ["fd00:244:1::1", "fd00:244:1::2", "fd00:244:1::3"];
const SERVICES: [(&str, &[&str]); 2] = [("web", &["10.96.0.1", "fd00:96::1"]), ("db", &["10.96.0.2"])];

/// What pods connect to.
pub const DESTINATIONS: [&str; 9] = [
    "10.96.0.1:80",
    "[fd00:96::1]:80",
    "10.96.0.2:80",
    "10.96.0.2:81",
    "10.244.1.1:8080",
    "10.244.1.2:8080",
    "10.244.1.3:15008",
    "10.244.1.4:22",
    "[fd00:244:1::2]:8080",
];

/// The control plane.
pub struct RandomMesh {
    store: Store,
}

impl RandomMesh {
    /// A mesh with services, some workloads and some policies.
    pub fn new(random: &mut StdRng) -> Self {
        let mut mesh = Self { store: Store::default() };
        for index in 0..SERVICES.len() {
            mesh.put_service(random, index);
        }
        for _ in 0..6 {
            mesh.change_workload(random);
        }
        mesh.change_policy(random);
        mesh
    }

    pub fn snapshot(&mut self) -> Snapshot {
        self.store.snapshot()
    }

    /// A pod of this node; often one that the mesh knows like this.
    pub fn random_pod(&mut self, random: &mut StdRng, cookie: u64) -> Pod {
        let snapshot = self.snapshot();
        let mut known: Vec<_> =
            snapshot.workloads().filter(|workload| !workload.addresses.is_empty()).collect();
        // The same in every run.
        known.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
        let (name, account) = pick(random, &PODS);
        let mut pod = Pod {
            uid: format!("uid-{cookie}").into(),
            namespace: "shop".into(),
            name: name.into(),
            cookie,
            identity: SpiffeId::new("cluster.local", "shop", account).unwrap(),
            addresses: addresses(random).iter().map(|ip| ip.parse().unwrap()).collect(),
        };
        if let Some(workload) = known.choose(random).filter(|_| random.random_bool(0.8)) {
            pod.name = workload.name.clone();
            pod.identity = workload.identity.clone();
            pod.addresses = workload.addresses.to_vec();
        }
        pod
    }

    /// A workload is told of, otherwise than before, or taken away.
    pub fn change_workload(&mut self, random: &mut StdRng) -> &'static str {
        let (name, account) = pick(random, &PODS);
        let uid = format!("Kubernetes//Pod/shop/{name}");
        if random.random_bool(0.15) {
            self.remove(type_url::ADDRESS, uid);
            return "a workload is gone";
        }
        let mut workload = Workload {
            uid: uid.clone(),
            name: name.into(),
            namespace: "shop".into(),
            // An account may change: then it is another pod of the same name.
            service_account: if random.random_bool(0.9) { account } else { "other" }.into(),
            addresses: addresses(random).iter().map(|ip| octets(ip)).collect(),
            node: "node1".into(),
            tunnel_protocol: TunnelProtocol::Hbone.into(),
            status: i32::from(random.random_bool(0.1)),
            capacity: random.random_bool(0.3).then(|| random.random_range(0..5)),
            ..Workload::default()
        };
        if random.random_bool(0.05) {
            workload.network_mode = NetworkMode::HostNetwork.into();
        }
        if random.random_bool(0.05) {
            workload.waypoint = Some(waypoint());
        }
        for (service, _) in SERVICES {
            if random.random_bool(0.6) {
                let port = Port { service_port: 80, target_port: TARGET_PORT.into(), app_protocol: 0 };
                workload.services.insert(key(service), PortList { ports: vec![port] });
            }
        }
        for policy in 0..3 {
            if random.random_bool(0.1) {
                workload.authorization_policies.push(format!("shop/p{policy}"));
            }
        }
        self.put(type_url::ADDRESS, &uid, &Address { r#type: Some(address::Type::Workload(workload)) });
        "a workload changes"
    }

    /// A policy is told of, otherwise than before, or taken away.
    pub fn change_policy(&mut self, random: &mut StdRng) -> &'static str {
        let name = format!("p{}", random.random_range(0..3));
        if random.random_bool(0.35) {
            self.remove(type_url::AUTHORIZATION, format!("shop/{name}"));
            return "a policy is gone";
        }
        let audit = Extension { name: ext::AUDIT.to_owned(), config: None };
        let policy = Authorization {
            namespace: "shop".into(),
            scope: random.random_range(0..3),
            action: random.random_range(0..2),
            rules: (0..random.random_range(0..3)).map(|_| rule(random)).collect(),
            dry_run: random.random_bool(0.1),
            extensions: if random.random_bool(0.1) { vec![audit] } else { Vec::new() },
            name: name.clone(),
        };
        self.put(type_url::AUTHORIZATION, &format!("shop/{name}"), &policy);
        "a policy changes"
    }

    /// A service is told of, otherwise than before.
    pub fn change_service(&mut self, random: &mut StdRng) -> &'static str {
        let index = random.random_range(0..SERVICES.len());
        self.put_service(random, index);
        "a service changes"
    }

    fn put_service(&mut self, random: &mut StdRng, index: usize) {
        let (name, vips) = SERVICES[index];
        let vip = |ip: &&str| NetworkAddress { network: String::new(), address: octets(ip), length: None };
        let mut service = Service {
            name: name.into(),
            namespace: "shop".into(),
            hostname: format!("{name}.shop.svc.cluster.local"),
            addresses: vips.iter().map(vip).collect(),
            ports: vec![Port { service_port: 80, target_port: TARGET_PORT.into(), app_protocol: 0 }],
            ..Service::default()
        };
        if random.random_bool(0.1) {
            service.waypoint = Some(waypoint());
        }
        if random.random_bool(0.3) {
            let config = Some(any(type_url::SESSION_AFFINITY, &ext::SessionAffinity { timeout: None }));
            service.extensions.push(Extension { name: ext::SESSION_AFFINITY.to_owned(), config });
        }
        if random.random_bool(0.7) {
            let policies = ext::TrafficPolicies { policies: vec![traffic(random)] };
            let config = Some(any(type_url::TRAFFIC_POLICIES, &policies));
            service.extensions.push(Extension { name: ext::TRAFFIC_POLICIES.to_owned(), config });
        }
        self.put(type_url::ADDRESS, &key(name), &Address { r#type: Some(address::Type::Service(service)) });
    }

    fn put(&mut self, type_url: &str, name: &str, content: &impl Message) {
        let resource = Resource {
            version: "1".to_owned(),
            resource: Some(any(type_url, content)),
            name: name.to_owned(),
            aliases: Vec::new(),
        };
        // Policies that can't be understood are complained of, and kept.
        let _faulty = self.store.apply_response(type_url, vec![resource], Vec::new());
    }

    fn remove(&mut self, type_url: &str, name: String) {
        assert_eq!(self.store.apply_response(type_url, Vec::new(), vec![name]), []);
    }
}

/// A waypoint that no pod here is.
fn waypoint() -> GatewayAddress {
    let name =
        NamespacedHostname { namespace: "shop".into(), hostname: "gate.shop.svc.cluster.local".into() };
    GatewayAddress { destination: Some(gateway_address::Destination::Hostname(name)), hbone_mtls_port: 15008 }
}

fn traffic(random: &mut StdRng) -> ext::TrafficPolicy {
    let seconds = |seconds| Some(prost_types::Duration { seconds, nanos: 0 });
    let mut pool = ext::ConnectionPool::default();
    match random.random_range(0..20) {
        0 | 1 => pool.max_connections = 1,
        2 => pool.idle_timeout = seconds(60),
        3 => pool.max_connection_duration = seconds(60),
        _ => {}
    }
    let outlier = ext::OutlierDetection {
        consecutive_errors: 2,
        interval: seconds(10),
        base_ejection_time: seconds(10),
        max_ejection_percent: 100,
        min_health_percent: 0,
        ..ext::OutlierDetection::default()
    };
    let policy = ext::PortPolicy {
        hash: None,
        lb: random.random_range(0..5),
        pool: Some(pool),
        outlier: random.random_bool(0.7).then_some(outlier),
        ..ext::PortPolicy::default()
    };
    ext::TrafficPolicy { default: Some(policy), ..ext::TrafficPolicy::default() }
}

/// Mostly of one condition, which some of the pods fulfil.
fn rule(random: &mut StdRng) -> Rule {
    let mut of = Match::default();
    match random.random_range(0..6) {
        0 => of.principals.push(principal(random)),
        1 => of.not_principals.push(principal(random)),
        2 => of.destination_ports.push(u32::from(TARGET_PORT)),
        3 => of.not_source_ips.push(network(random)),
        4 => of.source_ips.push(network(random)),
        _ => of.service_accounts.push(ServiceAccountMatch {
            namespace: "shop".into(),
            service_account: pick(random, &PODS).1.into(),
        }),
    }
    if random.random_bool(0.03) {
        of.destination_ports.push(0);
    }
    Rule { clauses: vec![Clause { matches: vec![of] }] }
}

fn principal(random: &mut StdRng) -> StringMatch {
    let account = pick(random, &PODS).1;
    StringMatch { match_type: Some(MatchType::Exact(format!("cluster.local/ns/shop/sa/{account}"))) }
}

fn network(random: &mut StdRng) -> security::Address {
    security::Address { address: octets(pick(random, &V4)), length: random.random_range(30..=32) }
}

/// One of a family, or one of each.
fn addresses(random: &mut StdRng) -> Vec<&'static str> {
    let (v4, v6) = (pick(random, &V4), pick(random, &V6));
    match random.random_range(0..4) {
        0 => vec![v4, v6],
        1 => vec![v6],
        _ => vec![v4],
    }
}

fn key(service: &str) -> String {
    format!("shop/{service}.shop.svc.cluster.local")
}

fn any(type_url: &str, content: &impl Message) -> Any {
    Any { type_url: type_url.to_owned(), value: content.encode_to_vec() }
}

fn octets(ip: &str) -> Vec<u8> {
    match ip.parse().unwrap() {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

pub fn pick<T: Copy>(random: &mut StdRng, from: &[T]) -> T {
    *from.choose(random).unwrap()
}
