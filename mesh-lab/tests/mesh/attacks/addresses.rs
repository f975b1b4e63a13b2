//! Ways into a pod by other addresses than the one that the mesh knows.

use crate::pods::state_of;
use crate::world::{PORT, SOON, World, eventually, idle_pod, mutual_tls};

const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py");

fn in_pod(world: &World, command: &str) {
    let ran = world.exec("app", "server", &["sh", "-ec", command]);
    assert!(ran.ok, "{command}: {ran:?}");
}

fn on_node(world: &World, command: &str) {
    assert!(world.lab.node_exec("node2", &["sh", "-ec", command]).unwrap().status.success(), "{command}");
}

/// Serves in plaintext what PERMISSIVE lets in, and nobody else.
fn is_judged_as_plaintext(world: &World, reaches: impl Fn() -> bool) {
    eventually("PERMISSIVE lets it in", &reaches);
    eventually("it came through the proxy", || world.agent_log("node2").contains("192.168.7"));
    world.apply(&mutual_tls("app", "STRICT"));
    eventually("STRICT refuses it", || !reaches());
    assert!(world.client("app", "neighbour", &["who", "server.app", PORT]).ok, "and nothing else");
}

#[test]
fn what_enters_by_an_address_that_came_later_is_judged_as_plaintext() {
    let world = World::new("address-later");
    let own = &world.addresses("app", "server")[0];
    in_pod(&world, "ip addr add 192.168.77.2/32 dev eth0");
    on_node(&world, &format!("ip route add 192.168.77.2/32 via {own}"));
    is_judged_as_plaintext(&world, || world.client("out", "neighbour", &["who", "192.168.77.2", PORT]).ok);
}

#[test]
fn what_enters_by_a_second_interface_is_judged_as_plaintext() {
    let world = World::new("address-second");
    in_pod(
        &world,
        "ip link add net1 type veth peer name up1; ip link set up1 netns nm-address-second-node2; \
         ip addr add 192.168.78.2/24 dev net1; ip link set net1 up",
    );
    on_node(&world, "ip addr add 192.168.78.1/24 dev up1; ip link set up1 up");
    is_judged_as_plaintext(&world, || {
        world
            .lab
            .node_exec("node2", &["python3", PEER, "who", "192.168.78.2", PORT])
            .unwrap()
            .status
            .success()
    });
}

#[test]
fn a_pod_that_has_switched_ipv6_off_is_in_the_mesh_all_the_same() {
    let world = World::new("address-off");
    world.apply(&idle_pod("alone", "node1", "client"));
    world.lab.wait_ready(SOON).unwrap();
    let off = "echo 1 > /proc/sys/net/ipv6/conf/eth0/disable_ipv6";
    assert!(world.exec("app", "alone", &["sh", "-c", off]).ok);
    world.lab.agent("node1").kill().unwrap();
    world.lab.agent("node1").start().unwrap();
    eventually("it is enrolled", || state_of(&world, "alone") == "enrolled");
    eventually("it is served", || world.client("app", "alone", &["who", "server.app", PORT]).ok);
}
