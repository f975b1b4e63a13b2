//! Connections that a `DestinationRule` gives a time, and those that it does not.

use crate::world::{PORT, World, eventually};

/// Clients on the other node (a stream over mutual TLS) and on the server's own, which needs no proxy
/// otherwise.
const BOTH: [&str; 2] = ["client", "neighbour"];

/// How a connection ended that was held for so many seconds at most, and after how many.
fn held(world: &World, pod: &str, most: &str) -> (String, f64) {
    let ran = world.client("app", pod, &["hold", "server.app", PORT, most]);
    let words = ran.words();
    let [_, outcome, after] = *words else { panic!("{ran:?}") };
    (outcome.to_owned(), after.parse().unwrap())
}

fn rule(tcp: &str) -> String {
    format!(
        "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: server, namespace: app}}\nspec: {{host: server, trafficPolicy: {{connectionPool: {{tcp: {{{tcp}}}}}}}}}\n"
    )
}

#[test]
fn connections_end_when_their_rule_says_and_not_before() {
    let world = World::new("lifetimes");
    for pod in BOTH {
        assert_eq!(held(&world, pod, "4").0, "kept", "{pod}: without a rule");
    }
    world.apply(&rule("idleTimeout: 2s"));
    for pod in BOTH {
        eventually(&format!("{pod} has a connection closed"), || held(&world, pod, "6").0 == "closed");
        let (_, after) = held(&world, pod, "6");
        assert!((1.9..4.0).contains(&after), "{pod}: {after} s");
        let ran = world.client("app", pod, &["slowly", "server.app", PORT, "40"]);
        assert_eq!(ran.text, "whole", "{pod}: who says something every now and then stays");
    }
    world.apply(&rule("maxConnectionDuration: 3s"));
    for pod in BOTH {
        eventually(&format!("{pod} has its connection longer"), || held(&world, pod, "8").1 > 2.9);
        let ran = world.exec("app", pod, &["python3", "-c", TALKS, PORT]);
        assert_eq!(ran.words().first(), Some(&"<done>"), "{pod}: {ran:?}");
        let after: f64 = ran.words()[1].parse().unwrap();
        assert!((2.9..5.0).contains(&after), "{pod}: {after} s");
    }
    for (node, counter) in [("node1", "over_idle_timeout"), ("node2", "over_duration")] {
        assert!(world.metric(node, &format!("nodemesh_connections_{counter}_total"), "") > 1.0, "{node}");
        world.logged(node, "outcome=expired");
    }
}

/// Talks with a server that echoes until that ends, and says its last words and after how many seconds they
/// came.
const TALKS: &str = "
import socket, sys, time
began = time.monotonic()
peer = socket.create_connection(('server.app', int(sys.argv[1])), timeout=20)
peer.sendall(b'echo\\n')
heard = b''
while True:
    try:
        peer.sendall(b'x')
        piece = peer.recv(100)
    except OSError:  # it was talking still
        break
    if not piece:
        break
    heard += piece
    time.sleep(0.1)
print(heard.decode().lstrip('x'), round(time.monotonic() - began, 2))
";
