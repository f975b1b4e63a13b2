//! Floods of frames without data, and connections that prove nothing: they are ended, and others hardly
//! notice.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use mesh_lab::Options;

use crate::garbage::member;
use crate::restarts::proxy_of;
use crate::world::{PORT, World, eventually};

const FLOODS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/floods.py");

/// The authority, as nodes and pods reach it.
const CONTROL: &str = "172.30.0.1";

/// Rounds of alone and flooded in turns after which the medians are compared: the machine may be busy with
/// something else in one of them, so what is not clear after three is measured further.
const ROUNDS: [usize; 3] = [3, 5, 9];

/// Only the client may.
const ONLY_CLIENT: &str = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: only-client, namespace: app}\nspec:\n  selector: {matchLabels: {app: server}}\n  action: ALLOW\n  rules:\n  - from: [{source: {principals: [cluster.local/ns/app/sa/client]}}]\n";

/// `floods.py` in a pod of the namespace outside of the mesh. It runs when nothing else wants to: what others
/// notice is to be the answer to the flood, not its making.
fn stranger(world: &World, arguments: &[&str]) -> Command {
    let mut program = vec!["chrt", "--idle", "0", "python3", "-u", FLOODS];
    program.extend(arguments);
    let mut command = world.lab.exec_command("out", "client", &program);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    command
}

/// What one sees who has nothing to do with it.
#[derive(Debug)]
struct Seen {
    count: u32,
    failed: u32,
    p99: f64,
}

fn seen(text: &str) -> Seen {
    let words: Vec<&str> = text.split_whitespace().collect();
    let [count, failed, _median, p99] = words[..] else { panic!("{text:?}") };
    Seen { count: count.parse().unwrap(), failed: failed.parse().unwrap(), p99: p99.parse().unwrap() }
}

fn median(all: &[f64]) -> f64 {
    let mut sorted = all.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted[sorted.len() / 2]
}

/// A bystander's 99th percentiles in milliseconds, alone and flooded in turns.
#[derive(Debug, Default)]
struct Bystander {
    alone: Vec<f64>,
    flooded: Vec<f64>,
}

impl Bystander {
    fn notices_less_than_twice(&self) -> bool {
        median(&self.flooded) <= 2.0 * median(&self.alone)
    }
}

/// Nothing fails for the bystander, and its 99th percentile is within twice of what it is alone. Returns what
/// each flood said of itself.
fn bystander_hardly_notices(kind: &str, look: impl Fn() -> Seen, flood: impl Fn() -> Child) -> Vec<String> {
    let mut bystander = Bystander::default();
    let mut told = Vec::new();
    for rounds in ROUNDS {
        while told.len() < rounds {
            let alone = look();
            let flooding = flood();
            let flooded = look();
            told.push(String::from_utf8(flooding.wait_with_output().unwrap().stdout).unwrap());
            assert!(alone.count > 10 && flooded.count > 3, "{kind}: {alone:?}, {flooded:?}");
            assert_eq!(flooded.failed, 0, "{kind}: {flooded:?}");
            bystander.alone.push(alone.p99);
            bystander.flooded.push(flooded.p99);
        }
        if bystander.notices_less_than_twice() {
            break;
        }
    }
    eprintln!("{kind}: {bystander:.1?}");
    assert!(bystander.notices_less_than_twice(), "{kind}: {bystander:?}, {told:?}");
    told
}

