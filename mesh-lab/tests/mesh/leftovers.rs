//! What was open in a pod before the mesh took it in.

use std::process::{Command, Stdio};

use crate::held::Held;
use crate::pods::state_of;
use crate::world::{PORT, World, eventually, mutual_tls};

/// Longer than anything here takes.
const LONG: &[&str] = &["90"];

/// Where a pod listens and accepts nothing.
const DEAF: &str = "7001";

/// Waits for the end of a connection to the port that nobody accepts from, of which it sent a byte.
const KNOCK: &str = "import socket, sys
s = socket.create_connection((sys.argv[1], 7001), 10); s.sendall(b'x'); print('held', flush=True); s.settimeout(90)
try: print(repr(s.recv(1)))
except OSError as e: print(type(e).__name__)";

/// A server's pod on node1; one container more listens and never accepts.
fn pod(name: &str) -> String {
    let peer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py");
    let deaf = "import socket, time; s = socket.create_server(('::', 7001), family=socket.AF_INET6, dualstack_ipv6=True); time.sleep(1e6)";
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: {name}, namespace: app, labels: {{app: {name}}}}}
spec:
  nodeName: node1
  serviceAccountName: client
  containers:
  - {{name: main, command: [python3, -u, {peer}, serve, "{PORT}"]}}
  - {{name: deaf, command: [python3, -c, "{deaf}"]}}
---
"#
    )
}

/// Requires mutual TLS of one pod alone.
fn strict(name: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: {name}, namespace: app}}\nspec: {{selector: {{matchLabels: {{app: {name}}}}}, mtls: {{mode: STRICT}}}}\n---\n"
    )
}

fn knock(world: &World, address: &str) -> Command {
    world.lab.exec_command("out", "client", &["python3", "-c", KNOCK, address])
}

#[test]
fn what_was_open_before_an_agent_came_is_closed_where_policy_does_not_let_it_live() {
    let world = World::new("leftovers");
    world.apply(&strict("closed"));
    world.lab.agent("node1").kill().unwrap();
    world.apply(&(pod("closed") + &pod("open")));
    eventually("they run without an agent", || {
        ["closed", "open"].iter().all(|name| {
            let own = world.addresses("app", name);
            own.iter().all(|own| world.client("out", "client", &["who", own, PORT]).ok)
                && world.exec("app", name, &["true"]).ok
        })
    });
    let [closed4, closed6] = world.addresses("app", "closed");
    let open4 = &world.addresses("app", "open")[0];
    let (meshed, outside) = (world.addresses("app", "server"), world.addresses("out", "server"));
    let from_outside = |to: &str| Held::between(&world, ("out", "client"), (to, PORT), LONG);
    let out_of = |pod: &str, to: &str| Held::between(&world, ("app", pod), (to, PORT), LONG);
    let denied = [
        ("in, IPv4", from_outside(&closed4)),
        ("in, IPv6", from_outside(&closed6)),
        ("out, to one of the mesh", out_of("closed", &meshed[0])),
        ("out over IPv6, to one of the mesh", out_of("open", &meshed[1])),
    ];
    let (short, allowed): (_, &[&str]) = (" kept", &["12"]);
    let allowed = [
        ("in, PERMISSIVE", Held::between(&world, ("out", "client"), (open4, PORT), allowed)),
        ("out, to one outside", Held::between(&world, ("app", "closed"), (&outside[0], PORT), allowed)),
    ];
    let waiting = knock(&world, &closed4).stdout(Stdio::piped()).spawn().unwrap();
    eventually("it waits to be accepted", || {
        let listed = world.exec("app", "closed", &["ss", "-Htn", "sport", "=", DEAF]);
        listed.text.contains("ESTAB")
    });
    world.lab.agent("node1").start().unwrap();
    eventually("taken in", || ["closed", "open"].iter().all(|name| state_of(&world, name) == "enrolled"));
    for (what, held) in denied {
        let outcome = held.outcome();
        assert!(outcome.starts_with("reset"), "{what}: {outcome}");
    }
    let waiting = String::from_utf8_lossy(&waiting.wait_with_output().unwrap().stdout).into_owned();
    assert!(waiting.contains("ConnectionResetError"), "nobody had accepted it: {waiting}");
    for (what, held) in allowed {
        let outcome = held.outcome();
        assert!(outcome.starts_with(short.trim()), "{what}: {outcome}");
    }
    assert!(world.agent_log("node1").contains("from before the pod was in the mesh"));
    assert!(!world.client("out", "client", &["who", &closed4, PORT]).ok, "and no new one gets in");
    assert!(world.client("app", "closed", &["who", "server.app", PORT]).ok, "but through the mesh");
}

#[test]
fn a_label_that_a_running_pod_gets_closes_what_policy_does_not_let_live() {
    let world = World::new("leftlabel");
    let server = world.addresses("out", "server")[0].clone();
    let held = Held::between(&world, ("app", "client"), (&server, PORT), LONG);
    let plain = Held::between(&world, ("out", "client"), (&server, PORT), LONG);
    world.apply(&mutual_tls("out", "STRICT"));
    world.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: out, labels: {nodemesh.io/dataplane: enabled}}\n",
    );
    for held in [held, plain] {
        let outcome = held.outcome();
        assert!(outcome.starts_with("reset"), "{outcome}");
    }
    eventually("through the mesh", || world.client("out", "client", &["who", &server, PORT]).ok);
}

/// The policy goes on being asked about what was let live.
#[test]
fn what_was_let_live_is_closed_when_policy_denies_it() {
    let world = World::new("leftlater");
    world.lab.agent("node1").kill().unwrap();
    world.apply(&pod("late"));
    let late = || world.addresses("app", "late")[0].clone();
    eventually("it runs", || world.client("out", "client", &["who", &late(), PORT]).ok);
    let held = Held::between(&world, ("out", "client"), (&late(), PORT), LONG);
    world.lab.agent("node1").start().unwrap();
    eventually("taken in", || state_of(&world, "late") == "enrolled");
    // The proxy that serves it is another's client for this one.
    eventually("served", || world.client("app", "late", &["who", "server.app", PORT]).ok);
    world.apply(&strict("late"));
    assert!(held.outcome().starts_with("reset"));
}
