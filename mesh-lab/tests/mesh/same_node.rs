//! Connections between two pods of one node: directly, from the second on.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::{Duration, Instant};

use mesh_api::manifest::Kind;
use mesh_lab::Options;
use rustix::process::Signal;

use crate::held::Held;
use crate::restarts::{proxy_of, served_again, signal};
use crate::world::{Outside, PORT, World, eventually, idle_pod};

pub const DIRECT: &str = "path=\"direct\"";
const PROXY: &str = "path=\"proxy\"";

pub fn opened(world: &World, path: &str) -> f64 {
    world.metric("node2", "istio_tcp_connections_opened_total", path)
}

/// Connects until the connection is a direct one; and another one is, too, for of an earlier one it may be
/// told late.
pub fn until_direct(world: &World, pod: &str, host: &str) {
    let mut in_turn = 0;
    eventually(&format!("{pod} reaches {host} directly"), || {
        let before = opened(world, DIRECT);
        assert!(world.client("app", pod, &["who", host, PORT]).ok);
        // The agent reads what the kernel tells some times a second.
        std::thread::sleep(Duration::from_millis(250));
        in_turn = if opened(world, DIRECT) > before { in_turn + 1 } else { 0 };
        in_turn == 2
    });
}

pub fn deny(account: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: deny, namespace: app}}\nspec:\n  selector: {{matchLabels: {{app: server}}}}\n  action: DENY\n  rules: [{{from: [{{source: {{principals: [cluster.local/ns/app/sa/{account}]}}}}]}}]\n"
    )
}

#[test]
fn both_ends_see_what_they_see_through_the_proxy_and_every_byte_is_counted() {
    let world = World::new("direct");
    let (own, server) = (world.addresses("app", "neighbour"), world.addresses("app", "server"));
    let service = world.lab.object(Kind::Service, "app", "server").unwrap().unwrap();
    let vip = service["spec"]["clusterIP"].as_str().unwrap().to_owned();
    for (host, own) in [(&vip, &own[0]), (&server[0], &own[0]), (&server[1], &own[1])] {
        until_direct(&world, "neighbour", host);
        let before = (opened(&world, DIRECT), opened(&world, PROXY));
        let ran = world.client("app", "neighbour", &["who", host, PORT]);
        let words = ran.words();
        assert_eq!((words[0], words[1], words[2], words[4]), (&**host, &**own, &**own, &**own), "{ran:?}");
        eventually("it is counted", || opened(&world, DIRECT) > before.0);
        assert!((opened(&world, PROXY) - before.1).abs() < 0.5, "the proxy has nothing to do with it");
    }
    let bytes = || {
        let of = |name| world.metric("node2", name, DIRECT);
        (of("istio_tcp_received_bytes_total"), of("istio_tcp_sent_bytes_total"))
    };
    let closed = || world.metric("node2", "istio_tcp_connections_closed_total", DIRECT);
    eventually("all before it are counted", || (opened(&world, DIRECT) - closed()).abs() < 0.5);
    let before = bytes();
    assert_eq!(world.client("app", "neighbour", &["sink", &vip, PORT, "1000000"]).text, "True");
    let expected = (before.0 + 1_000_000.0 + 13.0 /* the request line */, before.1 + 64.0);
    // Whether the last FIN was counted can't always be told.
    eventually("its bytes are counted", || bytes().0 > before.0 + 0.5);
    let now = bytes();
    let right = (now.0 - expected.0).abs() < 0.5 && (0.0..=1.0).contains(&(now.1 - expected.1));
    assert!(right, "{now:?} bytes instead of {expected:?}");
    let parts = [
        "path=direct",
        "outcome=closed",
        "src.workload=neighbour",
        "dst.workload=server",
        "rtt=",
        "sa/client",
    ];
    let is_its_line = |line: &str| parts.iter().all(|part| line.contains(part));
    eventually("it is logged", || world.agent_log("node2").lines().any(is_its_line));
}

