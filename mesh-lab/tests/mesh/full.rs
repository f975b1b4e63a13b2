//! The kernel has no room or no memory left: what then becomes of a connection is in docs/fail-modes.md.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use mesh_common::direct::DirectEvent;
use mesh_common::maps::EnrolledPod;
use rustix::process::Signal;

use crate::pods::state_of;
use crate::restarts::{proxy_of, signal};
use crate::same_node::{DIRECT, opened, until_direct};
use crate::world::{Bytes, PORT, World, eventually, idle_pod, mutual_tls};

/// Takes all room that is left, with keys that mean nothing. Returns them.
pub fn fill<const KEY: usize, const VALUE: usize>(map: &mut Bytes<KEY, VALUE>) -> Vec<[u8; KEY]> {
    let keys = (0_u32..).map(|number| {
        let mut key = [0xff; KEY];
        key[..4].copy_from_slice(&number.to_ne_bytes());
        key
    });
    keys.take_while(|key| map.insert(key, [0; VALUE], 0).is_ok()).collect()
}

#[test]
fn a_pod_that_finds_no_room_is_not_half_enrolled_and_has_its_turn_later() {
    let world = World::new("fullpods");
    let mut pods = world.pinned::<8, { size_of::<EnrolledPod>() }>("node1", "PODS");
    let junk = fill(&mut pods);
    world.apply(&idle_pod("late", "node1", "late"));
    let late = || state_of(&world, "late");
    eventually("the agent says that it is not enrolled", || late() == "failed");
    eventually("it talks as before", || world.client("app", "late", &["who", "server.out", PORT]).ok);
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok, "those that are in stay in");
    junk.iter().for_each(|key| pods.remove(key).unwrap());
    eventually("it is enrolled once there is room", || late() == "enrolled");
    assert!(world.client("app", "late", &["who", "server.app", PORT]).ok);
}

#[test]
fn a_direct_connection_that_can_not_be_remembered_goes_on() {
    let world = World::new("fullopen");
    until_direct(&world, "neighbour", "server.app");
    fill(&mut world.pinned::<8, { size_of::<DirectEvent>() }>("node2", "DIRECT_OPEN"));
    let before = opened(&world, DIRECT);
    assert!(world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
    eventually("it was a direct one", || opened(&world, DIRECT) > before);
    let told = || world.metric("node2", "nodemesh_ebpf_faults_total", "OpenFull");
    eventually("the fault is counted", || told() > 0.5);
}

/// How much memory the kernel spends on options of a socket in a pod. What programs remember with a socket is
/// among them (kernel: `bpf_sk_storage_charge`).
fn option_memory(world: &World, pod: &str, bytes: u32) {
    let set = format!("echo {bytes} > /proc/sys/net/core/optmem_max");
    let ran = world.exec("app", pod, &["sh", "-c", &set]);
    assert!(ran.ok, "{ran:?}");
}

#[test]
fn a_connection_whose_destination_can_not_be_remembered_is_refused() {
    let world = World::new("nomemory");
    option_memory(&world, "client", 0);
    let ran = world.client("app", "client", &["who", "server.app", PORT]);
    assert!(!ran.ok && ran.error.contains("refused"), "{ran:?}");
    let told = || world.metric("node1", "nodemesh_ebpf_faults_total", "SocketStorage");
    eventually("the fault is counted", || told() > 0.5);
    assert!(world.client("app", "other", &["who", "server.app", PORT]).ok, "the other pods' go on");
    option_memory(&world, "client", 131_072);
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok);
}

/// The application would take the proxy for its client, and may decide by that whom it serves.
#[test]
fn a_connection_whose_client_can_not_be_shown_is_refused() {
    let world = World::new("noclient");
    option_memory(&world, "server", 0);
    let ran = world.client("app", "client", &["who", "server.app", PORT]);
    assert!(!ran.ok && ran.text.is_empty(), "{ran:?}");
    eventually("the log says why", || world.agent_log("node2").contains("filing the client's address"));
    option_memory(&world, "server", 131_072);
    // What has just refused is tried again after a second.
    eventually("it is served", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

/// A proxy that does not read the ring of SYNs that wait. Without a sign of life none would wait at all.
#[test]
fn connections_that_find_no_room_to_wait_are_taken_at_once() {
    let world = World::new("noroomtowait");
    let proxy = proxy_of(&world, "node1").unwrap();
    signal(proxy, Signal::STOP);
    World::held(proxy, "PULSE").set(0, (u64::MAX / 2).to_ne_bytes(), 0).unwrap();
    let arguments = ["at-once", "600", "server.app", PORT];
    let mut client =
        world.client_command("app", "client", &arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let at_once: u32 = lines.next().unwrap().unwrap().parse().unwrap();
    signal(proxy, Signal::CONT);
    let in_the_end = lines.next().unwrap().unwrap();
    client.wait().unwrap();
    assert!((100..500).contains(&at_once), "some wait, and some find no room: {at_once}");
    assert_eq!(in_the_end, "600", "all are answered");
}

/// A proxy that does not read what is told of direct connections. Under STRICT one that arrived at the
/// proxy's listener for plaintext would be refused.
#[test]
fn a_direct_connection_that_can_not_be_announced_is_the_proxys() {
    let world = World::new("untold-direct");
    world.apply(&mutual_tls("app", "STRICT"));
    eventually("it is strict", || !world.client("out", "client", &["who", "server.app", PORT]).ok);
    until_direct(&world, "neighbour", "server.app");
    let proxy = proxy_of(&world, "node2").unwrap();
    signal(proxy, Signal::STOP);
    // Otherwise nothing would go directly for want of a sign of life, long before the ring is full.
    World::held(proxy, "PULSE").set(0, (u64::MAX / 2).to_ne_bytes(), 0).unwrap();
    let arguments = ["until-stuck", "server.app", PORT];
    let mut client =
        world.client_command("app", "neighbour", &arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
    let stuck = lines.next().unwrap().unwrap();
    assert!(stuck.starts_with("stuck"), "{stuck}");
    let burst: Vec<_> = (0..20)
        .map(|_| {
            let mut client = world.client_command("app", "neighbour", &["who", "server.app", PORT]);
            client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        })
        .collect();
    std::thread::sleep(Duration::from_secs(1));
    signal(proxy, Signal::CONT);
    let answer = lines.next().unwrap().unwrap();
    client.wait().unwrap();
    let own = world.addresses("app", "neighbour");
    let from_it = own.iter().any(|address| answer.starts_with(&**address));
    assert!(from_it, "through the proxy, from one of {own:?}: {answer:?}");
    for client in burst {
        let output = client.wait_with_output().unwrap();
        assert!(output.status.success(), "none is refused: {output:?}");
    }
    let told = || world.metric("node2", "nodemesh_ebpf_faults_total", "DirectFull");
    eventually("the fault is counted", || told() > 0.5);
    until_direct(&world, "neighbour", "server.app");
}
