//! What the agent decides, held against a second implementation and against what it says of itself.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use mesh_api::compile::{self, Compiled, MeshConfig};
use mesh_api::identity::SpiffeId;
use mesh_api::manifest;
use mesh_api::plan::outbound::{Destination, destination_of};
use mesh_api::plan::policy::{ConnectionAttributes, authorize};
use mesh_api::plan::{Endpoint, RejectedResource, Snapshot, Store, Workload, XdsResourceType};
use mesh_api::wire::security::Authorization;
use mesh_api::wire::workload::{self, address};
use mesh_api::wire::{type_url, xds::Resource};
use prost::Message;
use prost_types::Any;

use crate::naive::{self, Question};

/// Most of each kind of thing that is tried with each other.
const MOST: usize = 3;

/// The configuration of a store as it was sent: what the second implementation knows.
#[derive(Default)]
pub struct Mesh {
    workloads: Vec<workload::Workload>,
    policies: Vec<Authorization>,
}

impl Mesh {
    pub fn of(store: &Store) -> Self {
        let addresses = contents::<workload::Address>(store, &XdsResourceType::ADDRESS);
        let workloads = addresses.filter_map(|address| match address.r#type? {
            address::Type::Workload(workload) => Some(workload),
            address::Type::Service(_) => None,
        });
        Self {
            workloads: workloads.collect(),
            policies: contents(store, &XdsResourceType::AUTHORIZATION).collect(),
        }
    }

    /// What the second implementation says.
    pub fn allows(&self, uid: &str, peer: &ConnectionAttributes<'_>) -> bool {
        let workload = self.workloads.iter().find(|workload| workload.uid == uid).expect("it is held");
        let parts =
            |id: &SpiffeId| [id.trust_domain(), id.namespace(), id.service_account()].map(str::to_owned);
        let question = Question {
            identity: peer.identity.map(parts),
            source: octets(peer.source_ip),
            destination: octets(peer.destination_ip),
            port: peer.destination_port,
        };
        naive::allows(&self.policies, workload, &question)
    }

    /// Nobody, and some that the policies may know.
    pub fn identities(&self) -> Vec<Option<SpiffeId>> {
        let known = [("cluster.local", "ops-1", "x"), ("td", "n", "s")];
        let known = known.iter().filter_map(|(td, ns, sa)| SpiffeId::new(td, ns, sa).ok());
        let theirs = self.workloads.iter().take(MOST - 1).filter_map(identity);
        std::iter::once(None).chain(known.chain(theirs).map(Some)).collect()
    }

    /// Addresses and ports that conditions are about, so that some of them hold.
    fn matter(&self) -> (Vec<IpAddr>, Vec<u16>) {
        let rules = self.policies.iter().flat_map(|policy| &policy.rules);
        let matches: Vec<_> =
            rules.flat_map(|rule| &rule.clauses).flat_map(|clause| &clause.matches).collect();
        let networks = matches.iter().flat_map(|of| of.source_ips.iter().chain(&of.not_source_ips));
        let known = ["10.244.1.1", "fd00::1", "::ffff:10.0.0.9"].map(|ip| ip.parse().expect("an address"));
        let ips = networks.filter_map(|network| ip(&network.address)).take(MOST).chain(known);
        let ports =
            matches.iter().flat_map(|of| of.destination_ports.iter().chain(&of.not_destination_ports));
        let ports = ports.filter_map(|port| u16::try_from(*port).ok()).take(MOST).chain([80, 8080]);
        (ips.collect(), ports.collect())
    }
}

/// Policies and routes, for some of all the questions that there are.
pub fn check(store: &Store, snapshot: &Snapshot) {
    let mesh = Mesh::of(store);
    let mut workloads: Vec<_> = snapshot.workloads().collect();
    workloads.sort_unstable_by(|a, b| a.uid.cmp(&b.uid));
    for workload in workloads.iter().take(MOST) {
        check_policy(snapshot, &mesh, workload);
        check_routes(snapshot, workload);
    }
}

fn check_policy(snapshot: &Snapshot, mesh: &Mesh, workload: &Workload) {
    let (ips, ports) = mesh.matter();
    let destination = workload.addresses.first().copied().unwrap_or_else(|| IpAddr::from([10, 0, 0, 1]));
    for identity in mesh.identities() {
        for (source_ip, port) in ips.iter().zip(ports.iter().cycle()) {
            let peer = ConnectionAttributes {
                identity: identity.as_ref(),
                source_ip: *source_ip,
                destination_ip: destination,
                destination_port: *port,
            };
            let decision = authorize(snapshot, workload, &peer);
            assert_eq!(decision.is_allowed(), mesh.allows(&workload.uid, &peer), "{decision}");
        }
    }
}

