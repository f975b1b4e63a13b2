//! The data path without keeper and eBPF: `mesh-proxy/examples/echo_gateway.rs` on a node.

use std::process::{Child, Stdio};

use crate::world::{PEER, PORT, World, control_binary, eventually};

/// On node 1.
const LISTEN: &str = "172.30.0.11";
const ITS_PORT: &str = "18080";

/// Starts the gateway, which expects the account `peer` at the server.
fn gateway(world: &World, peer: &str) -> Child {
    let program = control_binary().with_file_name("examples").join("echo_gateway");
    let control = world.lab.layout().control();
    let [server, _] = world.addresses("app", "server");
    let arguments = [
        program.to_str().unwrap().to_owned(),
        format!("{LISTEN}:{ITS_PORT}"),
        format!("{server}:{PORT}"),
        format!("spiffe://cluster.local/ns/app/sa/{peer}"),
        "https://172.30.0.1:15012".to_owned(),
        control.state().join("root-cert.pem").to_str().unwrap().to_owned(),
        control.tokens().join("node1").to_str().unwrap().to_owned(),
        "spiffe://cluster.local/ns/app/sa/client".to_owned(),
    ];
    let command: Vec<&str> = arguments.iter().map(String::as_str).collect();
    world.lab.node_command("node1", &command).stderr(Stdio::piped()).spawn().unwrap()
}

/// What a server says to a client on the node that comes through the gateway.
fn through(world: &World) -> Option<String> {
    let output = world.lab.node_exec("node1", &["python3", PEER, "who", LISTEN, ITS_PORT]).unwrap();
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

#[test]
fn a_gateway_of_sixty_lines_reaches_a_pod_and_no_other_in_its_place() {
    let world = World::new("gateway");
    let mut right = gateway(&world, "server");
    eventually("it is reached", || through(&world).is_some());
    let seen = through(&world).unwrap();
    assert!(seen.starts_with(LISTEN), "the server sees the gateway's client: {seen}");
    right.kill().unwrap();
    right.wait().unwrap();
    let mut wrong = gateway(&world, "other");
    let connect = format!("import socket; socket.create_connection(('{LISTEN}', {ITS_PORT}))");
    let listens = || world.lab.node_exec("node1", &["python3", "-c", &connect]).unwrap().status.success();
    eventually("it listens", listens);
    assert_eq!(through(&world), None);
    wrong.kill().unwrap();
    wrong.wait().unwrap();
}
