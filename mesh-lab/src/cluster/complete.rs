//! What the lab adds to an object before it is stored: what an API server and a scheduler would.

use std::net::IpAddr;

use mesh_api::{
    manifest::{Kind, ObjectKey},
    resource::{IpFamily, Pod, Service},
};
use serde_json::{Value, json};

use super::{Placement, Store, Stored, now, placement};
use crate::{layout::NodeNumber, random};

pub use placement::Unplaced;

/// Namespaces that are there from the start, as in a real cluster, and the mesh's own.
const NAMESPACES: [&str; 4] = ["default", "kube-system", "istio-system", "nodemesh-system"];

/// The objects that a fresh lab has.
pub fn machine_objects(nodes: &[NodeNumber]) -> Vec<Value> {
    NAMESPACES.into_iter().map(namespace).chain(nodes.iter().map(|node| self::node(*node))).collect()
}

/// A namespace without labels of its own.
pub fn namespace(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {
            "name": name, "uid": random::uid(), "creationTimestamp": now(),
            "labels": {"kubernetes.io/metadata.name": name},
        },
        "status": {"phase": "Active"},
    })
}

fn node(node: NodeNumber) -> Value {
    let name = node.name();
    let addresses: Vec<Value> = node
        .addresses()
        .iter()
        .map(|ip| json!({"type": "InternalIP", "address": ip}))
        .chain([json!({"type": "Hostname", "address": name})])
        .collect();
    let networks = node.pod_networks();
    json!({
        "apiVersion": "v1", "kind": "Node",
        "metadata": {
            "name": name, "uid": random::uid(), "creationTimestamp": now(),
            "labels": {"kubernetes.io/hostname": name, "kubernetes.io/os": "linux"},
        },
        "spec": {"podCIDR": networks[0], "podCIDRs": networks},
        "status": {"addresses": addresses, "conditions": [{"type": "Ready", "status": "True"}]},
    })
}

/// Metadata that every object gets, kept from `old` where there was one.
pub fn metadata(raw: &mut Value, key: &ObjectKey, old: Option<&Stored>) {
    let metadata = &mut raw["metadata"];
    if key.kind.is_namespaced() {
        metadata["namespace"] = key.namespace.as_str().into();
    }
    if key.kind == Kind::Namespace {
        metadata["labels"]["kubernetes.io/metadata.name"] = key.name.as_str().into();
    }
    for (field, fresh) in [("uid", random::uid()), ("creationTimestamp", now())] {
        let kept = old.map(|old| old.raw["metadata"][field].clone());
        metadata[field] = kept.filter(Value::is_string).unwrap_or_else(|| fresh.into());
    }
}

/// A new pod's node and addresses.
pub fn pod(raw: &mut Value, pod: &Pod, placement: &Placement, store: &Store) -> Result<(), Unplaced> {
    let node = placement.node(pod, store)?;
    let addresses =
        if pod.spec.host_network { node.addresses() } else { placement.pod_addresses(node, store)? };
    let [host, _] = node.addresses();
    raw["spec"]["nodeName"] = node.name().into();
    raw["spec"]["serviceAccountName"] = pod.service_account().into();
    raw["status"] = json!({
        "phase": "Pending",
        "hostIP": host,
        "podIP": addresses[0],
        "podIPs": addresses.map(|ip| json!({"ip": ip})),
        "conditions": [
            {"type": "PodScheduled", "status": "True", "lastTransitionTime": now()},
            {"type": "Ready", "status": "False", "reason": "ContainersNotReady", "lastTransitionTime": now()},
        ],
    });
    Ok(())
}

/// A Service's addresses: those it names, those it had, and fresh ones for the families that lack one. A
/// Service that says nothing gets both families, which the lab always has.
pub fn service(
    raw: &mut Value,
    service: &Service,
    old: Option<&Stored>,
    placement: &Placement,
    store: &Store,
) -> Result<(), Unplaced> {
    if service.is_external_name() {
        return Ok(());
    }
    let families = families(raw, service);
    raw["spec"]["type"] =
        if service.spec.kind.is_empty() { "ClusterIP".into() } else { service.spec.kind.clone().into() };
    raw["spec"]["ipFamilies"] =
        families.iter().map(|family| if is_v4(*family) { "IPv4" } else { "IPv6" }).collect();
    raw["spec"]["ipFamilyPolicy"] =
        if families.len() == 2 { "PreferDualStack" } else { "SingleStack" }.into();
    if service.is_headless() {
        raw["spec"]["clusterIPs"] = json!(["None"]);
        return Ok(());
    }
    let addresses = service_addresses(service, &families, old, placement, store)?;
    raw["spec"]["clusterIP"] = json!(addresses.first());
    raw["spec"]["clusterIPs"] = json!(addresses);
    Ok(())
}

fn families(raw: &Value, service: &Service) -> Vec<IpFamily> {
    let given = &service.spec.ip_families;
    match (given.as_slice(), raw["spec"]["ipFamilyPolicy"].as_str()) {
        ([], Some("SingleStack")) => vec![IpFamily::IPv4],
        ([], _) => vec![IpFamily::IPv4, IpFamily::IPv6],
        (given, _) => given.to_vec(),
    }
}

fn is_v4(family: IpFamily) -> bool {
    family == IpFamily::IPv4
}

fn service_addresses(
    service: &Service,
    families: &[IpFamily],
    old: Option<&Stored>,
    placement: &Placement,
    store: &Store,
) -> Result<Vec<IpAddr>, Unplaced> {
    let had: Vec<IpAddr> = match old.map(|old| &old.object) {
        Some(mesh_api::resource::Object::Service(old)) => old.cluster_ips(),
        _ => Vec::new(),
    };
    let taken = placement::service_addresses_in_use(store);
    let named = service.cluster_ips();
    if let Some(clash) = named.iter().find(|ip| taken.contains(ip) && !had.contains(ip)) {
        return Err(Unplaced {
            field: "spec.clusterIP",
            problem: format!("another Service has the address {clash}"),
            fix: "leave it out, and a free one is chosen".to_owned(),
        });
    }
    let fresh = std::cell::OnceCell::new();
    let address_of = |family: &IpFamily| {
        let fits = |ip: &&IpAddr| ip.is_ipv4() == is_v4(*family);
        let known = named.iter().find(fits).or_else(|| had.iter().find(fits)).copied();
        known.unwrap_or_else(|| {
            fresh.get_or_init(|| placement.service_addresses(store))[usize::from(!is_v4(*family))]
        })
    };
    Ok(families.iter().map(address_of).collect())
}