#[test]
fn a_policy_closes_what_it_forbids_and_nothing_else() {
    let world = World::new("directdeny");
    world.apply(&idle_pod("stranger", "node2", "stranger"));
    world.lab.wait_ready(crate::world::SOON).unwrap();
    for pod in ["neighbour", "stranger"] {
        until_direct(&world, pod, "server.app");
    }
    let (forbidden, untouched) = (Held::open(&world, "neighbour", "20"), Held::open(&world, "stranger", "4"));
    // Its socket is found by the interface alone.
    let bound = Held::with(&world, "neighbour", &["20", "eth0"]);
    let proxied = opened(&world, PROXY);
    let began = Instant::now();
    world.apply(&deny("client"));
    let outcome = forbidden.outcome();
    let took = began.elapsed();
    assert!(outcome.starts_with("reset"), "{outcome}");
    assert!(took < Duration::from_secs(1), "after {took:?}");
    assert!(bound.outcome().starts_with("reset"));
    assert!(untouched.outcome().starts_with("kept"));
    assert!(opened(&world, PROXY) - proxied < 0.5, "both were direct");
    assert!(!world.client("app", "neighbour", &["who", "server.app", PORT]).ok, "no new one either");
    assert!(world.client("app", "stranger", &["who", "server.app", PORT]).ok);
    world.logged("node2", "policy changed");
}

/// Opens connections, binds each to the last of the pod's interfaces, and tells when all are closed.
const BIND: &str = "import socket, sys
socks = []
for _ in range(500):
    s = socket.create_connection((sys.argv[1], 7000), 10); s.sendall(b'hold\\n'); s.recv(5); socks.append(s)
for s in socks: s.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b'd1000'); s.settimeout(60)
print('held', flush=True)
for s in socks:
    try: s.recv(1)
    except ConnectionError: pass
print('closed', flush=True)";

/// Each of the bound connections is found by its interface alone, of which the pod has a thousand.
#[test]
fn a_pod_with_a_thousand_interfaces_holds_nobody_up() {
    let world = World::new("directmany");
    world.apply(&idle_pod("stranger", "node2", "stranger"));
    world.lab.wait_ready(crate::world::SOON).unwrap();
    for pod in ["neighbour", "stranger"] {
        until_direct(&world, pod, "server.app");
    }
    let interfaces = "for i in $(seq 1000); do echo link add d$i type bridge; done | ip -batch -";
    assert!(world.exec("app", "neighbour", &["sh", "-c", interfaces]).ok);
    let mut bind = world.lab.exec_command("app", "neighbour", &["python3", "-c", BIND, "server.app"]);
    let mut bound = bind.stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(bound.stdout.take().unwrap()).lines();
    assert_eq!(said.next().unwrap().unwrap(), "held");
    // Of another pod: some are asked for behind many of those.
    let others: Vec<_> = (0..8).map(|_| Held::open(&world, "stranger", "60")).collect();
    let began = Instant::now();
    world.apply(&(deny("client") + "---\n" + &deny("stranger").replace("name: deny,", "name: deny-too,")));
    for held in others {
        assert!(held.outcome().starts_with("reset"));
    }
    let others = began.elapsed();
    assert_eq!(said.next().unwrap().unwrap(), "closed");
    let all = began.elapsed();
    bound.wait().unwrap();
    println!("the other pod's 8 connections were closed after {others:?}, all 500 after {all:?}");
    assert!(others < Duration::from_secs(1), "{others:?}");
    assert!(all < Duration::from_secs(10), "{all:?}");
}

