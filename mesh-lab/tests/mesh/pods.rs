//! Pods come and go, one at a time and by the hundred.

use std::time::{Duration, Instant};

use aya::maps::MapError;
use mesh_common::maps::EnrolledPod;
use mesh_lab::Options;

use crate::held::Held;
use crate::restarts::times;
use crate::world::{PORT, World, eventually, idle_pod};

/// More than five hundred pods take to start, and to go.
const LONG: Duration = Duration::from_mins(3);

/// How the agent of `node1` says that a pod is, in small letters; nothing if it does not know it.
pub fn state_of(world: &World, pod: &str) -> String {
    let pods = world.admin("node1", "/pods");
    let found = pods.as_array().into_iter().flatten().find(|it| it["name"] == pod);
    found.map(|it| it["state"].as_str().unwrap_or_default().to_lowercase()).unwrap_or_default()
}

#[test]
fn a_pod_that_the_control_plane_has_not_told_of_is_refused_until_it_has() {
    let world = World::new("untold");
    world.lab.control().stop().unwrap();
    world.apply(&idle_pod("late", "node1", "client"));
    eventually("it is enrolled", || state_of(&world, "late") == "enrolled");
    eventually("it runs", || world.exec("app", "late", &["true"]).ok);
    let began = Instant::now();
    let ran = world.client("app", "late", &["who", "server.app", PORT]);
    assert!(!ran.ok, "{ran:?}");
    assert!(began.elapsed() > Duration::from_secs(4), "it waits a while: {:?}", began.elapsed());
    eventually("the log says why", || world.agent_log("node1").contains("has not told of this pod yet"));
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok, "those that are known go on");
    world.lab.control().start().unwrap();
    eventually("it is told of", || world.client("app", "late", &["who", "server.app", PORT]).ok);
}

#[test]
fn a_pod_that_goes_takes_its_connections_with_it() {
    let world = World::new("gone");
    // From another node, through the proxies, and from the same, directly.
    let held = ["client", "neighbour"].map(|pod| Held::open(&world, pod, "60"));
    let server = "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: app}\n";
    world.lab.delete(server).unwrap();
    for held in held {
        let outcome = held.outcome();
        assert!(outcome.starts_with("reset") || outcome.starts_with("closed"), "{outcome}");
    }
    eventually("nothing is left of them", || {
        ["node1", "node2"].iter().all(|node| world.admin(node, "/status")["openConnections"] == 0)
    });
}

#[test]
fn many_pods_come_and_go_and_nothing_is_left_of_them() {
    let count = times(30, 500);
    // A node of the lab has 253 addresses.
    let world = World::with("churn", &Options { nodes: 3, ..Options::default() });
    let enrolled = || {
        ["node1", "node2", "node3"].map(|node| {
            let pods = world.pinned::<8, { size_of::<EnrolledPod>() }>(node, "PODS");
            pods.keys().collect::<Result<Vec<_>, MapError>>().map_or(0, |keys| keys.len())
        })
    };
    let before = enrolled();
    let many = format!(
        "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: many, namespace: app}}\nspec:\n  replicas: {count}\n  selector: {{matchLabels: {{app: many}}}}\n  template:\n    metadata: {{labels: {{app: many}}}}\n    spec:\n      serviceAccountName: client\n      containers: [{{name: main, command: [sleep, infinity]}}]\n"
    );
    let began = Instant::now();
    world.apply(&many);
    world.lab.wait_ready(LONG).unwrap();
    let all = mesh_lab::poll(LONG, || {
        (enrolled().iter().sum::<usize>() == before.iter().sum::<usize>() + count).then_some(())
    });
    assert!(all.is_some(), "of {count} pods and {before:?} before there are {:?}", enrolled());
    let came = began.elapsed();
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok);
    world.lab.delete(&many).unwrap();
    let none = mesh_lab::poll(LONG, || (enrolled() == before).then_some(()));
    assert!(none.is_some(), "left: {:?}, before {before:?}", enrolled());
    println!("{count} pods were there after {came:?}, and gone after {:?}", began.elapsed());
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok);
}

/// As after a restart of the node: what was pinned is gone, and the pods are those that the node starts
/// again.
#[test]
fn an_agent_that_finds_nothing_pinned_starts_anew() {
    let world = World::new("anew");
    world.lab.agent("node1").kill().unwrap();
    world.clean_up("node1");
    assert!(world.client("out", "client", &["who", "server.out", PORT]).ok, "the node is without the mesh");
    world.lab.agent("node1").start().unwrap();
    let through_the_mesh =
        || world.metric("node1", "istio_tcp_connections_opened_total", "reporter=\"source\"");
    // Until they are enrolled again they connect without it.
    eventually("the pods are in the mesh", || {
        world.client("app", "client", &["who", "server.app", PORT]).ok && through_the_mesh() > 0.5
    });
    assert!(!world.agent_log("node1").contains("took over from a predecessor"));
}
