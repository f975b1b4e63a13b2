//! Agents and the control plane come and go.

use std::process::Stdio;

use crate::world::{PORT, World, eventually};

#[test]
fn traffic_goes_on_without_the_control_plane() {
    let world = World::new("nocontrol");
    world.lab.control().stop().unwrap();
    let ran = world.client("app", "client", &["load", "server.app", PORT, "5"]);
    assert!(ran.text.contains("failed 0"), "{ran:?}");
    world.lab.agent("node1").restart().unwrap();
    eventually("the agent says that it waits", || {
        world.agent_log("node1").contains("waiting for the control plane")
    });
    assert!(!world.client("app", "client", &["who", "server.app", PORT]).ok, "fails closed meanwhile");
    world.lab.control().start().unwrap();
    eventually("recovered", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

#[test]
fn a_killed_agent_fails_closed_and_the_next_takes_over() {
    let world = World::new("killed");
    let load = world
        .client_command("app", "client", &["load", "server.app", PORT, "6"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world.lab.agent("node1").kill().unwrap();
    let ran = world.client("app", "client", &["who", "server.app", PORT]);
    assert!(!ran.ok && ran.error.contains("refused"), "refused at once, not let out in plaintext: {ran:?}");
    let outside = world.client("out", "client", &["who", "server.out", PORT]);
    assert!(outside.ok, "what the mesh has nothing to do with is not touched: {outside:?}");
    world.lab.agent("node1").start().unwrap();
    eventually("taken over", || world.client("app", "client", &["who", "server.app", PORT]).ok);
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("done"), "no connection hung: {text}");
    // The server's node is next; its probes go on passing.
    world.lab.agent("node2").kill().unwrap();
    assert!(!world.client("app", "client", &["who", "server.app", PORT]).ok);
    world.lab.agent("node2").start().unwrap();
    eventually("taken over", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

#[test]
fn a_stop_lets_open_connections_finish() {
    let world = World::new("drain");
    let mut slow = world
        .client_command("app", "client", &["stall", "server.app", PORT, "2"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("open", || world.admin("node1", "/status")["openConnections"].as_u64() >= Some(1));
    world.lab.agent("node1").stop().unwrap();
    assert!(slow.wait().unwrap().success() || slow.stdout.is_some());
    assert!(world.agent_log("node1").contains("told to stop"));
}
