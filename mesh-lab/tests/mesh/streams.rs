//! Bytes arrive as they were sent, and connections end as they were ended; over nodes and within one.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;

use mesh_lab::Options;
use rustix::process::Signal;

use crate::restarts::{proxy_of, signal};
use crate::world::{PORT, World, eventually};

const GIGABYTE: &str = "1000000000";

/// Clients on the other node (mutual TLS) and on the server's own (never encrypted).
const BOTH: [&str; 2] = ["client", "neighbour"];

#[test]
fn half_close_reset_and_single_bytes_pass_both_ways() {
    let world = World::new("streams");
    for pod in BOTH {
        let run = |arguments: &[&str]| world.client("app", pod, arguments);
        assert_eq!(
            run(&["echo", "server.app", PORT, "hello"]).text,
            "hello<done>",
            "{pod}: the client closes first"
        );
        assert_eq!(run(&["close-first", "server.app", PORT]).text, "bye", "{pod}: the server closes first");
        assert_eq!(run(&["expect-reset", "server.app", PORT]).text, "reset", "{pod}: the server resets");
        assert!(run(&["send-reset", "server.app", PORT]).ok);
        assert_eq!(run(&["bytewise", "server.app", PORT, "2000"]).text, "2000", "{pod}");
    }
    eventually("the server heard of it all", || {
        let log = world.lab.logs("app", "server", None).unwrap();
        log.matches("after-close still here").count() == 2 && log.matches("await-reset: reset").count() == 2
    });
}

#[test]
fn hbone_alone_is_a_setting() {
    let options = Options { agent_arguments: vec!["--tunnel=hbone".to_owned()], ..Options::default() };
    let world = World::with("hboneonly", &options);
    let run = |arguments: &[&str]| world.client("app", "client", arguments);
    assert_eq!(run(&["echo", "server.app", PORT, "hello"]).text, "hello<done>");
    assert_eq!(run(&["sink", "server.app", PORT, "10000000"]).text, "True");
    for node in ["node1", "node2"] {
        eventually(node, || world.agent_log(node).contains("transport=hbone"));
        assert!(!world.agent_log(node).contains("transport=mesh"), "{node}");
    }
}