/// A directory for certificates, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("nodemesh-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _gone_already = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn a_denied_peers_floods_are_cut_off_and_cost_a_bystander_nothing() {
    let world = World::new("floods");
    world.apply(ONLY_CLIENT);
    let scratch = Scratch::new("floods");
    let (certificate, key) = member(&world, &scratch.0, "spiffe://cluster.local/ns/app/sa/other", "1h");
    let server = world.addresses("app", "server")[0].clone();
    let authority = format!("{server}:{PORT}");
    eventually("the other account is denied", || {
        !world.client("app", "other", &["who", "server.app", PORT]).ok
    });
    let latency = || {
        let arguments = ["python3", FLOODS, "latency", "server.app", PORT, "1.5"];
        seen(&world.exec("app", "client", &arguments).text)
    };
    for (kind, calm) in [
        ("window-update", "11"),
        ("priority", "11"),
        ("ping", "11"),
        ("settings", "11"),
        ("unknown", "11"),
        ("empty-data", "11"),
        ("continuation", "11"),
        ("rapid-reset", "11"),
        ("mesh-credit", "3"),
        ("mesh-ping", "3"),
        ("mesh-unknown", "3"),
        ("mesh-rapid-reset", "3"),
    ] {
        let floods = bystander_hardly_notices(kind, latency, || {
            let flood = ["flood", &server, "15008", "2.5", "4", kind, &certificate, &key, &authority];
            stranger(&world, &flood).spawn().unwrap()
        });
        for told in floods {
            let (cut, reasons) = told.split_once("reasons").unwrap_or((&told, ""));
            let cut: u32 = cut.split_whitespace().nth(1).unwrap().parse().unwrap();
            // Four connections each second, and not one for each handshake that the peer can pay for.
            assert!((1..=24).contains(&cut), "{kind}: {told}");
            assert!(reasons.split_whitespace().any(|reason| reason == calm), "{kind}: {told}");
        }
    }
    eventually("nothing stays open", || world.admin("node2", "/status")["openConnections"] == 0);
}

#[test]
fn strangers_floods_on_the_authority_are_cut_off_and_cost_others_nothing() {
    let world = World::new("authflood");
    let handshakes = || {
        let output =
            world.lab.node_exec("node1", &["python3", FLOODS, "handshakes", CONTROL, "15012", "1.5"]);
        seen(&String::from_utf8(output.unwrap().stdout).unwrap())
    };
    for kind in ["window-update", "priority", "ping", "settings", "unknown", "rapid-reset"] {
        let floods = bystander_hardly_notices(kind, handshakes, || {
            stranger(&world, &["flood", CONTROL, "15012", "2.5", "4", kind, "", "", "10.9.9.9:1"])
                .spawn()
                .unwrap()
        });
        for told in floods {
            assert!(!told.starts_with("cut 0 "), "{kind}: {told}");
            assert!(told.split_whitespace().any(|word| word == "11"), "{kind}: {told}");
        }
    }
    // A certificate in the midst of one: a pod with an account that the node does not have yet.
    let flood = stranger(&world, &["flood", CONTROL, "15012", "6", "4", "priority", "", "", "10.9.9.9:1"])
        .spawn()
        .unwrap();
    world.apply(&crate::world::idle_pod("late", "node1", "late"));
    eventually("a new account has its certificate", || {
        world.client("app", "late", &["who", "server.app", PORT]).ok
    });
    flood.wait_with_output().unwrap();
}

/// Starts connections that are held until their holder's input ends.
fn hold(world: &World, arguments: &[&str]) -> Child {
    let mut holder = stranger(world, arguments).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(holder.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line.trim(), "holding");
    holder
}

/// Ends the holder, which tells what of its first connections is left.
fn let_go(mut holder: Child) -> u32 {
    drop(holder.stdin.take());
    let told = String::from_utf8(holder.wait_with_output().unwrap().stdout).unwrap();
    told.split_whitespace().last().unwrap().parse().unwrap()
}

