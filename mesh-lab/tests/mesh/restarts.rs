//! Agents and the control plane come and go.

use std::process::Stdio;
use std::time::{Duration, Instant};

use mesh_lab::Options;
use rustix::process::{Pid, Signal, kill_process};

use crate::held::Held;
use crate::storm::{Running, Server, Window, now};
use crate::world::{PORT, World, eventually};

/// New connections a second, while agents come and go.
const RATE: u32 = 1000;

/// `few` times, or as often as the figures in docs/performance/restarts.md are for.
pub fn times(few: usize, many: usize) -> usize {
    if std::env::var_os("NODEMESH_LONG").is_some() { many } else { few }
}

/// The proxy that a node's keeper runs.
pub fn proxy_of(world: &World, node: &str) -> Option<u32> {
    let status = world.lab.status().unwrap();
    let found = status.nodes.iter().find(|it| it.name == node).unwrap();
    found.agent.as_ref().unwrap().children.first().copied()
}

pub fn signal(process: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(process).unwrap()).unwrap(), signal).unwrap();
}

/// Whether a process has ended with all of its threads: it is gone, or its keeper has not looked after it
/// yet. The first thread alone may be over while another, which has yet to get a core, still holds every
/// socket open.
fn has_ended(pid: u32) -> bool {
    let threads = std::fs::read_dir(format!("/proc/{pid}/task")).map_or(0, Iterator::count);
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    threads <= 1 && status.rsplit_once(") ").is_none_or(|(_, state)| state.starts_with(['Z', 'X']))
}

/// Kills a process and waits for its end.
fn kill(pid: u32) -> Window {
    let from = now();
    signal(pid, Signal::KILL);
    let deadline = Instant::now() + Duration::from_secs(5);
    while !has_ended(pid) {
        assert!(Instant::now() < deadline, "process {pid} does not end");
        std::thread::sleep(Duration::from_micros(200));
    }
    Window { from, to: now() }
}

/// Waits until a node's agent serves, in another proxy than `last`. Returns how long that took.
pub fn served_again(world: &World, node: &str, last: u32) -> Duration {
    let began = Instant::now();
    eventually("the next proxy serves", || {
        proxy_of(world, node).is_some_and(|proxy| proxy != last)
            && world.admin(node, "/status")["ready"] == true
    });
    began.elapsed()
}

/// Connections that a node's proxy carries; none while it does not answer.
fn open(world: &World, node: &str) -> Option<u64> {
    world.admin(node, "/status")["openConnections"].as_u64()
}

