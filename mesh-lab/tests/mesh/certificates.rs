//! Short certificates and new roots under load.

use std::process::Stdio;

use mesh_lab::Options;

use crate::world::{PORT, World, eventually};

/// How long the load goes on, in seconds: enough for several renewals here; `NODEMESH_LONG` makes it the five
/// minutes that a release is checked with.
fn seconds() -> &'static str {
    if std::env::var_os("NODEMESH_LONG").is_some() { "300" } else { "40" }
}

fn lifetime() -> &'static str {
    if std::env::var_os("NODEMESH_LONG").is_some() { "60s" } else { "10s" }
}

fn certificates_of(lifetime: &str) -> Options {
    Options { workload_cert_ttl: Some(lifetime.to_owned()), ..Options::default() }
}

/// Of the client's certificate.
pub fn serial(world: &World) -> String {
    let list = world.admin("node1", "/certs");
    let found =
        list.as_array().unwrap().iter().find(|it| it["identity"].as_str().unwrap().ends_with("/sa/client"));
    found.unwrap()["serial"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn renewals_under_load_fail_no_connection() {
    let world = World::with("renew", &certificates_of(lifetime()));
    let before = serial(&world);
    let ran = world.client("app", "client", &["load", "server.app", PORT, seconds()]);
    assert!(ran.text.contains("failed 0"), "{ran:?}");
    assert_ne!(serial(&world), before, "there was a renewal");
}

#[test]
fn a_root_rotation_under_load_fails_no_connection() {
    // Each step of a rotation waits for a lifetime to pass, so it stays short here.
    let world = World::with("rotate", &certificates_of("10s"));
    let load = world
        .client_command("app", "client", &["load", "server.app", PORT, "90"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let state = world.lab.layout().control().state();
    for step in ["add", "sign", "drop"] {
        eventually(step, || {
            let mut command = std::process::Command::new(crate::world::control_binary());
            command.args(["rotate-root", "--state-dir"]).arg(&state).args(["--step", step]);
            command.output().unwrap().status.success()
        });
    }
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.contains("failed 0"), "{text}");
}

#[test]
fn without_a_control_plane_for_longer_than_certificates_live_nothing_gets_out_in_plaintext() {
    let world = World::with("expiry", &certificates_of("10s"));
    world.lab.control().stop().unwrap();
    eventually("certificates run out", || !world.client("app", "client", &["who", "server.app", PORT]).ok);
    eventually("the log says so", || {
        // The server's may have run out first.
        assert!(!world.client("app", "client", &["who", "server.app", PORT]).ok);
        world.agent_log("node1").contains("no valid certificate")
    });
    assert!(world.client("out", "client", &["who", "server.out", PORT]).ok, "others are left alone");
    world.lab.control().start().unwrap();
    eventually("recovered", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}