#[test]
fn connections_that_prove_nothing_take_no_place_of_others_at_the_authority() {
    let world = World::new("squatters");
    let control = world.lab.status().unwrap().control.unwrap().pid.unwrap();
    let before = resident(control);
    let begun = Instant::now();
    let silent = hold(&world, &["hold", CONTROL, "15012", "tls", "1000"]);
    let idle = hold(&world, &["hold", CONTROL, "15012", "tcp", "2000"]);
    for _ in 0..3 {
        let output = world.lab.node_exec("node1", &["python3", FLOODS, "handshakes", CONTROL, "15012", "1"]);
        let honest = seen(&String::from_utf8(output.unwrap().stdout).unwrap());
        assert!(honest.failed == 0 && honest.p99 < 1000.0, "{honest:?}");
    }
    world.apply(&crate::world::idle_pod("late", "node1", "late"));
    eventually("a new account has its certificate", || {
        world.client("app", "late", &["who", "server.app", PORT]).ok
    });
    let grown = resident(control).saturating_sub(before);
    assert!(grown < 80_000, "kB for 512 strangers' connections: {grown}");
    // Those that shook hands and said nothing else have twenty seconds.
    std::thread::sleep(Duration::from_secs(24).saturating_sub(begun.elapsed()));
    assert_eq!(let_go(silent), 0, "sessions that are silent");
    let_go(idle);
    let agents =
        || world.lab.node_exec("fabric", &["curl", "-sS", "-m", "5", "http://127.0.0.1:15014/metrics"]);
    let connected = String::from_utf8(agents().unwrap().stdout).unwrap();
    assert!(connected.contains("mesh_control_agents 2"), "the agents stay: {connected}");
}

/// Kilobytes of memory that a process has.
fn resident(process: u32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[test]
fn unfinished_handshakes_from_many_addresses_and_silent_sessions_hold_no_place() {
    let world = World::new("unfinished");
    world.apply(ONLY_CLIENT);
    let [server, server6] = world.addresses("app", "server");
    let own = world.addresses("out", "client")[1].clone();
    let network = own.rsplit_once(':').unwrap().0;
    for host in 0..16 {
        let address = format!("{network}:{:x}/128", 0x1000 + host);
        assert!(
            world.exec("out", "client", &["ip", "-6", "addr", "add", &address, "dev", "eth0", "nodad"]).ok
        );
    }
    let holders = [&server, &server6].map(|address| hold(&world, &["hold", address, "15008", "tcp", "600"]));
    // Each is of a node that has no connection to this pod yet.
    for _ in 0..5 {
        world.lab.command(&["agent", "kill", "--proxy", "node1"]).status().unwrap();
        eventually("an honest peer has its handshake", || {
            world.client("app", "client", &["who", "server.app", PORT]).ok
        });
    }
    holders.into_iter().for_each(|holder| {
        let_go(holder);
    });
    let scratch = Scratch::new("unfinished");
    let (certificate, key) = member(&world, &scratch.0, "spiffe://cluster.local/ns/app/sa/other", "1h");
    let output = stranger(&world, &["idle", &server, "15008", "40", &certificate, &key]).output().unwrap();
    let told = String::from_utf8(output.stdout).unwrap();
    assert!(told.starts_with("closed"), "a session without a stream: {told}");
}

/// The way is opened before a connection is accepted, so what is never accepted has to be given up. What is
/// accepted counts as the pod's, like all its connections.
#[test]
fn connections_that_a_pod_abandons_at_once_are_bounded_and_soon_gone() {
    const OF_THE_POD: usize = 1000;
    let agent_arguments = vec![format!("--pod-connections={OF_THE_POD}")];
    let world = World::with("abandoned", &Options { agent_arguments, ..Options::default() });
    let proxy = proxy_of(&world, "node1").unwrap();
    let descriptors = || std::fs::read_dir(format!("/proc/{proxy}/fd")).unwrap().count();
    let at_rest = descriptors();
    let mut flood = world.client_command("app", "client", &["abandon", "server.app", PORT, "3"]);
    let flood = flood.stdout(Stdio::piped()).spawn().unwrap();
    let (mut most, end) = (0, Instant::now() + Duration::from_secs(3));
    while Instant::now() < end {
        // Of another server: this one has the flood's connections.
        assert!(world.client("app", "other", &["who", "server.out", PORT]).ok, "others are served");
        most = most.max(descriptors() - at_rest);
    }
    let output = flood.wait_with_output().unwrap();
    let abandoned: usize = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    assert!(abandoned > 2 * OF_THE_POD, "{abandoned} abandoned");
    assert!(most < 2 * OF_THE_POD, "{most} descriptors at once");
    // But sockets that are ready for the next.
    eventually("nothing is left of them", || descriptors() < at_rest + 200);
    eventually("the pod is served", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}
