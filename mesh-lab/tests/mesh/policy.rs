//! A representative set of policies on live traffic; the semantics case by case are mesh-api's authorization
//! table.

use std::time::{Duration, Instant};

use crate::held::Held;
use crate::world::{PORT, World, eventually};

fn policy(name: &str, action: &str, rules: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: {name}, namespace: app}}\nspec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: {action}\n  rules: {rules}\n"
    )
}

fn reaches(world: &World, pod: &str) -> bool {
    world.client("app", pod, &["who", "server.app", PORT]).ok
}

#[test]
fn allow_and_deny_by_account_namespace_port_and_address() {
    let world = World::new("policy");
    let [v4, v6] = world.addresses("app", "other");
    let cases = [
        (
            "DENY",
            "[{from: [{source: {principals: [cluster.local/ns/app/sa/other]}}]}]".to_owned(),
            true,
            false,
        ),
        ("ALLOW", "[{from: [{source: {principals: ['*/sa/client']}}]}]".to_owned(), true, false),
        ("ALLOW", "[{from: [{source: {namespaces: [app]}}]}]".to_owned(), true, true),
        ("ALLOW", "[{from: [{source: {notNamespaces: [app]}}]}]".to_owned(), false, false),
        ("DENY", format!("[{{to: [{{operation: {{ports: ['{PORT}']}}}}]}}]"), false, false),
        ("DENY", format!("[{{to: [{{operation: {{notPorts: ['{PORT}']}}}}]}}]"), true, true),
        ("DENY", format!("[{{from: [{{source: {{ipBlocks: ['{v4}/32', '{v6}/128']}}}}]}}]"), true, false),
        ("ALLOW", "[]".to_owned(), false, false),
        ("ALLOW", "[{to: [{operation: {methods: [GET]}}]}]".to_owned(), false, false),
        ("AUDIT", "[{}]".to_owned(), true, true),
    ];
    for (action, rules, client, other) in cases {
        let manifest = policy("case", action, &rules);
        world.apply(&manifest);
        // Both pods on node1, and the client's twin beside the server, whose connections are never encrypted.
        for (pod, expected) in [("client", client), ("neighbour", client), ("other", other)] {
            eventually(&format!("{action} {rules}: {pod} {expected}"), || reaches(&world, pod) == expected);
        }
        world.lab.delete(&manifest).unwrap();
        eventually("open again", || reaches(&world, "other") && reaches(&world, "neighbour"));
    }
    world.logged("node2", "app/case");
}

#[test]
fn a_change_closes_established_connections_within_a_second() {
    let world = World::new("revoke");
    for pod in ["client", "neighbour"] {
        let held = Held::open(&world, pod, "20");
        let began = Instant::now();
        let deny =
            policy("late", "DENY", "[{from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]}]");
        world.apply(&deny);
        let outcome = held.outcome();
        let took = began.elapsed();
        assert!(outcome.starts_with("reset") || outcome.starts_with("closed"), "{pod}: {outcome}");
        assert!(took < Duration::from_secs(1), "{pod}: after {took:?}");
        world.lab.delete(&deny).unwrap();
        eventually("open again", || reaches(&world, pod));
    }
    world.logged("node2", "policy changed");
    assert!(world.metric("node2", "nodemesh_connections_revoked_total", "") > 1.5);
}
