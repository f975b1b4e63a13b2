//! Direct connections go from veth to veth: a pod with `NET_RAW` on the bridge that they share reads nothing
//! of them and writes nothing into them.

use std::io::{BufRead, BufReader, Lines, Write};
use std::os::fd::AsFd;
use std::process::{Child, ChildStdout, Stdio};
use std::thread::JoinHandle;
use std::time::Duration;

use aya::programs::SchedClassifier;
use aya::programs::tc::TcAttachType;
use mesh_lab::Options;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::held::Held;
use crate::restarts::times;
use crate::same_node::{DIRECT, opened, until_direct};
use crate::storm::{Running, Server, Window, now};
use crate::world::{PORT, SOON, World, eventually, idle_pod};

const WIRE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/wire.py");

/// Addresses of pods' gateway on node2.
const GATEWAY: [&str; 2] = ["10.244.2.1", "fd00:244:2::1"];

/// A third pod between two others.
struct Wire {
    child: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Wire {
    /// Between two pods of a namespace. It is a pod outside of the mesh: one that is enrolled is stopped at
    /// its own veth.
    fn between(world: &World, namespace: &str, family: usize, more: &[&str]) -> Self {
        let at = |pod: &str| world.addresses(namespace, pod)[family].clone();
        let (client, server) = (at("neighbour"), at("server"));
        let number = ["4", "6"][family];
        let arguments = ["python3", "-u", WIRE, number, "12", PORT, GATEWAY[family], &client, &server];
        let mut command = world.lab.exec_command("out", "wire", &[&arguments[..], more].concat());
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "there");
        // Both believe it from now on.
        std::thread::sleep(Duration::from_millis(600));
        Self { child, lines }
    }

    /// What it saw, when it has given up.
    fn saw(mut self) -> Vec<String> {
        let lines = self.lines.map_while(Result::ok).collect();
        self.child.wait().unwrap();
        lines
    }
}

fn world(name: &str, arguments: &[&str]) -> World {
    let agent_arguments = arguments.iter().map(|&it| it.to_owned()).collect();
    let world = World::with(name, &Options { agent_arguments, ..Options::default() });
    let wire = idle_pod("wire", "node2", "stranger");
    world.apply(&wire.replace("namespace: app", "namespace: out"));
    world.lab.wait_ready(SOON).unwrap();
    world
}

/// Packets of a connection that the third pod saw, by their flags.
fn flags(saw: &[String]) -> Vec<&str> {
    saw.iter().filter_map(|line| line.strip_prefix("saw ")?.split(' ').next()).collect()
}

#[test]
fn who_steps_between_two_pods_sees_their_handshake_and_changes_nothing() {
    let world = world("vethwire", &[]);
    for family in [0, 1] {
        let server = world.addresses("app", "server")[family].clone();
        until_direct(&world, "neighbour", &server);
        let before = opened(&world, DIRECT);
        let wire = Wire::between(&world, "app", family, &[]);
        let ran = world.client("app", "neighbour", &["slowly", &server, PORT, "140"]);
        let saw = wire.saw();
        assert_eq!(ran.text, "whole", "{ran:?} {saw:?}");
        eventually("it was direct", || opened(&world, DIRECT) > before);
        let flags = flags(&saw);
        assert!(flags.contains(&"S") && flags.contains(&"SA"), "it was on the way: {saw:?}");
        // It outlived who wrote into it.
        assert!(flags.iter().all(|it| ["S", "SA"].contains(it)), "and saw no more: {saw:?}");

        // The same where there is no mesh: it reads and writes.
        let server = world.addresses("out", "server")[family].clone();
        let wire = Wire::between(&world, "out", family, &[]);
        let ran = world.client("out", "neighbour", &["slowly", &server, PORT, "140"]);
        let saw = wire.saw();
        assert!(saw.iter().any(|line| line.contains("SECRET")), "{saw:?}");
        assert_ne!(ran.text, "whole", "{ran:?}");
    }
}

#[test]
fn who_shifts_the_handshake_prevents_a_connection_and_takes_nothing_off_one() {
    let world = world("vethshift", &[]);
    for family in [0, 1] {
        let server = world.addresses("app", "server")[family].clone();
        until_direct(&world, "neighbour", &server);
        let wire = Wire::between(&world, "app", family, &["shift", "5"]);
        let ran = world.client("app", "neighbour", &["slowly", &server, PORT, "2"]);
        let saw = wire.saw();
        assert_eq!(ran.text, "whole", "as soon as the way is free again: {ran:?} {saw:?}");
        let flags = flags(&saw);
        assert!(flags.contains(&"S"), "it was on the way: {saw:?}");
        assert!(flags.iter().all(|it| ["S", "SA"].contains(it)), "nothing came of what it shifted: {saw:?}");
    }
}

