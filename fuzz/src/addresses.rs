//! The small texts of a policy: addresses, ranges of them, ports, principals, labels.

use std::net::{IpAddr, SocketAddr};

use std::sync::Arc;

use mesh_api::compile::{self, MeshConfig};
use mesh_api::identity::SpiffeId;
use mesh_api::manifest;
use mesh_api::plan::policy::{ConnectionAttributes, authorize};
use mesh_common::address::Address;
use mesh_common::maps::{AddressPort, EnrolledPod};
use mesh_common::redirect_rules;
use serde_json::{Value, json};

use crate::agree;

/// Lines of text: an identity, an address with a port, a principal's pattern, a range of addresses, a port, a
/// label.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let mut lines = text.split('\n');
    let mut line = || lines.next().unwrap_or_default();
    let (identity, client, pattern, block, port, label) = (line(), line(), line(), line(), line(), line());
    let identity = identity.parse::<SpiffeId>().ok();
    if let Some(id) = &identity {
        assert_eq!(SpiffeId::new(id.trust_domain(), id.namespace(), id.service_account()).as_ref(), Ok(id));
    }
    let client = client.parse().unwrap_or_else(|_| SocketAddr::from(([10, 244, 1, 1], 8080)));
    check_address(client.ip());
    let peer = ConnectionAttributes {
        identity: identity.as_ref(),
        source_ip: client.ip(),
        destination_ip: IpAddr::from([10, 244, 1, 2]),
        destination_port: client.port(),
    };
    let principal = peer.identity.map_or("", SpiffeId::principal);
    agrees(&json!({"from": [{"source": {"principals": [pattern]}}]}), &peer, || glob(pattern, principal));
    agrees(&json!({"from": [{"source": {"ipBlocks": [block]}}]}), &peer, || within(block, peer.source_ip));
    let same_port = || port.trim_start_matches(['0', '+']) == peer.destination_port.to_string();
    agrees(&json!({"to": [{"operation": {"ports": [port]}}]}), &peer, same_port);
    check_selector(label, &peer);
}

/// The kernel's form of an address, and what the programs decide by it.
fn check_address(ip: IpAddr) {
    let address = Address::from(ip);
    assert_eq!(IpAddr::from(address), ip.to_canonical());
    assert_eq!(Address::from_be32x4(address.to_be32x4()), address);
    assert_eq!(address.is_v4(), ip.to_canonical().is_ipv4());
    assert_eq!(address.is_loopback(), ip.to_canonical().is_loopback());
    if address.is_v4() {
        assert_eq!(Address::from_be32(address.to_be32()), address);
    }
    let pod = EnrolledPod { address_v4: address, address_v6: Address::UNSPECIFIED, loopback_v6: 0 };
    assert_eq!(
        redirect_rules::connect_action(&pod, address),
        redirect_rules::ConnectAction::Leave,
        "a pod's talk to itself"
    );
    let to = AddressPort::new(address, 80);
    let (listener, _) = redirect_rules::outbound_listener_address(&pod, &to);
    assert!(listener.is_loopback() && listener.is_v4() == address.is_v4());
    let shown =
        redirect_rules::visible_peer_address(address, redirect_rules::delivery_source_address(address, &to));
    assert!(address.is_loopback() || !shown.is_loopback(), "a lost client is never localhost");
}

/// What a rule says of a peer is what it is expected to say, if it may be written at all.
fn agrees(rule: &Value, peer: &ConnectionAttributes<'_>, expected: impl FnOnce() -> bool) {
    let policy = policy(&json!({"rules": [rule]}));
    if let Some(allowed) = verdict("web", &policy, peer) {
        assert_eq!(allowed, expected(), "{rule} for {peer:?}");
    }
}

/// A selector chooses the pods that have the label, and no others.
fn check_selector(label: &str, peer: &ConnectionAttributes<'_>) {
    for (of_pod, applies) in [(label, true), ("another", label == "another")] {
        let nobody = policy(&json!({"selector": {"matchLabels": {"app": label}}}));
        if let Some(allowed) = verdict(of_pod, &nobody, peer) {
            assert_eq!(allowed, !applies, "{label:?} for {of_pod:?}");
        }
    }
}

fn policy(spec: &Value) -> Value {
    let metadata = json!({"name": "p", "namespace": "shop"});
    json!({"apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy", "metadata": metadata, "spec": spec})
}

/// What a policy says of a peer of a pod with a label; none if it may not be written.
fn verdict(label: &str, policy: &Value, peer: &ConnectionAttributes<'_>) -> Option<bool> {
    let enrolled = json!({"nodemesh.io/dataplane": "enabled"});
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": enrolled}});
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "labels": {"app": label}},
        "spec": {"nodeName": "node1"}, "status": {"podIP": "10.244.1.2"},
    });
    let list = json!({"apiVersion": "v1", "kind": "List", "items": [namespace, pod, policy]});
    let parsed = manifest::parse_json_object("value", list);
    if !parsed.errors.is_empty() {
        return None;
    }
    let objects = parsed.objects.into_iter().map(Arc::new);
    let (mut store, rejected) = agree::send(&compile::compile(objects, &MeshConfig::default()));
    assert_eq!(rejected, []);
    let snapshot = store.snapshot();
    let workload = snapshot.workload_by_address(peer.destination_ip).expect("the pod is there");
    Some(authorize(&snapshot, &workload, peer).is_allowed())
}

/// A pattern with at most one star, which stands for anything, at one of its ends.
fn glob(pattern: &str, text: &str) -> bool {
    match pattern.split_once('*') {
        None => text == pattern,
        Some(("", "")) => !text.is_empty(),
        // Nobody has no principal that could begin with anything.
        Some((head, tail)) => !text.is_empty() && text.starts_with(head) && text.ends_with(tail),
    }
}

/// An address, or one with the number of bits that count. What is written as a mapped address is an IPv4 one,
/// unless the bits that count leave that open.
fn within(block: &str, ip: IpAddr) -> bool {
    let (address, length) = block.split_once('/').unwrap_or((block, "128"));
    let (Ok(address), Ok(length)) = (address.parse::<IpAddr>(), length.parse::<u32>()) else { return false };
    let mapped = address.is_ipv6() && address.to_canonical().is_ipv4() && length >= 96;
    let (network, asked) =
        if mapped { (address.to_canonical(), ip.to_canonical()) } else { (address, ip.to_canonical()) };
    let length = if mapped { length - 96 } else { length };
    match (network, asked) {
        (IpAddr::V4(network), IpAddr::V4(asked)) => {
            same(network.to_bits().into(), asked.to_bits().into(), 32, length)
        }
        (IpAddr::V6(network), IpAddr::V6(asked)) => same(network.to_bits(), asked.to_bits(), 128, length),
        _ => false,
    }
}

/// Whether the first bits of two numbers are the same.
fn same(one: u128, other: u128, bits: u32, length: u32) -> bool {
    (0..length.min(bits)).all(|bit| (one ^ other) >> (bits - 1 - bit) & 1 == 0)
}
