//! What listens for people and their programs (admin, metrics, health, of agent and control plane): who is
//! served, and that nobody uses it up.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::MetadataExt;
use std::process::{Child, Command, Stdio};

use mesh_lab::Options;

use crate::world::{PORT, Ran, World, eventually};

const PROGRAM: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/listeners.py");

const NODE1: &str = "172.30.0.11";
const FABRIC: &str = "172.30.0.1";

/// Connections of each flood: ten times what a listener holds.
const FLOOD: &str = "3000";

/// What a proxy or a control plane may grow by under any of the floods, in KiB. What it holds are 256
/// connections with 16 KiB each at most; held without a bound, the floods take five to twenty times as much.
const GROWTH: u64 = 16 << 10;

/// A flood that goes on until it is dropped.
struct Flood(Child);

impl Flood {
    /// Waits until everything of it was opened once.
    fn start(mut command: Command) -> Self {
        let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut flood = Self(child);
        let told = BufReader::new(flood.0.stdout.take().unwrap()).lines().next().unwrap().unwrap();
        let opened: u32 = told.strip_prefix("open ").unwrap().parse().unwrap();
        assert!(opened > 100, "{told}");
        flood
    }

    fn from_pod(world: &World, pod: &str, arguments: &[&str]) -> Self {
        Self::start(world.lab.exec_command("out", pod, &program(arguments)))
    }

    fn from_node(world: &World, node: &str, arguments: &[&str]) -> Self {
        Self::start(world.lab.node_command(node, &program(arguments)))
    }
}

impl Drop for Flood {
    fn drop(&mut self) {
        let went_on = matches!(self.0.try_wait(), Ok(None));
        drop(self.0.stdin.take());
        let ended = self.0.wait();
        assert!(went_on || std::thread::panicking(), "the flood ended by itself: {ended:?}");
    }
}

fn program<'a>(arguments: &[&'a str]) -> Vec<&'a str> {
    [&["python3", "-u", PROGRAM], arguments].concat()
}

/// Resident memory of a process, in KiB (proc(5)).
fn resident(process: u64) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn bounded(grown: u64, bound: u64) {
    println!("grown by {grown} KiB");
    assert!(grown < bound, "{grown} KiB");
}

fn proxy(world: &World) -> u64 {
    world.admin("node1", "/status")["proxy"].as_u64().unwrap()
}

/// Asks with a connection of its own; answers the status and the text.
fn ask(world: &World, node: &str, arguments: &[&str]) -> (u32, String) {
    let curl = [&["curl", "-sS", "-m", "5", "-w", "\n%{http_code}"], arguments].concat();
    status_and_text(&String::from_utf8_lossy(&world.lab.node_exec(node, &curl).unwrap().stdout))
}

fn ask_from_pod(world: &World, namespace: &str, pod: &str, url: &str) -> (u32, String) {
    let Ran { text, .. } =
        world.exec(namespace, pod, &["curl", "-sS", "-m", "5", "-w", "\n%{http_code}", url]);
    status_and_text(&text)
}

fn status_and_text(said: &str) -> (u32, String) {
    let (text, status) = said.rsplit_once('\n').unwrap_or(("", said));
    (status.parse().unwrap_or(0), text.to_owned())
}

fn metrics_of(host: &str, port: u16) -> String {
    format!("http://{host}:{port}/metrics")
}

/// That an honest one has his answer each time.
fn is_scraped(world: &World, node: &str, url: &str) {
    for _ in 0..20 {
        let (status, text) = ask(world, node, &[url]);
        assert!(status == 200 && text.contains("# EOF"), "{status} {text}");
    }
}

#[test]
fn half_requests_hold_little_and_keep_nobody_out() {
    let world = World::new("half");
    let (url, before) = (metrics_of(NODE1, 15020), resident(proxy(&world)));
    is_scraped(&world, "node1", &url);
    let grown = || resident(proxy(&world)).saturating_sub(before);
    {
        // As much as a head may have, from one address.
        let _flood = Flood::from_pod(&world, "client", &["half", NODE1, "15020", FLOOD, "12000"]);
        is_scraped(&world, "node1", &url);
        bounded(grown(), GROWTH);
    }
    {
        // From many: the pod takes further addresses of its network.
        let more: Vec<_> = (200..216).map(|last| format!("10.244.1.{last}")).collect();
        for address in &more {
            let block = format!("{address}/24");
            let added = world.exec("out", "client", &["ip", "address", "add", &block, "dev", "eth0"]);
            assert!(added.ok, "{added:?}");
        }
        let mut arguments = vec!["half", NODE1, "15020", FLOOD, "12000"];
        arguments.extend(more.iter().map(String::as_str));
        let _flood = Flood::from_pod(&world, "client", &arguments);
        let _other = Flood::from_pod(&world, "other", &["half", "fd00:30::11", "15020", "500", "100"]);
        is_scraped(&world, "node1", &url);
        let health = format!("http://{NODE1}:15021/healthz/ready");
        assert_eq!(ask_from_pod(&world, "app", "other", &health), (200, "ready\n".to_owned()));
        bounded(grown(), GROWTH);
    }
    assert_eq!(proxy(&world), world.admin("node1", "/status")["proxy"].as_u64().unwrap());
}