#[test]
fn all_that_connections_do_they_do_from_veth_to_veth() {
    let world = world("vethdata", &[]);
    let capture = Capture::start(&world);
    for family in [0, 1] {
        let server = world.addresses("app", "server")[family].clone();
        until_direct(&world, "neighbour", &server);
        let before = opened(&world, DIRECT);
        for (what, expected) in [
            (&["sink", &*server, PORT, "50000000"][..], "True"),
            (&["source", &server, PORT, "50000000"], "True"),
            (&["bytewise", &server, PORT, "2000"], "2000"),
            (&["echo", &server, PORT, "word"], "word<done>"),
            (&["close-first", &server, PORT], "bye"),
            (&["expect-reset", &server, PORT], "reset"),
        ] {
            let ran = world.client("app", "neighbour", what);
            assert_eq!(ran.text, expected, "{what:?}: {ran:?}");
        }
        eventually("all were direct", || opened(&world, DIRECT) - before > 5.5);
    }
    eventually("what the server got after its own end", || {
        world.lab.logs("app", "server", None).unwrap().matches("after-close still here").count() >= 2
    });
    let flows = || world.pinned::<40, 40>("node2", "VETH_FLOWS").keys().count();
    eventually("no flow is filed any more", || flows() == 0);
    let payload = capture.payload();
    assert!(payload.is_empty(), "on the bridge: {payload:?}");
}

/// What passes the bridge of node2, by default to or from the server's port.
struct Capture {
    child: Child,
    lines: JoinHandle<Vec<String>>,
}

impl Capture {
    fn start(world: &World) -> Self {
        Self::of(world, &format!("tcp port {PORT}"))
    }

    fn of(world: &World, filter: &str) -> Self {
        let program = ["tcpdump", "-lnni", "pods", "-s", "200", filter];
        let mut command = world.lab.node_command("node2", &program);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut said = BufReader::new(child.stderr.as_mut().unwrap()).lines();
        assert!(said.any(|line| line.unwrap().contains("listening on")));
        // Read as they come: it prints no more than a pipe holds.
        let lines = BufReader::new(child.stdout.take().unwrap()).lines().map_while(Result::ok);
        let lines = lines.filter(|line| line.contains(" IP"));
        let lines = std::thread::spawn(|| lines.collect());
        Self { child, lines }
    }

    /// The packets that carried something, so far.
    fn payload(mut self) -> Vec<String> {
        // `tcpdump` prints a packet up to a second after it has passed.
        std::thread::sleep(Duration::from_millis(1500));
        crate::restarts::signal(self.child.id(), rustix::process::Signal::TERM);
        self.child.wait().unwrap();
        let mut lines = self.lines.join().unwrap();
        lines.retain(|line| !line.contains("length 0"));
        lines
    }
}

/// Name of the node's end of a pod's veth.
fn host_end(world: &World, pod: &str) -> String {
    let uid = world.pod("app", pod)["metadata"]["uid"].as_str().unwrap().replace('-', "");
    format!("veth{}", &uid[..11])
}

fn on_node(world: &World, program: &[&str]) {
    let output = world.lab.node_exec("node2", program).unwrap();
    assert!(output.status.success(), "{program:?}: {}", String::from_utf8_lossy(&output.stderr));
}