#[test]
fn direct_connections_notice_nothing_of_an_agents_death() {
    let world = World::new("directkill");
    until_direct(&world, "neighbour", "server.app");
    let held = Held::open(&world, "neighbour", "8");
    world.lab.agent("node2").kill().unwrap();
    world.lab.agent("node2").start().unwrap();
    eventually("the next agent serves", || world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
    assert!(held.outcome().starts_with("kept"));
    until_direct(&world, "neighbour", "server.app");
    // A connection that is older than the agent obeys it as well.
    let held = Held::open(&world, "neighbour", "20");
    world.lab.agent("node2").kill().unwrap();
    world.lab.agent("node2").start().unwrap();
    eventually("the next agent serves", || world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
    world.apply(&deny("client"));
    assert!(held.outcome().starts_with("reset"));
}

/// Four streams, as fast as they can, while the agent of their node is replaced twice and killed.
#[test]
fn direct_connections_under_load_notice_neither_an_upgrade_nor_a_kill() {
    const IPERF: &str = "5201";
    let world = World::new("directload");
    let [server, _] = world.addresses("app", "server");
    let mut serving = world.lab.exec_command("app", "server", &["iperf3", "-s", "-p", IPERF]);
    let mut serving = serving.stdout(Stdio::null()).spawn().unwrap();
    let knock = format!("import socket; socket.create_connection(('{server}', {IPERF})).close()");
    eventually("connections there go directly", || {
        let before = opened(&world, DIRECT);
        world.exec("app", "neighbour", &["python3", "-c", &knock]).ok && opened(&world, DIRECT) > before
    });
    let load = ["iperf3", "-c", &server, "-p", IPERF, "-t", "8", "-P", "4"];
    let mut load = world.lab.exec_command("app", "neighbour", &load);
    let load = load.stdout(Stdio::piped()).spawn().unwrap();
    for _ in 0..2 {
        world.lab.agent("node2").upgrade().unwrap();
    }
    world.lab.agent("node2").kill().unwrap();
    world.lab.agent("node2").start().unwrap();
    let output = load.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    serving.kill().unwrap();
    serving.wait().unwrap();
}

/// Opened when nobody reads of it any more: the next proxy reads of it before it knows any pod.
#[test]
fn a_connection_that_a_killed_proxy_has_not_heard_of_obeys_the_next() {
    let world = World::new("directunread");
    until_direct(&world, "neighbour", "server.app");
    let proxy = proxy_of(&world, "node2").unwrap();
    signal(proxy, Signal::STOP);
    // Routes count for some seconds without a sign of life.
    let held = Held::open(&world, "neighbour", "30");
    signal(proxy, Signal::KILL);
    served_again(&world, "node2", proxy);
    world.apply(&deny("client"));
    assert!(held.outcome().starts_with("reset"));
}

/// The new proxy gets itself ready for as long as there is no control plane; what opens and closes meanwhile
/// is told to the old one.
#[test]
fn connections_that_open_during_an_upgrade_obey_the_new_agent() {
    let world = World::new("directupgrade");
    until_direct(&world, "neighbour", "server.app");
    let log = world.lab.status().unwrap().nodes.into_iter().find(|it| it.name == "node2").unwrap();
    let log = log.agent.unwrap().log;
    let starts = || std::fs::read_to_string(&log).unwrap().matches("proxy starting").count();
    let before = starts();
    world.lab.control().stop().unwrap();
    let held = std::thread::scope(|scope| {
        let upgrade = scope.spawn(|| world.lab.agent("node2").upgrade());
        eventually("the new proxy starts", || starts() > before);
        std::thread::sleep(Duration::from_secs(3));
        let held = Held::open(&world, "neighbour", "40");
        world.lab.control().start().unwrap();
        upgrade.join().unwrap().unwrap();
        held
    });
    world.logged("node2", "took over from a predecessor");
    let open =
        || opened(&world, DIRECT) - world.metric("node2", "istio_tcp_connections_closed_total", DIRECT);
    eventually("it is the only one that is open", || (open() - 1.0).abs() < 0.5);
    world.apply(&deny("client"));
    assert!(held.outcome().starts_with("reset"));
}

#[test]
fn mutual_tls_on_one_node_is_a_setting() {
    let options = Options { agent_arguments: vec!["--same-node=mtls".to_owned()], ..Options::default() };
    let world = World::with("directoff", &options);
    let before = world.metric("node2", "istio_tcp_connections_opened_total", DIRECT);
    for _ in 0..3 {
        assert!(world.client("app", "neighbour", &["who", "server.app", PORT]).ok);
    }
    assert!(before < 0.5 && opened(&world, DIRECT) < 0.5);
    let is_its_line = |line: &str| line.contains("src.workload=neighbour") && line.contains("transport=mesh");
    eventually("it is logged", || world.agent_log("node2").lines().any(is_its_line));
}

#[test]
fn what_the_mesh_leaves_alone_is_counted_where_that_is_wanted() {
    let options = Options { agent_arguments: vec!["--count-untouched".to_owned()], ..Options::default() };
    let world = World::with("untouched", &options);
    let counted = |metric| world.metric("node1", metric, "path=\"untouched\"");
    let outside = Outside::new(&world);
    eventually("the server outside", || outside.is_reached_from("client"));
    eventually("it is counted", || counted("istio_tcp_connections_closed_total") > 0.5);
    assert!(counted("istio_tcp_sent_bytes_total") > 100.0, "a page has been received");
    let parts = ["path=untouched", "outcome=closed", "src.workload=client", "dst.addr=172.30.0.1:8099"];
    let is_its_line = |line: &str| parts.iter().all(|part| line.contains(part));
    eventually("it is logged", || world.agent_log("node1").lines().any(is_its_line));
    // What goes through the mesh is not counted twice.
    let before = counted("istio_tcp_connections_opened_total");
    assert!(world.client("app", "client", &["who", "server.app", PORT]).ok);
    assert!(outside.is_reached_from("client"));
    eventually("one more", || counted("istio_tcp_connections_opened_total") - before > 0.5);
    assert!(counted("istio_tcp_connections_opened_total") - before < 1.5);
}
