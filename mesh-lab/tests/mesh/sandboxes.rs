//! A pod is its sandbox's network namespace, whatever its processes make.

use mesh_common::maps::EnrolledPod;

use crate::pods::state_of;
use crate::world::{PORT, World, eventually, mutual_tls};

/// Something that happens to an agent, and how it is done.
type Step<'a> = (&'a str, Box<dyn Fn() + 'a>);

/// Says which network namespace it runs in: `SO_NETNS_COOKIE`.
const COOKIE: &str =
    "import socket; print(int.from_bytes(socket.socket().getsockopt(1, 71, 8), 'little'), flush=True)";

/// The program of a pod's first process, without any privilege: it goes on in a user and network namespace of
/// its own, with the addresses that the pod has.
const NEST: &str = r#"until A="$(hostname -I)" && [ -n "$A" ]; do sleep 0.1; done; export A; exec unshare -Urn bash -c '
ip link set lo up
for a in $A; do case $a in *:*) ip -6 addr add $a/128 dev lo nodad;; *) ip addr add $a/32 dev lo;; esac; done
python3 -c "$COOKIE"; exec sleep infinity'"#;

/// A pod whose first container's process nests, and whose second serves.
fn nesting_pod(namespace: &str) -> String {
    let indented = NEST.replace('\n', "\n      ");
    format!(
        r#"apiVersion: v1
kind: Pod
metadata: {{name: nest, namespace: {namespace}, labels: {{app: nest}}}}
spec:
  nodeName: node1
  serviceAccountName: client
  containers:
  - name: a
    command: [setpriv, --reuid=65534, --regid=65534, --clear-groups, --bounding-set=-all, --inh-caps=-all, bash, -c]
    args:
    - |-
      {indented}
    env: [{{name: COOKIE, value: "{COOKIE}"}}]
  - name: z
    command: [sleep, infinity]
"#
    )
}

/// A pod that has nested: the cookies of its own namespace and of the one that it made.
fn nested(world: &World, namespace: &str) -> (u64, u64) {
    world.apply(&nesting_pod(namespace));
    let said = || world.lab.logs(namespace, "nest", Some("a")).unwrap_or_default().trim().parse().ok();
    eventually("it has nested", || said().is_some());
    let own = world.exec(namespace, "nest", &["python3", "-c", COOKIE]).text.parse().unwrap();
    let nested = said().unwrap();
    assert_ne!(own, nested);
    (own, nested)
}

/// Whether of the two the pod's own is the one that the kernel knows as a pod of the mesh.
fn is_itself(world: &World, (own, nested): (u64, u64)) -> bool {
    let pods = world.pinned::<8, { size_of::<EnrolledPod>() }>("node1", "PODS");
    let has = |cookie: u64| pods.get(&cookie.to_ne_bytes(), 0).is_ok();
    assert!(!has(nested), "the namespace that the pod made is in the mesh for it");
    has(own)
}

fn reaches_the_server(world: &World) -> bool {
    world.client("app", "nest", &["who", "server.app", PORT]).ok
}

#[test]
fn a_pod_stays_itself_over_restarts_whatever_its_processes_make() {
    let world = World::new("nested");
    world.apply(&mutual_tls("app", "STRICT"));
    let cookies = nested(&world, "app");
    eventually("it is in the mesh", || is_itself(&world, cookies) && reaches_the_server(&world));
    let agent = world.lab.agent("node1");
    let steps: [Step<'_>; 4] = [
        ("a proxy is killed", Box::new(|| drop(agent.kill_proxy().unwrap()))),
        ("an agent is restarted", Box::new(|| drop(agent.restart().unwrap()))),
        ("an agent is killed", Box::new(|| drop(agent.kill().and_then(|_| agent.start()).unwrap()))),
        ("an agent is replaced", Box::new(|| drop(agent.upgrade().unwrap()))),
    ];
    for (what, step) in steps {
        step();
        eventually(&format!("in the mesh after {what}"), || {
            is_itself(&world, cookies) && state_of(&world, "nest") == "enrolled" && reaches_the_server(&world)
        });
        assert!(is_itself(&world, cookies), "{what}");
    }
}

#[test]
fn a_pod_that_is_taken_in_late_is_taken_for_itself() {
    let world = World::new("nestedlate");
    let cookies = nested(&world, "out");
    assert!(!is_itself(&world, cookies), "not selected");
    world.apply(
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: out, labels: {nodemesh.io/dataplane: enabled}}\n",
    );
    eventually("it is taken in", || state_of(&world, "nest") == "enrolled");
    assert!(is_itself(&world, cookies));
}

/// What was enrolled stays in the kernel, and is refused, when its pod is not to be found in it any more.
#[test]
fn a_pod_whose_sandbox_is_gone_is_not_taken_for_what_is_left_of_it() {
    let world = World::new("nestedalone");
    world.apply(&mutual_tls("app", "STRICT"));
    let (own, nested) = nested(&world, "app");
    eventually("it is in the mesh", || is_itself(&world, (own, nested)));
    world.lab.agent("node1").kill().unwrap();
    // All but the process that nested.
    let uid = world.pod("app", "nest")["metadata"]["uid"].as_str().unwrap().to_owned();
    let pod = world.lab.layout().node("node1").pod_cgroup(&uid);
    for container in ["pause", "z"] {
        std::fs::write(pod.join(container).join("cgroup.kill"), "1").unwrap();
    }
    world.lab.agent("node1").start().unwrap();
    eventually("the reason is told", || {
        world
            .agent_log("node1")
            .contains("no process of the pod is in a network namespace that the container runtime")
    });
    assert_ne!(state_of(&world, "nest"), "enrolled");
    assert!(is_itself(&world, (own, nested)), "what it had is held");
}