fn check_routes(snapshot: &Snapshot, source: &Workload) {
    let mut addresses: Vec<_> = snapshot.addresses().collect();
    addresses.sort_unstable();
    addresses.dedup();
    let ranges = snapshot.service_vip_ranges().map(|network| network.addr());
    let services: Vec<_> = snapshot.services().collect();
    let ports = services.iter().flat_map(|service| service.ports.iter().map(|port| port.port));
    let ports: Vec<_> = ports.take(MOST).chain([15_008]).collect();
    for ip in addresses.into_iter().take(MOST).chain(ranges.take(MOST)) {
        for port in &ports {
            check_destination(snapshot, source, SocketAddr::new(ip, *port));
        }
    }
}

fn check_destination(snapshot: &Snapshot, source: &Workload, destination: SocketAddr) {
    let way = destination_of(snapshot, source, destination);
    assert!(!way.to_string().is_empty());
    match way {
        Destination::Workload(target) => {
            let owner = snapshot.workload_by_address(target.address.ip());
            assert!(owner.is_some_and(|owner| owner == target.workload));
            assert_eq!(target.address, destination);
        }
        Destination::Service { service, port, endpoints, .. } => {
            assert_eq!(port, destination.port());
            assert!(service.addresses.iter().any(|network| network.contains(&destination.ip())));
            assert!(service.is_visible_to(&source.namespace));
            assert!(!endpoints.is_empty());
            endpoints.iter().for_each(|target| check_endpoint(snapshot, target));
        }
        Destination::Passthrough | Destination::Reject(_) => {}
    }
}

fn check_endpoint(snapshot: &Snapshot, target: &Endpoint) {
    assert!(target.weight > 0);
    assert!(target.workload.addresses.contains(&target.address.ip()));
    assert!(target.expected_identities.contains(&target.workload.identity));
    assert_eq!(snapshot.workload(&target.workload.uid).as_ref(), Some(&target.workload));
}

/// A store that is sent what the compiler made.
pub fn send(compiled: &Compiled) -> (Store, Vec<RejectedResource>) {
    let mut store = Store::default();
    let addresses = compiled.addresses.iter().map(|(name, of)| resource(type_url::ADDRESS, name, of));
    let mut rejected = store.apply_response(type_url::ADDRESS, addresses.collect(), Vec::new());
    let policies =
        compiled.authorizations.iter().map(|(name, of)| resource(type_url::AUTHORIZATION, name, of));
    rejected.extend(store.apply_response(type_url::AUTHORIZATION, policies.collect(), Vec::new()));
    (store, rejected)
}

/// A small mesh.
pub fn example() -> (Snapshot, Mesh) {
    let parsed = manifest::parse("example.yaml", include_str!("example.yaml"));
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let objects = parsed.objects.into_iter().map(Arc::new);
    let (mut store, rejected) = send(&compile::compile(objects, &MeshConfig::default()));
    assert_eq!(rejected, []);
    (store.snapshot(), Mesh::of(&store))
}

fn resource(type_url: &str, name: &str, content: &impl Message) -> Resource {
    let any = Any { type_url: type_url.to_owned(), value: content.encode_to_vec() };
    Resource { version: "1".to_owned(), resource: Some(any), name: name.to_owned(), aliases: Vec::new() }
}

fn contents<M: Message + Default>(store: &Store, of: &XdsResourceType) -> impl Iterator<Item = M> {
    let resources: Vec<_> = store.contents().resources(of).collect();
    resources
        .into_iter()
        .map(|held| M::decode(&*held.resource.expect("held with content").value).expect("was decoded"))
}

fn identity(of: &workload::Workload) -> Option<SpiffeId> {
    let or = |text: &str, default: &str| if text.is_empty() { default.to_owned() } else { text.to_owned() };
    SpiffeId::new(&or(&of.trust_domain, "cluster.local"), &of.namespace, &or(&of.service_account, "default"))
        .ok()
}

fn ip(bytes: &[u8]) -> Option<IpAddr> {
    let four = || <[u8; 4]>::try_from(bytes).ok().map(IpAddr::from);
    four().or_else(|| <[u8; 16]>::try_from(bytes).ok().map(IpAddr::from))
}

fn octets(ip: IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}