fn is_encrypted(world: &World) -> bool {
    assert!(world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
    let log = world.agent_log("node2");
    let last = log.lines().rfind(|line| line.contains("src.workload=neighbour"));
    last.is_some_and(|line| line.contains("transport=mesh"))
}

#[test]
fn where_traffic_is_shaped_connections_are_encrypted_and_keep_to_it() {
    let world = world("vethshaped", &[]);
    until_direct(&world, "neighbour", "server.app");
    let veth = host_end(&world, "server");
    on_node(
        &world,
        &[
            "tc", "qdisc", "add", "dev", &veth, "root", "tbf", "rate", "100mbit", "burst", "1mb", "latency",
            "50ms",
        ],
    );
    eventually("it is mutual TLS", || is_encrypted(&world));
    let capture = Capture::start(&world);
    let began = std::time::Instant::now();
    assert_eq!(world.client("app", "neighbour", &["sink", "server.app", PORT, "10000000"]).text, "True");
    assert!(began.elapsed() > Duration::from_millis(500), "shaped: {:?}", began.elapsed());
    assert!(capture.payload().is_empty());
    on_node(&world, &["tc", "qdisc", "del", "dev", &veth, "root"]);
    until_direct(&world, "neighbour", "server.app");
}

#[test]
fn a_firewall_of_the_node_judges_new_connections() {
    let world = world("vethfirewall", &[]);
    let server = world.addresses("app", "server")[0].clone();
    until_direct(&world, "neighbour", &server);
    let held = Held::open(&world, "neighbour", "6");
    let reject = "reject with tcp reset";
    for how in ["drop", reject] {
        let rules = format!(
            "table ip wall {{ chain forward {{ type filter hook forward priority 0; ip daddr {server} tcp dport {PORT} {how}; }}; }}"
        );
        on_node(&world, &["nft", &rules]);
        let connect = format!("import socket; socket.create_connection(('{server}', {PORT}), 2)");
        let ran = world.exec("app", "neighbour", &["python3", "-c", &connect]);
        let expected = if how == reject { "ConnectionRefusedError" } else { "TimeoutError" };
        on_node(&world, &["nft", "delete", "table", "ip", "wall"]);
        assert!(ran.error.contains(expected), "{how}: {ran:?}");
    }
    assert!(held.outcome().starts_with("kept"), "one that was there before is not asked about");
}

/// New connections each second, many that are used all the time and one that is full, while agents come and
/// go.
#[test]
fn agents_come_and_go_and_direct_connections_stay_from_veth_to_veth() {
    const RATE: u32 = 1000;
    const HELD: u32 = 200;
    let world = world("vethagent", &[]);
    let server = Server::start(&world, "server");
    until_direct(&world, "neighbour", "server.app");
    let (ip, port) = (server.address.ip(), server.address.port());
    let once =
        format!("import socket; s = socket.create_connection(('{ip}', {port}), 5); s.send(b'x'); s.recv(1)");
    eventually("its other port is reached directly", || {
        let before = opened(&world, DIRECT);
        assert!(world.exec("app", "neighbour", &["python3", "-c", &once]).ok);
        std::thread::sleep(Duration::from_millis(250));
        opened(&world, DIRECT) > before
    });
    let capture = Capture::of(&world, &format!("tcp port {PORT} or tcp port {port}"));
    let before = opened(&world, DIRECT);
    let held = Running::hold(&world, "neighbour", &server, HELD);
    let storm = Running::connect(&world, "neighbour", &server, RATE);
    let mut full = world.client_command("app", "neighbour", &["sink", "server.app", PORT, "4000000000"]);
    let full = full.stdout(Stdio::piped()).spawn().unwrap();
    eventually("all are direct", || opened(&world, DIRECT) - before > 2.0 * f64::from(HELD));
    let mut killed = Vec::new();
    for _ in 0..times(2, 20) {
        world.lab.agent("node2").upgrade().unwrap();
        let from = now();
        world.lab.agent("node2").kill().unwrap();
        world.lab.agent("node2").start().unwrap();
        eventually("it serves", || world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
        eventually("they are direct again", || opened(&world, DIRECT) > f64::from(HELD));
        killed.push(Window { from, to: now() });
    }
    let (storm, held) = (storm.end(), held.end());
    let full = String::from_utf8_lossy(&full.wait_with_output().unwrap().stdout).trim().to_owned();
    println!(
        "{} connections, {} broken while no agent ran; {} held",
        storm.done,
        storm.broken.len(),
        held.done
    );
    assert!(storm.failed(&killed).is_empty(), "{:#?}, no agent ran in {killed:?}", storm.failed(&killed));
    assert!(held.broken.is_empty() && held.done == u64::from(HELD), "{:#?}", held.broken);
    assert_eq!(full, "True", "what is full arrives as it was sent");
    let payload = capture.payload();
    assert!(payload.is_empty(), "on the bridge: {payload:?}");
}

/// Its way is taken away between `connect()` and its first packet, which would carry payload. One that is
/// bound to an interface, by a program that may not undo that, is as any other.
#[test]
fn a_connection_without_a_way_fails_and_does_not_go_in_plaintext() {
    const LATE: &str = "\
import os, signal, socket, sys
s = socket.socket()
if sys.argv[3] == 'bound':
    s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'eth0')
    os.setresuid(65534, 65534, 65534)
def give_up(*_):
    raise OSError('given up')
signal.signal(signal.SIGALRM, give_up)
s.setsockopt(socket.IPPROTO_TCP, 34, 1)  # TCP_FASTOPEN_NO_COOKIE
s.setsockopt(socket.IPPROTO_TCP, 30, 1)  # TCP_FASTOPEN_CONNECT
s.connect((sys.argv[1], int(sys.argv[2])))
print('connected', flush=True)
sys.stdin.readline()
signal.alarm(3)
try:
    s.sendall(b'who\\n')
    print('answered', s.recv(100))
except OSError as error:
    print(error)
";
    let world = world("vethnoway", &[]);
    let server = world.addresses("app", "server")[0].clone();
    until_direct(&world, "neighbour", &server);
    let mut veths = world.pinned::<8, 8>("node2", "VETHS");
    let before: Vec<_> = veths.iter().map(Result::unwrap).collect();
    let capture = Capture::start(&world);
    let told = || world.metric("node2", "nodemesh_ebpf_faults_total", "NoWay");
    // What `connect()` would say (`EHOSTUNREACH`) is not handed on by the call that sends (kernel:
    // `__inet_stream_connect`).
    let fails = ["connection abort", "No route to host"];
    for (how, outcomes) in [("free", &fails[..]), ("bound", &["given up"])] {
        let mut late =
            world.lab.exec_command("app", "neighbour", &["python3", "-c", LATE, &server, PORT, how]);
        let mut late = late.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(late.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "connected");
        for (cookie, _) in &before {
            veths.remove(cookie).unwrap();
        }
        let told_before = told();
        late.stdin.take().unwrap().write_all(b"\n").unwrap();
        let outcome = lines.next().unwrap().unwrap();
        late.wait().unwrap();
        assert!(outcomes.iter().any(|it| outcome.contains(it)), "{how}: {outcome}");
        eventually("the fault is counted", || told() > told_before + 0.5);
        for (cookie, veth) in &before {
            veths.insert(cookie, veth, 0).unwrap();
        }
        until_direct(&world, "neighbour", &server);
    }
    let payload = capture.payload();
    assert!(payload.iter().all(|line| !line.contains("who")), "{payload:?}");
    assert!(payload.is_empty(), "{payload:?}");
}

/// How many directories are pinned for node2, and how many programs are at the veth of a pod.
fn left(world: &World, pod: &str) -> (usize, usize) {
    let node = world.lab.layout().node("node2");
    let pins = std::fs::read_dir(node.bpf()).map_or(0, Iterator::count);
    let veth = host_end(world, pod);
    let netns = std::fs::File::open(node.netns()).unwrap();
    let there = move || {
        move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
        SchedClassifier::query_tcx(&veth, TcAttachType::Ingress).unwrap().1.len()
    };
    // Of this thread alone, which ends here.
    (pins, std::thread::spawn(there).join().unwrap())
}

#[test]
fn a_removal_resets_them_before_the_programs_go() {
    let world = world("vethremoved", &[]);
    until_direct(&world, "neighbour", "server.app");
    assert_eq!(left(&world, "neighbour"), (1, 1));
    let held = Held::open(&world, "neighbour", "30");
    let slowly = world
        .client_command("app", "neighbour", &["slowly", "server.app", PORT, "200"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::sleep(Duration::from_millis(500));
    let capture = Capture::start(&world);
    world.lab.agent("node2").stop().unwrap();
    world.clean_up("node2");
    assert!(held.outcome().starts_with("reset"));
    assert!(!slowly.wait_with_output().unwrap().status.success());
    let payload = capture.payload();
    assert!(payload.is_empty(), "{payload:?}");
    assert_eq!(left(&world, "neighbour"), (0, 0));
    assert_eq!(left(&world, "server"), (0, 0));
    // As without a mesh.
    assert!(world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
}

/// Opens connections until its input ends, keeps the last three hundred, and says something on each of them
/// all the time.
const BUSY: &str = "\
import collections, socket, sys, threading, time
held, listens = collections.deque(maxlen=300), threading.Thread(target=sys.stdin.read)
listens.start()
while listens.is_alive():
    time.sleep(0.002)
    try:
        s = socket.create_connection((sys.argv[1], int(sys.argv[2])), 1)
        s.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        s.sendall(b'echo\\n')
        held.append(s)
    except OSError:
        pass
    for s in held:
        try:
            s.send(b'x', socket.MSG_DONTWAIT)
        except OSError:
            pass
";

/// What is on the bridge after it are connections that were made after it, from their first byte.
#[test]
fn what_is_opened_while_a_removal_is_under_way_is_reset_too() {
    let world = world("vethremoval", &[]);
    until_direct(&world, "neighbour", "server.app");
    let server = world.addresses("app", "server")[0].clone();
    let before = opened(&world, DIRECT);
    let capture = Capture::start(&world);
    let mut busy = world.lab.exec_command("app", "neighbour", &["python3", "-c", BUSY, &server, PORT]);
    let mut busy = busy.stdin(Stdio::piped()).spawn().unwrap();
    eventually("many are open", || opened(&world, DIRECT) - before > 200.0);
    world.lab.agent("node2").stop().unwrap();
    world.clean_up("node2");
    std::thread::sleep(Duration::from_secs(1));
    drop(busy.stdin.take());
    busy.wait().unwrap();
    let payload = capture.payload();
    let mut begun = std::collections::HashSet::new();
    for line in &payload {
        let connection = line.split(": Flags").next().unwrap().split(" IP").nth(1).unwrap();
        assert!(
            line.contains("seq 1:") || begun.contains(connection),
            "it was under way before the programs went: {line}"
        );
        begun.insert(connection);
    }
    assert!(!begun.is_empty(), "as without a mesh");
}

/// A server that keeps its ends of connections whose clients are gone keeps them filed.
#[test]
fn connections_that_a_server_keeps_half_open_count_as_their_clients() {
    const KEEPS: &str = "\
import resource, socket, sys, threading
most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
listener, kept = socket.create_server(('', 9999), backlog=4096), []
def accept():
    while True:
        kept.append(listener.accept())
threading.Thread(target=accept, daemon=True).start()
print('there', flush=True)
sys.stdin.read()
";
    const LEAVES: &str = "\
import socket, sys
for _ in range(int(sys.argv[2])):
    socket.create_connection((sys.argv[1], 9999), 30).close()
print('done')
";
    /// As many as a client may have (`mesh_common::veth::MAX_FLOWS_OF_CLIENT`), and more.
    const MOST: usize = 12_288;
    let world = world("vethhalf", &[]);
    let server = world.addresses("app", "server")[0].clone();
    let mut keeps = world.lab.exec_command("app", "server", &["python3", "-c", KEEPS]);
    let mut keeps = keeps.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(keeps.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "there");
    let leaves = |count: &str| world.exec("app", "neighbour", &["python3", "-c", LEAVES, &server, count]);
    let filed = || world.pinned::<40, 40>("node2", "VETH_FLOWS").keys().count();
    eventually("it goes directly", || leaves("1").ok && filed() > 0);
    let ran = leaves("14000");
    assert_eq!(ran.text, "done", "{ran:?}");
    let filed = filed();
    assert!((3 * (MOST - 500)..3 * (MOST + 500)).contains(&filed), "{filed} entries");
    // The others notice nothing; it itself goes through the proxy.
    let before = opened(&world, DIRECT);
    assert!(world.client("app", "neighbour", &["who", &server, PORT]).ok);
    assert!((opened(&world, DIRECT) - before).abs() < 0.5, "through the proxy");
    drop(keeps.stdin.take());
    keeps.wait().unwrap();
    let flows = || world.pinned::<40, 40>("node2", "VETH_FLOWS").keys().count();
    eventually("nothing is left of them", || flows() == 0);
}

#[test]
fn a_pod_that_is_let_go_has_its_direct_connections_reset_and_others_keep_theirs() {
    let world = world("vethletgo", &[]);
    world.apply(&idle_pod("second", "node2", "client"));
    world.lab.wait_ready(SOON).unwrap();
    for pod in ["neighbour", "second"] {
        until_direct(&world, pod, "server.app");
    }
    let (gone, kept) = (Held::open(&world, "neighbour", "30"), Held::open(&world, "second", "10"));
    let pod = idle_pod("neighbour", "node2", "client")
        .replace("labels: {app", "labels: {nodemesh.io/dataplane: disabled, app");
    world.apply(&pod);
    assert!(gone.outcome().starts_with("reset"));
    assert!(kept.outcome().starts_with("kept"));
    eventually("its program is gone", || left(&world, "neighbour").1 == 0);
    world.apply(&idle_pod("neighbour", "node2", "client"));
    until_direct(&world, "neighbour", "server.app");
}