#[test]
fn traffic_goes_on_without_the_control_plane() {
    let world = World::new("nocontrol");
    world.lab.control().stop().unwrap();
    let ran = world.client("app", "client", &["load", "server.app", PORT, "5"]);
    assert!(ran.text.contains("failed 0"), "{ran:?}");
    world.lab.agent("node1").restart().unwrap();
    eventually("the agent says that it waits", || {
        world.agent_log("node1").contains("waiting for the control plane")
    });
    assert!(!world.client("app", "client", &["who", "server.app", PORT]).ok, "fails closed meanwhile");
    world.lab.control().start().unwrap();
    eventually("recovered", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

#[test]
fn a_killed_agent_fails_closed_and_the_next_takes_over() {
    let world = World::new("killed");
    let load = world
        .client_command("app", "client", &["load", "server.app", PORT, "6"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    world.lab.agent("node1").kill().unwrap();
    let ran = world.client("app", "client", &["who", "server.app", PORT]);
    assert!(!ran.ok && ran.error.contains("refused"), "refused at once, not let out in plaintext: {ran:?}");
    let outside = world.client("out", "client", &["who", "server.out", PORT]);
    assert!(outside.ok, "what the mesh has nothing to do with is not touched: {outside:?}");
    world.lab.agent("node1").start().unwrap();
    eventually("taken over", || world.client("app", "client", &["who", "server.app", PORT]).ok);
    let output = load.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(text.starts_with("done"), "no connection hung: {text}");
    // The server's node is next; its probes go on passing.
    world.lab.agent("node2").kill().unwrap();
    assert!(!world.client("app", "client", &["who", "server.app", PORT]).ok);
    world.lab.agent("node2").start().unwrap();
    eventually("taken over", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

#[test]
fn a_stop_lets_open_connections_finish() {
    let world = World::new("drain");
    eventually("nothing is open yet", || open(&world, "node1") == Some(0));
    let mut slow = world.client_command("app", "client", &["stall", "server.app", PORT, "2", "50000000"]);
    let slow = slow.stdout(Stdio::piped()).spawn().unwrap();
    eventually("open", || open(&world, "node1") == Some(1));
    world.lab.agent("node1").stop().unwrap();
    let output = slow.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    let (sent, received) = text.trim().split_once(' ').expect("it got to its end");
    assert_eq!(sent, received);
    world.logged("node1", "told to stop");
}

#[test]
fn a_killed_proxy_costs_no_new_connection() {
    let world = World::new("proxykill");
    let server = Server::start(&world, "server");
    let storm = Running::connect(&world, "client", &server, RATE);
    let (mut ends, mut longest) = (Vec::new(), Duration::ZERO);
    for round in 0..times(20, 100) {
        let node = ["node1", "node2"][round % 2];
        let proxy = proxy_of(&world, node).unwrap();
        ends.push(kill(proxy));
        longest = longest.max(served_again(&world, node, proxy));
        // Otherwise the next kill would only meet connections that waited, and excuse them all.
        eventually("what waited is served", || {
            ["node1", "node2"].iter().all(|node| open(&world, node).is_some_and(|open| open < 100))
        });
    }
    let storm = storm.end();
    let (failed, in_flight) = (storm.failed(&ends), storm.broken.len());
    println!(
        "{} kills, {} connections, {in_flight} in flight reset, {} failed; ready again within {longest:?}, longest {:?}",
        ends.len(),
        storm.done,
        failed.len(),
        storm.longest,
    );
    let logs = || ["node1", "node2"].map(|node| world.agent_log(node)).concat();
    assert!(failed.is_empty(), "{failed:#?}, though these ended: {ends:?}\n{}", logs());
    assert!(storm.done > 1000, "{} connections", storm.done);
    world.logged("node1", "the proxy is gone");
}

#[test]
fn a_killed_proxys_connections_are_reset_at_once() {
    let world = World::new("proxyreset");
    let held = Held::open(&world, "client", "20");
    kill(proxy_of(&world, "node1").unwrap());
    let outcome = held.outcome();
    let (how, seconds) = outcome.split_once(' ').unwrap();
    assert_eq!(how, "reset", "not closed as if it had ended");
    assert!(seconds.parse::<f64>().unwrap() < 2.0, "{outcome}");
}

#[test]
fn the_proxy_may_do_nothing_that_the_keeper_is_for() {
    let world = World::new("confined");
    let proxy = proxy_of(&world, "node1").unwrap();
    let tasks = std::fs::read_dir(format!("/proc/{proxy}/task")).unwrap();
    let mut threads = 0;
    for task in tasks.map(|task| task.unwrap().path()) {
        let status = std::fs::read_to_string(task.join("status")).unwrap();
        let field = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name));
            line.unwrap_or_else(|| panic!("no {name}")).trim().to_owned()
        };
        for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
            assert_eq!(u64::from_str_radix(&field(set), 16), Ok(0), "{set} of {}", task.display());
        }
        assert_eq!((field("NoNewPrivs:"), field("Seccomp:")), ("1".to_owned(), "2".to_owned()));
        threads += 1;
    }
    assert!(threads > 1);
}

#[test]
fn both_killed_hang_nothing_and_are_back_within_a_second() {
    let world = World::new("bothkill");
    let server = Server::start(&world, "server");
    let storm = Running::connect(&world, "client", &server, RATE / 4);
    let (mut longest, mut ends) = (Duration::ZERO, Vec::new());
    for _ in 0..times(3, 20) {
        let began = Instant::now();
        let from = now();
        world.lab.agent("node1").kill().unwrap();
        world.lab.agent("node1").start().unwrap();
        eventually("serves again", || world.client("app", "client", &["who", "server.app", PORT]).ok);
        longest = longest.max(began.elapsed());
        ends.push(Window { from, to: now() });
    }
    let storm = storm.end();
    println!(
        "{} kills of both, {} connections, {} refused or reset meanwhile; serves again within {longest:?}, longest {:?}",
        ends.len(),
        storm.done,
        storm.broken.len(),
        storm.longest,
    );
    assert!(storm.failed(&ends).is_empty(), "{:#?}", storm.failed(&ends));
    assert!(storm.longest < Duration::from_secs(10), "nothing hangs: {:?}", storm.longest);
    assert!(longest < Duration::from_secs(2), "back after {longest:?}");
}

#[test]
fn an_upgrade_costs_no_connection_old_or_new() {
    let arguments = ["--drain-timeout=1h", "--workers=2"].map(str::to_owned).to_vec();
    let world = World::with("upgrade", &Options { agent_arguments: arguments, ..Options::default() });
    let server = Server::start(&world, "server");
    let held = Running::hold(&world, "client", &server, u32::try_from(times(100, 1000)).unwrap());
    let storm = Running::connect(&world, "client", &server, RATE / 2);
    for round in 0..times(4, 20) {
        world.lab.agent(["node1", "node2"][round % 2]).upgrade().unwrap();
    }
    let (storm, held) = (storm.end(), held.end());
    // Proxies that finish and the one that serves are all exempt, or the server would not see its client.
    let (seen, own) =
        (world.client("app", "client", &["who", "server.app", PORT]), world.addresses("app", "client"));
    assert!(own.iter().any(|own| seen.words()[1] == own), "{seen:?}");
    println!("{} connections, longest {:?}; {} held", storm.done, storm.longest, held.done);
    assert!(storm.broken.is_empty(), "{:#?}", storm.broken);
    assert!(held.broken.is_empty() && held.done >= 100, "{:#?}", held.broken);
    world.logged("node1", "took over from a predecessor");
}

/// Otherwise a pod that gets the address has a port that every process of the node reaches past its policy.
#[test]
fn probes_of_pods_that_went_while_no_agent_ran_are_let_through_no_longer() {
    let world = World::new("probesgone");
    let probes = || world.pinned::<20, 4>("node2", "PROBE_PORTS").keys().count();
    assert_eq!(probes(), 2, "the server's port at its two addresses");
    world.lab.agent("node2").kill().unwrap();
    let server = "apiVersion: v1\nkind: Pod\nmetadata: {name: server, namespace: app}\n";
    world.lab.delete(server).unwrap();
    world.lab.agent("node2").start().unwrap();
    eventually("they are gone", || probes() == 0);
}

#[test]
fn maps_of_another_layout_are_replaced() {
    let world = World::new("layout");
    world.lab.agent("node1").kill().unwrap();
    let node = world.lab.layout().node("node1");
    let pins = node.bpf();
    let current: Vec<_> = std::fs::read_dir(pins).unwrap().map(|it| it.unwrap().path()).collect();
    assert_eq!(current.len(), 1, "{current:?}");
    std::fs::rename(&current[0], pins.join("v0")).unwrap();
    world.lab.agent("node1").start().unwrap();
    eventually("serves", || world.client("app", "client", &["who", "server.app", PORT]).ok);
    eventually("the other layout is gone", || !pins.join("v0").exists() && current[0].exists());
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok);
}