#[test]
fn health_is_told_while_half_requests_flood_it() {
    let world = World::new("half-health");
    let before = resident(proxy(&world));
    let _flood = Flood::from_pod(&world, "client", &["half", NODE1, "15021", FLOOD, "12000"]);
    for path in ["live", "ready"] {
        for _ in 0..20 {
            let (status, text) = ask(&world, "node1", &[&format!("http://{NODE1}:15021/healthz/{path}")]);
            assert_eq!(status, 200, "{text}");
        }
    }
    bounded(resident(proxy(&world)).saturating_sub(before), GROWTH);
}

#[test]
fn the_control_planes_metrics_are_bounded_too() {
    let world = World::new("half-control");
    let control = || u64::from(world.lab.status().unwrap().control.unwrap().pid.unwrap());
    let (url, before) = (metrics_of(FABRIC, 15014), resident(control()));
    let _flood = Flood::from_pod(&world, "client", &["half", FABRIC, "15014", FLOOD, "12000"]);
    is_scraped(&world, "fabric", &url);
    let ready = format!("http://{FABRIC}:15014/healthz/ready");
    assert_eq!(ask(&world, "node2", &[&ready]).0, 200);
    bounded(resident(control()).saturating_sub(before), GROWTH);
}

#[test]
fn answers_that_nobody_reads_hold_a_bounded_amount() {
    let world = World::new("slow");
    let pods: Vec<_> = (0..5000).map(pod_of_elsewhere).collect();
    std::fs::write(world.lab.layout().control().config().join("many.yaml"), pods.concat()).unwrap();
    let size = || ask(&world, "node1", &["http://127.0.0.1:15000/workloads"]).1.len();
    eventually("the list is long", || size() > 1_000_000);
    let before = resident(proxy(&world));
    let _flood = Flood::from_node(&world, "node1", &["slow", "127.0.0.1", "15000", "400", "/workloads"]);
    // Three copies, and what it takes to make one: 400 would be some hundred times as much.
    bounded(resident(proxy(&world)).saturating_sub(before), 32 << 10);
    assert!(size() > 1_000_000, "one who reads has all of it");
}

fn pod_of_elsewhere(number: usize) -> String {
    let address = format!("10.200.{}.{}", number / 250, number % 250 + 1);
    format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: pod-{number}-with-a-long-name, namespace: elsewhere, uid: uid-{number}}}\nspec: {{nodeName: node9, containers: [{{name: c}}]}}\nstatus: {{phase: Running, podIP: {address}, podIPs: [{{ip: {address}}}]}}\n---\n"
    )
}

#[test]
fn traffic_does_not_notice_a_flood_of_the_metrics() {
    let world = World::new("half-beside");
    let server = world.addresses("app", "server")[0].clone();
    let times = || {
        let ran = world.exec("app", "client", &program(&["times", &server, PORT, "300"]));
        assert!(ran.ok, "{ran:?}");
        let figures: Vec<f64> = ran.words().iter().map(|word| word.parse().unwrap()).collect();
        (figures[0], figures[1])
    };
    // The flood itself has a core of a machine that may have two, and something else the other one for a
    // while: what it does to traffic it does in every round.
    let unnoticed = (0..5).any(|_| {
        let alone = times();
        let _flood = Flood::from_pod(&world, "client", &["half", NODE1, "15020", FLOOD, "8000"]);
        let beside = times();
        println!("median and 99th percentile: alone {alone:?} ms, beside the flood {beside:?} ms");
        beside.0 < 2.0 * alone.0 + 1.0 && beside.1 < 2.0 * alone.1 + 5.0
    });
    assert!(unnoticed);
}

