//! Programs see the same of their sockets with and without the mesh: each runs in a namespace that is enrolled and in one that
//! is not.

use serde_json::{Map, Value};

use crate::world::{PORT, World, eventually};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/sockets.py");

/// In a namespace: services that nobody is behind, each in its way, and servers that listen on one family.
const NOBODY: &str = "\
apiVersion: v1
kind: Service
metadata: {name: nothing, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: nothing}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: NS, labels: {app: unready}}
spec:
  nodeName: node2
  containers: [{name: main, command: [python3, PEER, serve, \"7000\"], readinessProbe: {exec: {command: [\"false\"]}}}]
---
apiVersion: v1
kind: Service
metadata: {name: unready, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: unready}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, internalTrafficPolicy: Local, selector: {app: server}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ipv4, namespace: NS, labels: {app: ipv4}}
spec:
  nodeName: node2
  containers:
  - {name: main, command: [python3, SOCKETS, serve4, \"7000\"], readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: ipv4, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: ipv4}, ports: [{port: 7000}]}
";

/// Has a world of both namespaces with these beside what it has.
fn world(name: &str) -> World {
    let world = World::new(name);
    let peer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py");
    for namespace in ["app", "out"] {
        let manifests = NOBODY.replace("NS", namespace).replace("PEER", peer);
        world.apply(&manifests.replace("SOCKETS", PROGRAMS));
    }
    eventually("servers are ready", || {
        ["app", "out"].iter().all(|namespace| {
            world.client(namespace, "client", &["who", &format!("ipv4.{namespace}"), PORT]).ok
        })
    });
    world
}

/// What the programs say in a pod, each by its name.
fn told(world: &World, namespace: &str, pod: &str) -> Map<String, Value> {
    let server = world.addresses(namespace, "server");
    let own = world.addresses(namespace, pod);
    let arguments = ["python3", PROGRAMS, "tell", namespace, &server[0], &server[1], &own[0], &own[1]];
    let ran = world.exec(namespace, pod, &arguments);
    assert!(ran.ok, "{ran:?}");
    serde_json::from_str(&ran.text).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn programs_see_of_their_sockets_what_they_see_without_a_mesh() {
    let world = world("sockets");
    // From the other node, and from the server's own, where connections go directly from the second on.
    for pod in ["client", "neighbour"] {
        let without = told(&world, "out", pod);
        assert!(without.len() >= 20, "{without:#?}");
        for round in 0..2 {
            let with = told(&world, "app", pod);
            let differ: Vec<_> =
                without.iter().filter(|(name, said)| with.get(*name) != Some(said)).collect();
            let found: Vec<_> = differ.iter().map(|(name, _)| (name, with.get(*name))).collect();
            assert!(differ.is_empty(), "{pod}, round {round}: without {differ:#?}, with {found:#?}");
        }
    }
}

#[test]
fn nobody_there_is_refused_at_once_recorded_and_reached_when_somebody_comes() {
    let world = world("nobody");
    let refused = || {
        let ran = world.client("app", "client", &["who", "nothing.app", PORT]);
        assert!(!ran.ok && ran.error.contains("ConnectionRefusedError"), "{ran:?}");
    };
    refused();
    world.logged("node1", "service app/nothing.app.svc.cluster.local:7000 has no workload");
    let log = world.agent_log("node1");
    let line = log.lines().find(|line| line.contains("has no workload")).unwrap();
    assert!(line.contains("transport=none") && line.contains("outcome=failed"), "{line}");
    assert!(world.metric("node1", "nodemesh_ebpf_faults_total", "NobodyThere") > 0.5);
    let elsewhere = |pod| world.client("app", pod, &["who", "elsewhere.app", PORT]);
    assert!(elsewhere("client").error.contains("ConnectionRefusedError"), "none on its node");
    assert!(elsewhere("neighbour").ok);
    // Somebody comes, and goes.
    let somebody = "apiVersion: v1\nkind: Pod\nmetadata: {name: somebody, namespace: app, labels: {app: nothing}}\nspec:\n  nodeName: node2\n  containers: [{name: main, command: [python3, PEER, serve, \"7000\"], readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}}]\n";
    let somebody = somebody.replace("PEER", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py"));
    world.apply(&somebody);
    eventually("somebody is there", || world.client("app", "client", &["who", "nothing.app", PORT]).ok);
    world.lab.delete(&somebody).unwrap();
    eventually("nobody is there", || {
        world.client("app", "client", &["who", "nothing.app", PORT]).error.contains("ConnectionRefusedError")
    });
    // What the kernel was told outlives the agent that told it, and is put right by the next.
    world.lab.agent("node1").kill().unwrap();
    world.apply(&somebody);
    world.lab.agent("node1").start().unwrap();
    eventually("somebody is there for the next agent", || {
        world.client("app", "client", &["who", "nothing.app", PORT]).ok
    });
}

/// The first connection can't know; those that come within a moment are told by `connect()`, and then one is tried anew.
#[test]
fn what_has_just_refused_is_refused_in_connect_for_a_moment() {
    const CLOSED: &str = "7999";
    let world = World::new("refusedlately");
    let server = world.addresses("app", "server");
    for family in [0, 1] {
        let ask = || world.client("app", "client", &["who", &server[family], CLOSED]);
        let told = || world.metric("node1", "nodemesh_ebpf_faults_total", "RefusedLately");
        let before = told();
        assert!(!ask().ok, "nobody listens");
        eventually("connect() says so", || {
            ask().error.contains("ConnectionRefusedError") && told() > before + 0.5
        });
        // Whatever one pod is told, another of its node finds out by itself.
        ask();
        let other = world.client("app", "other", &["who", &server[family], CLOSED]);
        assert!(!other.error.contains("ConnectionRefusedError"), "{other:?}");
        let mut listens = world.client_command("app", "server", &["serve", CLOSED]).spawn().unwrap();
        eventually("it is tried anew", || ask().ok);
        crate::restarts::signal(listens.id(), rustix::process::Signal::TERM);
        listens.wait().unwrap();
        eventually("nobody listens again", || !ask().ok);
    }
}

#[test]
fn services_that_find_no_room_in_the_kernel_are_the_proxys() {
    let world = World::new("portsfull");
    let mut ports = world.pinned::<20, 4>("node1", "OPEN_PORTS");
    let filled = (0..u32::MAX).find(|number| {
        let mut key = [0xfd; 20];
        key[..4].copy_from_slice(&number.to_be_bytes());
        ports.insert(key, [1, 0, 0, 0], 0).is_err()
    });
    assert!(filled.is_some_and(|filled| filled > 100_000), "{filled:?}");
    let late = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: app}\nspec: {selector: {app: server}, ports: [{port: 7000}]}\n";
    world.apply(late);
    eventually("it is reached", || world.client("app", "client", &["who", "late.app", PORT]).ok);
    world.apply(&late.replace("{app: server}", "{app: nobody}"));
    eventually("the proxy says no", || !world.client("app", "client", &["who", "late.app", PORT]).ok);
    world.apply(late);
    eventually("it is reached again", || world.client("app", "client", &["who", "late.app", PORT]).ok);
}