/// All that two pods have to do with each other goes over a few connections, so each worker has to get its
/// share of them.
#[test]
fn connections_of_one_peer_are_dealt_out_to_all_workers() {
    let options = Options { agent_arguments: vec!["--workers=4".to_owned()], ..Options::default() };
    let world = World::with("dealt", &options);
    let [address, _] = world.addresses("app", "server");
    let proxy = proxy_of(&world, "node2").unwrap();
    signal(proxy, Signal::STOP);
    // They stay where they are: in the queues of the listeners.
    let mut peer = world
        .lab
        .exec_command("out", "client", &["python3", "-c", OPEN, &address, "8"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut said = String::new();
    BufReader::new(peer.stdout.take().unwrap()).read_line(&mut said).unwrap();
    let listeners = world.exec("app", "server", &["ss", "-Hltn", "sport = :15008"]).text;
    signal(proxy, Signal::CONT);
    drop(peer.stdin.take());
    peer.wait().unwrap();
    assert_eq!(said.trim(), "open");
    let waiting: Vec<_> = listeners.lines().map(|line| line.split_whitespace().nth(1).unwrap()).collect();
    assert_eq!(waiting, ["2"; 4], "{listeners}");
}

const OPEN: &str = "
import socket, sys
open = [socket.create_connection((sys.argv[1], 15008), timeout=10) for _ in range(int(sys.argv[2]))]
print('open', flush=True)
sys.stdin.read()
";

/// In less than the time that the proxy gives to an application that does not accept.
#[test]
fn a_port_where_nothing_listens_is_refused_at_once() {
    let world = World::new("closed");
    for pod in BOTH {
        for address in world.addresses("app", "server") {
            let ran = world.exec("app", pod, &["python3", "-c", CLOSED, &address]);
            assert_eq!(ran.text.trim(), "closed", "{pod} to {address}: {ran:?}");
        }
    }
    let ways = || -> Vec<String> {
        let log = world.agent_log("node1");
        let lines = log.lines().filter(|it| it.contains("direction=outbound outcome=failed"));
        let way =
            |line: &str| line.split_whitespace().find(|it| it.starts_with("transport=")).map(str::to_owned);
        lines.filter_map(way).collect()
    };
    eventually("node1 logs what was not made", || !ways().is_empty());
    assert!(ways().iter().all(|way| way == "transport=mesh"), "{:?}", ways());
}

/// Says how a connection to a port ends at which nothing listens, within five seconds.
const CLOSED: &str = "
import socket, sys
try:
    peer = socket.create_connection((sys.argv[1], 9999), timeout=5)
    peer.settimeout(5)
    print('data' if peer.recv(1) else 'closed')
except TimeoutError:
    print('nothing')
except OSError:
    print('closed')
";

#[test]
fn a_gigabyte_each_way_arrives_unchanged() {
    let world = World::new("gigabyte");
    for pod in BOTH {
        for what in ["sink", "source"] {
            let ran = world.client("app", pod, &[what, "server.app", PORT, GIGABYTE]);
            assert_eq!(ran.text, "True", "{pod} {what}: {ran:?}");
        }
    }
}

#[test]
fn a_reader_that_stops_for_a_minute_bounds_memory() {
    let world = World::new("stall");
    let seconds = if std::env::var_os("NODEMESH_LONG").is_some() { "60" } else { "10" };
    for (pod, nodes) in [("client", ["node1", "node2"]), ("neighbour", ["node2", "node2"])] {
        let before = nodes.map(|node| resident(&world, node));
        let mut stalled = world
            .client_command("app", pod, &["stall", "server.app", PORT, seconds])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut most = [0, 0];
        while stalled.try_wait().unwrap().is_none() {
            for (most, node) in most.iter_mut().zip(nodes) {
                *most = resident(&world, node).max(*most);
            }
            std::thread::sleep(std::time::Duration::from_millis(200));
        }
        let mut text = String::new();
        std::io::Read::read_to_string(stalled.stdout.as_mut().unwrap(), &mut text).unwrap();
        let (taken, arrived) = text.trim().split_once(' ').unwrap();
        assert_eq!(taken, arrived, "{pod}: nothing was lost");
        for (most, before) in most.iter().zip(before) {
            assert!(most - before < 16 * 1024, "{pod}: an agent grew by {} kB", most - before);
        }
    }
}

#[test]
fn ten_thousand_idle_connections_fit() {
    const COUNT: u32 = 10_000;
    let world = World::new("idle");
    let before = ["node1", "node2"].map(|node| resident(&world, node));
    let mut parked = Vec::new();
    // Two clients, since a process may have 20,000 open files and each worker its share of connections.
    for pod in ["client", "other"] {
        let mut child = world
            .client_command("app", pod, &["park", "server.app", PORT, &(COUNT / 2).to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let told = lines.next().unwrap().unwrap();
        assert_eq!(told, format!("parked {} failed 0", COUNT / 2), "{pod}");
        parked.push((child, stdin));
    }
    for (node, before) in ["node1", "node2"].iter().zip(before) {
        let each = (resident(&world, node) - before) * 1024 / i64::from(COUNT);
        println!("{node}: {each} bytes for each idle connection");
        assert!(each <= 15_000, "{node}: {each} bytes for each idle connection");
    }
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok, "and another fits beside them");
    for (mut child, mut stdin) in parked {
        stdin.flush().unwrap();
        drop(stdin);
        child.wait().unwrap();
    }
    // The server keeps its ends open until it goes.
    world.lab.command(&["delete", "pod", "server", "-n", "app"]).status().unwrap();
    eventually("all closed", || world.admin("node1", "/status")["openConnections"] == 0);
}

#[test]
fn descriptors_run_out_and_the_agent_recovers() {
    let world = World::new("files");
    let pid = proxy_of(&world, "node1").unwrap().to_string();
    let limit = |soft: &str| {
        let status = std::process::Command::new("prlimit")
            .args(["--pid", &pid, &format!("--nofile={soft}:20000")])
            .status();
        assert!(status.unwrap().success());
    };
    let open = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    limit(&(open + 4).to_string());
    let mut parked = world
        .client_command("app", "client", &["park", "server.app", PORT, "20"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    eventually("they run out", || world.agent_log("node1").contains("can't accept; trying again"));
    let busy = cpu_ticks(&pid);
    std::thread::sleep(std::time::Duration::from_secs(1));
    assert!(cpu_ticks(&pid) - busy < 30, "it does not spin");
    limit("20000");
    let told = BufReader::new(parked.stdout.take().unwrap()).lines().next().unwrap().unwrap();
    assert_eq!(told, "parked 20 failed 0", "those that waited are served");
    drop(parked.stdin.take());
    parked.wait().unwrap();
    assert!(world.metric("node1", "nodemesh_accept_errors_total", "") > 0.5);
    eventually("recovered", || world.client("app", "client", &["who", "server.app", PORT]).ok);
}

/// Resident memory of a node's agent in kB.
fn resident(world: &World, node: &str) -> i64 {
    let of = |pid: u32| -> i64 {
        let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    of(world.agent_pid(node)) + of(proxy_of(world, node).unwrap())
}

/// Time on the processor, in hundredths of a second.
fn cpu_ticks(pid: &str) -> u64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap()
}
