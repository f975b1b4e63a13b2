//! What an agent holds of a large mesh, and what a change of it costs. In a process of its own, since it
//! looks at the process's memory.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant};

use mesh_api::plan::{RejectedResource, Store};
use mesh_api::wire::workload::address::Type;
use mesh_api::wire::workload::{
    Address, Locality, NetworkAddress, Port, PortList, Service, TunnelProtocol, Workload,
};
use mesh_api::wire::{type_url, xds::Resource};
use prost::Message;
use prost_types::Any;

const SERVICES: u32 = 5000;
const PODS: u32 = 10;
/// Most that a workload may take, its share of its service and of all tables included, in bytes.
const MOST: u64 = 450;
const CHANGES: u32 = 1000;

fn resource(name: String, of: Type) -> Resource {
    let value = Address { r#type: Some(of) }.encode_to_vec();
    let resource = Some(Any { type_url: type_url::ADDRESS.to_owned(), value });
    Resource { version: "0123456789abcdef".to_owned(), resource, name, aliases: Vec::new() }
}

fn v6(prefix: u16, number: u32) -> Vec<u8> {
    (u128::from(prefix) << 112 | u128::from(number)).to_be_bytes().to_vec()
}

fn names(service: u32) -> (String, String) {
    let namespace = format!("team-{}", service % 100);
    let host = format!("{namespace}/backend-{service}.{namespace}.svc.cluster.local");
    (namespace, host)
}

fn service(number: u32) -> Resource {
    let (namespace, key) = names(number);
    let address = |address| NetworkAddress { address, ..NetworkAddress::default() };
    let service = Service {
        name: format!("backend-{number}"),
        hostname: key.split_once('/').expect("a key").1.to_owned(),
        namespace,
        addresses: vec![address((0x0a20_0000 + number).to_be_bytes().to_vec()), address(v6(0xfd98, number))],
        ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }],
        canonical: true,
        ..Service::default()
    };
    resource(key, Type::Service(service))
}

fn pod(service: u32, number: u32, net: u32) -> Resource {
    let (namespace, key) = names(service);
    let name = format!("backend-{service}-7d9f8c6b5d-{number:05}");
    let ports = PortList { ports: vec![Port { service_port: 80, target_port: 8080, app_protocol: 0 }] };
    let workload = Workload {
        uid: format!("Kubernetes//Pod/{namespace}/{name}"),
        addresses: vec![(net + number).to_be_bytes().to_vec(), v6(0xfd99, net + number)],
        tunnel_protocol: TunnelProtocol::Hbone.into(),
        service_account: format!("backend-{service}"),
        node: format!("worker-{}.example.internal", number % 500),
        locality: Some(Locality {
            region: "r".into(),
            zone: format!("r-{}", number % 3),
            subzone: String::new(),
        }),
        canonical_name: format!("backend-{service}"),
        canonical_revision: "latest".to_owned(),
        workload_name: format!("backend-{service}"),
        cluster_id: "Kubernetes".to_owned(),
        services: BTreeMap::from([(key, ports)]),
        name,
        namespace,
        ..Workload::default()
    };
    resource(workload.uid.clone(), Type::Workload(workload))
}

fn resident() -> u64 {
    let pages = fs::read_to_string("/proc/self/statm").expect("proc(5)");
    let pages: u64 = pages.split(' ').nth(1).expect("a second field").parse().expect("a number");
    pages * 4096
}

#[test]
fn a_workload_takes_some_hundred_bytes_and_a_change_some_microseconds() {
    let mut store = Store::default();
    let apply = |store: &mut Store, resources| {
        assert_eq!(
            store.apply_response(type_url::ADDRESS, resources, Vec::new()),
            Vec::<RejectedResource>::new()
        );
    };
    let before = resident();
    for number in 0..SERVICES {
        let pods = (0..PODS).map(|pod_of| pod(number, number * PODS + pod_of, 0x0a40_0000));
        apply(&mut store, pods.chain([service(number)]).collect());
    }
    let mut snapshot = store.snapshot();
    let workloads = u64::from(SERVICES * PODS);
    let each = (resident() - before) / workloads;
    assert!(each < MOST, "{each} bytes for each workload");
    println!("{each} bytes for each workload");

    // Far below what a look at all workloads takes, and far above what a change does.
    let start = Instant::now();
    for number in 0..CHANGES {
        apply(&mut store, vec![pod(number, number * PODS, 0x0a80_0000)]);
        let next = store.snapshot();
        let (come, gone) = next.added_and_removed_addresses_since(&snapshot);
        assert_eq!((come.len(), gone.len()), (2, 2));
        assert!(next.has_same_policies(&snapshot));
        snapshot = next;
    }
    let each = start.elapsed() / CHANGES;
    assert!(each < Duration::from_millis(2), "{each:?} for each change");
    assert_eq!(snapshot.workload_count() as u64, workloads);
    println!("{each:?} for each change");
}
