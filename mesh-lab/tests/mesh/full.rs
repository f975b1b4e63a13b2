//! Maps of the kernel that have no room left: what then becomes of a connection is in docs/fail-modes.md.

use mesh_common::direct::DirectEvent;
use mesh_common::maps::Pod;

use crate::same_node::{DIRECT, opened, until_direct};
use crate::world::{Bytes, PORT, World, eventually};

/// Takes all room that is left, with keys that mean nothing. Answers them.
fn fill<const KEY: usize, const VALUE: usize>(map: &mut Bytes<KEY, VALUE>) -> Vec<[u8; KEY]> {
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
    let mut pods = world.pinned::<8, { size_of::<Pod>() }>("node1", "PODS");
    let junk = fill(&mut pods);
    world.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: late, namespace: app, labels: {app: late}}\nspec:\n  nodeName: node1\n  serviceAccountName: late\n  containers: [{name: main, command: [sleep, infinity]}]\n",
    );
    let late = || {
        let pods = world.admin("node1", "/pods");
        let late = pods.as_array().into_iter().flatten().find(|pod| pod["name"] == "late");
        late.map(|pod| pod["state"].as_str().unwrap_or_default().to_lowercase()).unwrap_or_default()
    };
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
