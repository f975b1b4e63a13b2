//! What a proxy leaves to the next one, for when the control plane can't be reached at that moment.

use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::restarts::{proxy_of, signal};
use crate::world::{PORT, World, eventually, mutual_tls};

fn deny(account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny-{account}, namespace: app}}\nspec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: DENY\n  rules: [{{from: [{{source: {{principals: [cluster.local/ns/app/sa/{account}]}}}}]}}]\n"
    )
}

#[test]
fn a_killed_proxy_without_a_control_plane_costs_nothing() {
    let world = World::new("inherit");
    world.apply(&mutual_tls("app", "STRICT"));
    world.apply(&deny("other"));
    let reaches = |pod: &str| world.client("app", pod, &["who", "server.app", PORT]).ok;
    let from_outside = || world.client("out", "client", &["who", "server.app", PORT]).ok;
    eventually("policy is in force", || reaches("client") && !reaches("other") && !from_outside());
    world.lab.control().stop().unwrap();
    for node in ["node1", "node2", "node1"] {
        let last = proxy_of(&world, node).unwrap();
        signal(last, Signal::KILL);
        let began = Instant::now();
        assert!(reaches("client"), "over mutual TLS, since nothing else is let in");
        assert!(began.elapsed() < Duration::from_secs(4), "{node}: {:?}", began.elapsed());
        assert_ne!(proxy_of(&world, node), Some(last));
        assert!(!reaches("other") && !from_outside(), "policy is what it was");
    }
    assert!(world.agent_log("node1").contains("certificates of the proxy before this one are in use"));
    world.apply(&deny("client"));
    world.lab.control().start().unwrap();
    eventually("what the control plane says counts again", || !reaches("client"));
}
