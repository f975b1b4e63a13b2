//! A probe is what the node's own processes open to a port that a pod declares for it; nothing else gets past
//! policy there, whatever address it comes from.

use std::io::Write;
use std::process::Stdio;

use mesh_lab::Lab;

use crate::world::{PORT, Ran, SOON, World, eventually, mutual_tls};

const PROBE: &str = "path=\"probe\"";
const SPOOF: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/attacks/spoof.py");
const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py");

/// The address of node2 on the fabric.
const NODE2: &str = "172.30.0.12";

/// The server's serving port is also its probe's, as is usual. `STRICT` is in force.
fn strict(name: &str) -> (World, String) {
    let world = World::new(name);
    let server = world.addresses("app", "server")[0].clone();
    world.apply(&mutual_tls("app", "STRICT"));
    eventually("STRICT", || !world.client("out", "neighbour", &["who", &server, PORT]).ok);
    (world, server)
}

fn probes(world: &World) -> f64 {
    world.metric("node2", "istio_tcp_connections_closed_total", PROBE)
}

fn on_node(lab: &Lab, node: &str, server: &str) -> bool {
    lab.node_exec(node, &["python3", PEER, "who", server, PORT]).unwrap().status.success()
}

#[test]
fn the_nodes_probes_pass_strict_and_are_recorded() {
    let (world, server) = strict("probes");
    let before = probes(&world);
    eventually("further probes", || probes(&world) - before > 2.5);
    let ready = |pod: &serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array().unwrap().clone();
        conditions.iter().any(|it| it["type"] == "Ready" && it["status"] == "True")
    };
    assert!(ready(&world.pod("app", "server")), "its probe succeeds");
    let parts = ["path=probe", "outcome=closed", "dst.workload=server"];
    let is_its_line = |line: &str| parts.iter().all(|part| line.contains(part));
    eventually("they are logged", || world.agent_log("node2").lines().any(is_its_line));
    // Whoever is root on the node and outside of all pods is the node; another node is not.
    assert!(on_node(&world.lab, "node2", &server));
    assert!(!on_node(&world.lab, "node1", &server));
    // While no agent runs there are probes all the same, and none fails when one comes that has yet to find
    // its pods.
    let mut asks = world.lab.node_command("node2", &["python3", "-u", PEER, "load", &server, PORT, "6"]);
    let asks = asks.stdout(Stdio::piped()).spawn().unwrap();
    world.lab.agent("node2").kill().unwrap();
    assert!(on_node(&world.lab, "node2", &server));
    world.lab.agent("node2").start().unwrap();
    let came = String::from_utf8(asks.wait_with_output().unwrap().stdout).unwrap();
    assert!(came.contains(" failed 0 "), "{came}");
}

/// What `externalTrafficPolicy: Cluster` does, which is the default of `NodePort` and `LoadBalancer`.
#[test]
fn what_is_masqueraded_to_the_nodes_address_is_no_probe() {
    let (world, server) = strict("probes-nat");
    let rules = format!(
        "table ip attack {{\n chain in {{ type nat hook prerouting priority dstnat; ip daddr {NODE2} tcp dport 30080 ct mark set 0x4000 dnat to {server}:{PORT}; }}\n chain out {{ type nat hook postrouting priority srcnat; ct mark 0x4000 masquerade; }}\n}}\n"
    );
    let mut nft = world.lab.node_command("node2", &["nft", "-f", "-"]).stdin(Stdio::piped()).spawn().unwrap();
    nft.stdin.take().unwrap().write_all(rules.as_bytes()).unwrap();
    assert!(nft.wait().unwrap().success());
    let through = |pod| world.client("out", pod, &["who", NODE2, "30080"]);
    assert!(!through("client").ok && !through("neighbour").ok, "STRICT");
    eventually("the reason is in the log", || {
        world.agent_log("node2").lines().any(|line| line.contains("STRICT") && line.contains("10.244.2.1"))
    });
    world.apply(&mutual_tls("app", "PERMISSIVE"));
    eventually("the way is there", || through("client").ok);
}

#[test]
fn a_host_network_pod_is_not_the_node() {
    let (world, server) = strict("probes-host");
    world.apply(
        "apiVersion: v1\nkind: Pod\nmetadata: {name: host, namespace: out}\nspec:\n  nodeName: node2\n  hostNetwork: true\n  containers: [{name: main, command: [sleep, infinity]}]\n",
    );
    world.lab.wait_ready(SOON).unwrap();
    let ran: Ran = world.client("out", "host", &["who", &server, PORT]);
    assert!(!ran.ok, "{ran:?}");
    assert!(on_node(&world.lab, "node2", &server), "the same from outside of all pods");
}

#[test]
fn a_pod_that_speaks_as_the_bridge_is_no_probe() {
    let (world, server) = strict("probes-arp");
    let own = world.addresses("out", "neighbour")[0].clone();
    let bridge = server.rsplit_once('.').map(|(network, _)| format!("{network}.1")).unwrap();
    let spoof = || world.exec("out", "neighbour", &["python3", SPOOF, &own, &bridge, &server, PORT]);
    let ran = spoof();
    assert!(ran.ok && ran.text.contains("answer") && !ran.text.contains(&bridge), "{ran:?}");
    world.apply(&mutual_tls("app", "PERMISSIVE"));
    eventually("the attack reaches what is open to all", || spoof().text.contains(&bridge));
}
