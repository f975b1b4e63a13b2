//! Judged at `connect()`, used at the SYN: a program may put as much time between the two as it likes.

use std::io::{BufRead, BufReader, Lines, Write};
use std::process::{Child, ChildStdout, Stdio};

use mesh_common::direct::{DirectFlowEntry, DirectFlowKey, DirectRoute, DirectRouteKey};
use mesh_lab::poll;

use crate::full::fill;
use crate::restarts::proxy_of;
use crate::same_node::{DIRECT, deny, opened, until_direct};
use crate::world::{PORT, SOON, World, eventually, mutual_tls};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/attacks/delayed.py");

/// Six connections that have been through `connect()` and of which nobody has seen a packet yet.
struct Delayed {
    client: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Delayed {
    /// To a server that connections go to directly.
    fn connect(world: &World) -> Self {
        // The service has addresses of both families, and each is drawn from for itself.
        let server = &world.addresses("app", "server")[0];
        until_direct(world, "neighbour", server);
        let program = ["python3", PROGRAM, server, PORT, "6"];
        let mut command = world.lab.exec_command("app", "neighbour", &program);
        let mut client = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(client.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        Self { client, lines }
    }

    /// Has them write, which sends their SYNs. Returns how many were answered and how many refused, and why.
    fn write(mut self) -> String {
        self.client.stdin.take().unwrap().write_all(b"\n").unwrap();
        let outcome = self.lines.next().unwrap().unwrap();
        self.client.wait().unwrap();
        outcome
    }
}

fn withdrawn(world: &World) -> f64 {
    world.metric("node2", "nodemesh_ebpf_faults_total", "Withdrawn")
}

/// How many destinations connections of the node's pods may go to directly.
fn routes(world: &World) -> usize {
    const KEY: usize = size_of::<DirectRouteKey>();
    const VALUE: usize = size_of::<DirectRoute>();
    World::held_hash::<KEY, VALUE>(proxy_of(world, "node2").unwrap(), "ROUTES").keys().count()
}

#[test]
fn a_yes_that_still_holds_is_used_later() {
    let world = World::new("delayed-yes");
    let delayed = Delayed::connect(&world);
    let before = opened(&world, DIRECT);
    // Much longer than a yes counts without being looked at again.
    std::thread::sleep(std::time::Duration::from_millis(100));
    assert!(delayed.write().starts_with("answered 6 refused 0"));
    eventually("all were direct", || opened(&world, DIRECT) - before > 5.5);
}

#[test]
fn a_yes_from_before_a_policy_is_of_no_use_after_it() {
    let world = World::new("delayed-deny");
    // In plaintext a client has no name that a policy could deny: refused altogether, it does not lose it.
    for mode in ["PERMISSIVE", "STRICT"] {
        world.apply(&mutual_tls("app", mode));
        let delayed = Delayed::connect(&world);
        let before = withdrawn(&world);
        world.apply(&deny("client"));
        eventually("it is denied", || !world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
        // The kernel is told a moment after the proxy knows; what slips through then the agent closes.
        eventually("the kernel knows", || routes(&world) == 0);
        let outcome = delayed.write();
        assert!(outcome.starts_with("answered 0 refused 6") && outcome.contains("refused"), "{outcome}");
        eventually(&format!("they are counted: {mode}, {outcome}"), || withdrawn(&world) - before > 5.5);
        assert!(world.agent_log("node2").contains("no longer allowed when its first packet left"));
        world.lab.delete(&deny("client")).unwrap();
    }
    until_direct(&world, "neighbour", "server.app");
}

#[test]
fn a_yes_is_of_no_use_when_its_agent_is_long_gone() {
    let world = World::new("delayed-alone");
    let delayed = Delayed::connect(&world);
    world.lab.agent("node2").kill().unwrap();
    // As long as they do, what goes directly goes on.
    let server = &world.addresses("app", "server")[0];
    eventually("routes no longer count", || !world.client("app", "neighbour", &["who", server, PORT]).ok);
    let outcome = delayed.write();
    assert!(outcome.starts_with("answered 0 refused 6"), "{outcome}");
}

/// What grants something is never forgotten to make room, so what handshakes leave behind has to be swept up.
#[test]
fn where_no_direct_connection_can_be_filed_it_is_the_proxys_until_there_is_room() {
    let world = World::new("delayed-full");
    until_direct(&world, "neighbour", "server.app");
    fill(
        &mut world.pinned::<{ size_of::<DirectFlowKey>() }, { size_of::<DirectFlowEntry>() }>(
            "node2",
            "DIRECT_FLOWS",
        ),
    );
    let told = || world.metric("node2", "nodemesh_ebpf_faults_total", "DirectFull");
    let ran = world.client("app", "neighbour", &["who", "server.app", PORT]);
    assert!(ran.ok, "in plaintext, which is allowed: {ran:?}");
    eventually("the fault is counted", || told() > 0.5);
    let swept = poll(2 * SOON, || {
        let before = opened(&world, DIRECT);
        assert!(world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
        std::thread::sleep(std::time::Duration::from_millis(250));
        (opened(&world, DIRECT) > before).then_some(())
    });
    assert!(swept.is_some(), "what is left behind is swept up");
}