#[test]
fn metrics_are_for_the_node_and_the_monitoring_namespace_alone() {
    let world = World::new("readers");
    let pods = ["node1", "node2"].map(|node| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: prometheus-{node}, namespace: monitoring}}\nspec: {{nodeName: {node}, containers: [{{name: main, command: [sleep, infinity]}}]}}\n---\n"
        )
    });
    world.apply(&format!(
        "apiVersion: v1\nkind: Namespace\nmetadata: {{name: monitoring}}\n---\n{}",
        pods.concat()
    ));
    world.lab.wait_ready(crate::world::SOON).unwrap();
    for (host, port, inside) in
        [(NODE1, 15020, "node1"), ("[fd00:30::11]", 15020, "node1"), (FABRIC, 15014, "fabric")]
    {
        let url = metrics_of(host, port);
        for pod in ["prometheus-node1", "prometheus-node2"] {
            let served = || ask_from_pod(&world, "monitoring", pod, &url).0 == 200;
            eventually(&format!("{pod} reads {url}"), served);
        }
        for (namespace, pod) in
            [("app", "client"), ("app", "neighbour"), ("out", "client"), ("out", "server")]
        {
            let (status, text) = ask_from_pod(&world, namespace, pod, &url);
            assert_eq!(status, 403, "{namespace}/{pod}: {text}");
            assert!(text.contains("may not read metrics") && !text.contains("# EOF"), "{text}");
        }
        assert_eq!(ask(&world, inside, &[&url]).0, 200, "a process beside it");
        assert_eq!(ask(&world, "node2", &[&url]).0, 403, "another node's address is everybody's there");
    }
    let old_name = format!("http://{NODE1}:15020/stats/prometheus");
    assert_eq!(ask_from_pod(&world, "out", "client", &old_name).0, 403);
    for health in
        [format!("http://{NODE1}:15021/healthz/ready"), format!("http://{FABRIC}:15014/healthz/ready")]
    {
        assert_eq!(ask_from_pod(&world, "out", "client", &health).0, 200, "{health}");
    }
}

#[test]
fn who_may_read_is_as_the_options_say() {
    let allow = "--metrics-allow=172.30.0.12,out".to_owned();
    let options = Options {
        agent_arguments: vec!["--workers=2".to_owned(), allow.clone()],
        control_arguments: vec![allow],
        ..Options::default()
    };
    let world = World::with("readers-told", &options);
    for url in [metrics_of(NODE1, 15020), metrics_of(FABRIC, 15014)] {
        assert_eq!(ask(&world, "node2", &[&url]).0, 200);
        eventually(&url, || ask_from_pod(&world, "out", "client", &url).0 == 200);
        assert_eq!(ask_from_pod(&world, "app", "client", &url).0, 403);
    }
}

#[test]
fn changes_are_made_through_the_unix_socket_alone() {
    let world = World::new("writes");
    let socket = world.lab.layout().node("node1").admin();
    let level = || ask(&world, "node1", &["http://127.0.0.1:15000/log-level"]).1;
    assert_eq!(level(), "info\n");
    for method in ["PUT", "POST", "DELETE", "PATCH"] {
        let (status, text) =
            ask(&world, "node1", &["-X", method, "-d", "trace", "http://127.0.0.1:15000/log-level"]);
        assert!(status == 403 && text.contains("Unix socket"), "{method}: {status} {text}");
    }
    assert_eq!(level(), "info\n");
    let path = socket.to_str().unwrap();
    let put = ["--unix-socket", path, "-X", "PUT", "-d", "debug", "http://x/log-level"];
    assert_eq!(ask(&world, "node1", &put).0, 204);
    assert_eq!(level(), "debug\n");
    let agent = crate::world::control_binary().with_file_name("mesh-agent");
    let command = [agent.to_str().unwrap(), "log-level", "info", "--admin-socket", path];
    assert!(world.lab.node_exec("node1", &command).unwrap().status.success());
    assert_eq!(level(), "info\n");

    for path in [&socket, &world.lab.layout().control().admin()] {
        let metadata = std::fs::metadata(path).unwrap();
        assert_eq!((metadata.mode() & 0o777, metadata.uid()), (0o600, 0), "{}", path.display());
        // Whoever gets past that by another way is asked who he is.
        let mut curl = Command::new("setpriv");
        curl.args(["--reuid=65534", "--regid=65534", "--clear-groups"]);
        curl.args(["--inh-caps=+dac_override", "--ambient-caps=+dac_override"]);
        curl.args(["curl", "-sS", "-m", "5", "--unix-socket", path.to_str().unwrap(), "http://x/status"]);
        let said = curl.output().unwrap();
        let text = String::from_utf8_lossy(&said.stdout);
        assert!(text.contains("for root, not for the user 65534"), "{said:?}");
    }
}
