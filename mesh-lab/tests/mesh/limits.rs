//! One pod can't use up what there is for all.

use std::io::{BufRead, BufReader};
use std::process::Stdio;

use mesh_lab::Options;

use crate::world::{PORT, World, eventually};

#[test]
fn a_pod_has_so_many_connections_and_others_have_theirs() {
    let options = Options { agent_arguments: vec!["--pod-connections=20".to_owned()], ..Options::default() };
    let world = World::with("crowded", &options);
    let mut greedy = world
        .client_command("app", "client", &["park", "server.out", PORT, "60"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let told = BufReader::new(greedy.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    let parked: u32 = told.split_whitespace().nth(1).unwrap().parse().unwrap();
    // Each worker has its part of the limit, and the connections do not come to them evenly.
    assert!((10..=20).contains(&parked), "{told}");
    assert!(
        world.client("app", "other", &["who", "server.app", PORT]).ok,
        "another pod of the node is served"
    );
    assert!(world.metric("node1", "nodemesh_connections_over_limit_total", "") > 39.0);
    assert!(world.agent_log("node1").contains("the pod has its connections already"));
    drop(greedy.stdin.take());
    greedy.wait().unwrap();
    // The server keeps its ends open until it goes.
    world.lab.command(&["delete", "pod", "server", "-n", "out"]).status().unwrap();
    eventually("it has room again", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}
