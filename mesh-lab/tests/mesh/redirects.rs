//! Pods that istio-cni's redirect rules are in.

use crate::pods::state_of;
use crate::world::{PORT, World, eventually, idle_pod};

/// What istio-cni makes in a pod's network namespace, how that is named, and how it goes.
const RULES: [(&str, &str, &str); 3] = [
    (
        "ip rule add fwmark 0x111/0xfff pref 32764 lookup 100 && ip route add local default dev lo table 100",
        "ip rule fwmark 0x111/0xfff lookup 100",
        "ip rule del fwmark 0x111/0xfff && ip route flush table 100",
    ),
    (
        "iptables -t nat -N ISTIO_PRERT && iptables -t nat -A PREROUTING -j ISTIO_PRERT &&
         iptables -t nat -A ISTIO_PRERT -p tcp -j REDIRECT --to-ports 15006",
        "chain ISTIO_PRERT of table nat",
        // The chain itself may stay, and then does nothing.
        "iptables -t nat -D PREROUTING -j ISTIO_PRERT && iptables -t nat -F ISTIO_PRERT",
    ),
    (
        "nft add table inet istio-ambient-nat && nft add chain inet istio-ambient-nat istio-output &&
         nft add rule inet istio-ambient-nat istio-output meta l4proto tcp redirect to :15001",
        "chain istio-output of table istio-ambient-nat",
        "nft delete table inet istio-ambient-nat",
    ),
];

fn pod(label: &str) -> String {
    let labels = format!("labels: {{app: late, nodemesh.io/dataplane: {label}}}");
    let manifest = idle_pod("late", "node1", "client");
    assert!(manifest.contains("labels: {app: late}"), "{manifest}");
    manifest.replace("labels: {app: late}", &labels)
}

/// Why the agent says that the pod is as it is.
fn reason(world: &World) -> String {
    let pods = world.admin("node1", "/pods");
    let found = pods.as_array().into_iter().flatten().find(|it| it["name"] == "late");
    found.and_then(|it| it["reason"].as_str()).unwrap_or_default().to_owned()
}

#[test]
fn a_pod_with_istio_cnis_redirect_rules_is_taken_in_once_they_are_gone() {
    let world = World::new("redirects");
    world.apply(&pod("disabled"));
    eventually("it runs", || world.exec("app", "late", &["true"]).ok);
    for (add, sign, remove) in RULES {
        let run = |command: &str| {
            let ran = world.exec("app", "late", &["sh", "-c", command]);
            assert!(ran.ok, "{command}: {ran:?}");
        };
        run(add);
        world.apply(&pod("enabled"));
        eventually(sign, || state_of(&world, "late") == "failed");
        let reason = reason(&world);
        assert!(reason.contains(&format!("({sign})")) && reason.contains("restart the pod"), "{reason}");
        world.logged("node1", sign);
        run(remove);
        eventually("it is taken in without them", || state_of(&world, "late") == "enrolled");
        eventually("and works", || world.client("app", "late", &["who", "server.app", PORT]).ok);
        world.apply(&pod("disabled"));
        eventually("it is let go", || state_of(&world, "late") == "notselected");
    }
}

/// What a pod that is in the mesh does to itself is no reason to put it out, which would be into plaintext.
#[test]
fn a_pod_that_is_in_the_mesh_stays_in_it_over_restarts_whatever_rules_it_makes() {
    let world = World::new("redirectsin");
    world.apply(&pod("enabled"));
    eventually("it is in the mesh", || state_of(&world, "late") == "enrolled");
    eventually("it runs", || world.exec("app", "late", &["true"]).ok);
    assert!(world.exec("app", "late", &["sh", "-c", RULES[0].0]).ok);
    world.lab.agent("node1").kill_proxy().unwrap();
    eventually("after a proxy was killed", || state_of(&world, "late") == "enrolled");
    world.lab.agent("node1").kill().unwrap();
    world.lab.agent("node1").start().unwrap();
    eventually("after an agent was killed", || state_of(&world, "late") == "enrolled");
}
