//! Where the mesh ends: un-enrolled clients and destinations, addresses outside, and enrolment itself.

use crate::world::{Outside, PORT, World, eventually, mutual_tls};

#[test]
fn a_client_outside_is_served_by_permissive_and_refused_by_strict() {
    let world = World::new("plain-in");
    let own = world.addresses("out", "client");
    for (target, own) in world.addresses("app", "server").iter().zip(&own) {
        let ran = world.client("out", "client", &["who", target, PORT]);
        assert!(ran.ok && ran.words()[1] == own, "PERMISSIVE is the default, and shows the client: {ran:?}");
    }
    world.apply(&mutual_tls("app", "STRICT"));
    for target in world.addresses("app", "server") {
        eventually("STRICT", || !world.client("out", "client", &["who", &target, PORT]).ok);
    }
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok, "mutual TLS still gets in");
    world.logged("node2", "STRICT mutual TLS required");
    world.apply(&mutual_tls("app", "PERMISSIVE"));
    let target = &world.addresses("app", "server")[0];
    eventually("PERMISSIVE", || world.client("out", "client", &["who", target, PORT]).ok);
}

#[test]
fn a_destination_outside_is_reached_in_plaintext_and_its_server_sees_the_client() {
    let world = World::new("plain-out");
    let own = world.addresses("app", "client");
    for (target, own) in world.addresses("out", "server").iter().zip(&own) {
        let ran = world.client("app", "client", &["who", target, PORT]);
        assert!(ran.ok && ran.words()[0] == target && ran.words()[1] == own, "{ran:?}");
    }
    assert!(world.client("app", "client", &["who", "server.out", PORT]).ok, "by service name too");
}

#[test]
fn an_address_outside_is_untouched() {
    let world = World::new("outside");
    let outside = Outside::new(&world);
    let opened = || world.metric("node1", "istio_tcp_connections_opened_total", "");
    let before = opened();
    eventually("the server outside", || outside.is_reached_from("client"));
    let after = opened();
    assert!((after - before).abs() < 0.5, "the proxy counted {} connections", after - before);
}

#[test]
fn a_label_enrols_and_lets_go_without_touching_the_pod() {
    let world = World::new("label");
    let outbound =
        || world.metric("node1", "istio_tcp_connections_opened_total", "source_workload_namespace=\"out\"");
    let namespace = |label: &str| {
        world.apply(&format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: out, labels: {{nodemesh.io/dataplane: {label}}}}}\n"
        ));
    };
    let started = || world.pod("out", "client")["status"]["containerStatuses"][0].clone();
    let before = started();
    world.apply(&mutual_tls("app", "STRICT"));
    let target = world.addresses("app", "server")[0].clone();
    eventually("refused in plaintext", || !world.client("out", "client", &["who", &target, PORT]).ok);
    namespace("enabled");
    eventually("enrolled", || world.client("out", "client", &["who", &target, PORT]).ok);
    assert!(outbound() > 0.5);
    namespace("disabled");
    eventually("let go", || !world.client("out", "client", &["who", &target, PORT]).ok);
    assert_eq!(started(), before, "nothing was restarted");
}

#[test]
fn probes_from_the_node_pass_strict_and_nothing_else_from_it_does() {
    let world = World::new("probes");
    world.apply(&mutual_tls("app", "STRICT"));
    let target = world.addresses("app", "server")[0].clone();
    eventually("STRICT", || !world.client("out", "client", &["who", &target, PORT]).ok);
    let from_node = |port: &str| {
        let script = format!("exec 3<>/dev/tcp/{target}/{port} && echo who >&3 && timeout 5 cat <&3");
        let output = world.lab.node_exec("node2", &["timeout", "5", "bash", "-c", &script]).unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    assert!(from_node(PORT).contains("server"), "the probed port answers its node");
    let other = world.addresses("app", "neighbour")[0].clone();
    let script = format!("exec 3<>/dev/tcp/{other}/22 && cat <&3");
    let ran = world.lab.node_exec("node2", &["timeout", "5", "bash", "-c", &script]).unwrap();
    assert!(!ran.status.success());
    let denied = || world.agent_log("node2");
    eventually("the proxy refused it", || {
        denied().contains("shop/neighbour") || denied().contains("app/neighbour")
    });
}
