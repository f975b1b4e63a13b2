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
    world.logged("node1", "the pod has its connections already");
    drop(greedy.stdin.take());
    greedy.wait().unwrap();
    // The server keeps its ends open until it goes.
    world.lab.command(&["delete", "pod", "server", "-n", "out"]).status().unwrap();
    eventually("it has room again", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

#[test]
fn strangers_that_prove_nothing_take_no_place_of_others() {
    let world = World::new("strangers");
    let silent = format!(
        "import socket, sys; s = [socket.create_connection(('{}', 15008)) for _ in range(600)]; print('open', flush=True); sys.stdin.read()",
        world.addresses("app", "server")[0],
    );
    let mut strangers = world
        .lab
        .exec_command("out", "client", &["python3", "-c", &silent])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let told = BufReader::new(strangers.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    assert_eq!(told, "open");
    let refused = || world.metric("node2", "nodemesh_handshakes_over_limit_total", "");
    eventually("those beyond their share of handshakes are refused", || refused() > 400.0);
    // Each of its connections is of a new peer or of one that the node has; both find a place at once.
    for pod in ["client", "other"] {
        assert!(world.client("app", pod, &["who", "server.app", PORT]).ok, "{pod}");
    }
    drop(strangers.stdin.take());
    strangers.wait().unwrap();
}

#[test]
fn an_endpoint_that_does_not_answer_is_passed_over() {
    let world = World::new("dead");
    world.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: dead, namespace: app, labels: {app: server}}\nspec:\n  nodeName: node2\n  serviceAccountName: server\n  containers: [{name: main, command: [sleep, infinity]}]\n",
    );
    eventually("the service has two endpoints that are ready", || {
        let services = world.admin("node1", "/services");
        let mut all = services.as_array().into_iter().flatten();
        all.any(|it| it["namespace"] == "app" && it["readyEndpoints"] == 2)
    });
    for _ in 0..20 {
        let ran = world.client("app", "client", &["who", "server.app", PORT]);
        assert!(ran.ok, "{ran:?}");
    }
}
