//! Unmodified programs across nodes, through service names and addresses of both families; what their servers
//! say of their clients; and what the wire between the nodes shows.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, Ipv6Addr};
use std::process::{Child, Stdio};

use mesh_api::manifest::Kind;

use crate::world::{SOON, World, eventually};

const MANIFESTS: &str = include_str!("programs.yaml");
const JAVA_SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/Peer.java");

/// Sent by clients and never to be seen on the wire.
const SECRET: &str = "never-to-be-seen-7c1f";

#[test]
fn real_programs_work_and_their_servers_see_their_clients() {
    let world = World::new("programs");
    world.apply(&MANIFESTS.replace("JAVA_SOURCE", JAVA_SOURCE));
    world.lab.wait_ready(SOON * 3).unwrap();
    let capture = Capture::start(&world);
    let own = world.addresses("real", "client");
    let services =
        ["nginx", "redis", "postgres", "mariadb", "iperf", "java"].map(|name| addresses(&world, name));
    let [nginx, redis, postgres, mariadb, iperf, java] = services;
    for family in [0, 1] {
        let (own, at) = (&own[family], |service: &[String; 2]| service[family].clone());
        web(&world, own, &at(&nginx));
        key_value_store(&world, own, &at(&redis));
        databases(&world, own, &at(&postgres), &at(&mariadb));
        throughput(&world, own, &at(&iperf));
    }
    java_client(&world, &own, &java);
    by_name(&world);
    identities(&world);
    capture.check(&world);
}

/// A service's addresses, IPv4 first.
fn addresses(world: &World, service: &str) -> [String; 2] {
    let object = world.lab.object(Kind::Service, "real", service).unwrap().unwrap();
    [0, 1].map(|index| object["spec"]["clusterIPs"][index].as_str().unwrap().to_owned())
}

fn client(world: &World, program: &[&str]) -> String {
    let ran = world.exec("real", "client", program);
    assert!(ran.ok, "{program:?}: {ran:?}");
    ran.text
}

fn url(address: &str) -> String {
    if address.contains(':') {
        format!("http://[{address}]/{SECRET}")
    } else {
        format!("http://{address}/{SECRET}")
    }
}

/// Whether a server's text names an address, in any of the forms that programs write.
fn names(text: &str, address: &str) -> bool {
    let wanted: IpAddr = address.parse().unwrap();
    text.split(|c: char| !(c.is_ascii_hexdigit() || c == '.' || c == ':')).any(|word| {
        let without_port = word.rsplit_once(':').map_or(word, |(host, _)| host);
        [word, without_port].iter().any(|it| it.parse::<IpAddr>().is_ok_and(|ip| ip.to_canonical() == wanted))
    })
}

fn web(world: &World, own: &str, address: &str) {
    assert_eq!(client(world, &["curl", "-sS", "-m", "5", &url(address)]), "served");
    eventually("nginx logs its client", || names(&world.lab.logs("real", "nginx", None).unwrap(), own));
}

fn key_value_store(world: &World, own: &str, address: &str) {
    let cli = |words: &[&str]| client(world, &[&["redis-cli", "-h", address], words].concat());
    assert_eq!(cli(&["set", "key", SECRET]), "OK");
    assert_eq!(cli(&["get", "key"]), SECRET);
    let list = cli(&["client", "list"]);
    let listed = list
        .split_whitespace()
        .filter_map(|field| field.strip_prefix("addr="))
        .any(|addr| names(&addr.replace(['[', ']'], " ").replace(" :", " "), own) || names(addr, own));
    assert!(listed, "{own}: {list}");
}

fn databases(world: &World, own: &str, postgres: &str, mariadb: &str) {
    let query = format!("select client_addr, '{SECRET}' from pg_stat_activity where pid = pg_backend_pid()");
    let seen = client(world, &["psql", "-h", postgres, "-U", "postgres", "-Atc", &query]);
    assert_eq!(seen, format!("{own}|{SECRET}"), "PostgreSQL");
    let query =
        format!("select host, '{SECRET}' from information_schema.processlist where id = connection_id()");
    let mut seen = String::new();
    // The server accepts a moment before it is ready to serve.
    eventually("MariaDB", || {
        let ran = world.exec(
            "real",
            "client",
            &["mariadb", "--no-defaults", "--skip-ssl", "-h", mariadb, "-u", "guest", "-Ne", &query],
        );
        seen = ran.text;
        ran.ok
    });
    assert!(names(&seen, own), "MariaDB: {seen}");
}

fn throughput(world: &World, own: &str, address: &str) {
    client(world, &["iperf3", "-c", address, "-n", "20M"]);
    client(world, &["iperf3", "-c", address, "-n", "20M", "--reverse"]);
    let accepted = || {
        let log = world.lab.logs("real", "iperf", None).unwrap();
        log.lines()
            .filter(|line| line.contains("Accepted connection from"))
            .any(|line| names(&line.replace(',', " "), own))
    };
    eventually("iperf3 names its client", accepted);
}

fn java_client(world: &World, own: &[String; 2], java: &[String; 2]) {
    let urls = [url(&java[0]), url(&java[1])];
    let seen = client(world, &["java", JAVA_SOURCE, "get", &urls[0], &urls[1]]);
    let seen: Vec<IpAddr> =
        seen.lines().map(|line| line.split('%').next().unwrap().parse().unwrap()).collect();
    let own: Vec<IpAddr> = own.iter().map(|address| address.parse().unwrap()).collect();
    assert_eq!(seen.iter().map(IpAddr::to_canonical).collect::<Vec<_>>(), own, "java");
}

/// Every form of a service's name, each with another program.
fn by_name(world: &World) {
    let secret_at = |host: &str| format!("http://{host}/{SECRET}");
    assert_eq!(client(world, &["curl", "-sS", "-m", "5", &secret_at("nginx")]), "served");
    assert_eq!(client(world, &["curl", "-6", "-sS", "-m", "5", &secret_at("nginx")]), "served");
    assert_eq!(client(world, &["redis-cli", "-h", "redis.real", "ping"]), "PONG");
    let postgres = "postgres.real.svc.cluster.local";
    assert_eq!(client(world, &["psql", "-h", postgres, "-U", "postgres", "-Atc", "select 1"]), "1");
    let mariadb = ["mariadb", "--no-defaults", "--skip-ssl", "-h", "mariadb.real.svc", "-u", "guest"];
    assert_eq!(client(world, &[&mariadb[..], &["-Ne", "select 1"]].concat()), "1");
    client(world, &["iperf3", "-c", "iperf", "-n", "1M"]);
    let seen = client(world, &["java", JAVA_SOURCE, "get", &secret_at("java.real")]);
    let own = world.addresses("real", "client");
    assert!(own.iter().any(|own| names(&seen, own)), "java: {seen}");
}

/// The certificate that a pod shows is its account's, and so says each side's access log.
fn identities(world: &World) {
    let target = &world.addresses("real", "redis")[0];
    let script = format!(
        "openssl s_client -connect {target}:15008 -alpn h2 </dev/null 2>/dev/null | openssl x509 -noout -ext subjectAltName"
    );
    let ran = world.exec("out", "client", &["sh", "-c", &script]);
    assert!(ran.text.contains("URI:spiffe://cluster.local/ns/real/sa/redis"), "{ran:?}");
    for node in ["node1", "node2"] {
        for account in ["nginx", "redis", "postgres", "mariadb", "iperf", "java"] {
            let proved = |line: &str| {
                line.contains("src.identity=spiffe://cluster.local/ns/real/sa/client")
                    && line.contains(&format!("dst.identity=spiffe://cluster.local/ns/real/sa/{account}"))
                    && line.contains("transport=mesh")
            };
            let what = format!("{node}: a connection of client to {account}");
            eventually(&what, || world.agent_log(node).lines().any(proved));
        }
    }
}

/// KiB that the kernel keeps for tcpdump while others have the processor.
const KERNEL_BUFFER: &str = "131072";

/// What passes between the nodes.
struct Capture {
    program: Child,
    file: std::path::PathBuf,
}

impl Capture {
    fn start(world: &World) -> Self {
        let file = std::env::temp_dir().join(format!("nodemesh-capture-{}.pcap", std::process::id()));
        let path = file.to_string_lossy().into_owned();
        let program = world
            .lab
            .node_command(
                "node1",
                &["tcpdump", "-i", "eth0", "-U", "-s", "0", "-B", KERNEL_BUFFER, "-w", &path, "tcp"],
            )
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        eventually("tcpdump", || fs::metadata(&file).is_ok_and(|it| it.len() > 0));
        Self { program, file }
    }

    fn check(mut self, world: &World) {
        // Asked to end, it writes what it still has.
        let pid = rustix::process::Pid::from_child(&self.program);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        self.program.wait().unwrap();
        let bytes = fs::read(&self.file).unwrap();
        assert!(bytes.len() > 10_000_000, "the capture has the traffic: {} bytes", bytes.len());
        assert!(
            !bytes.windows(SECRET.len()).any(|window| window == SECRET.as_bytes()),
            "payload on the wire"
        );
        let client = world.addresses("real", "client");
        let lines = self.fields(&["ip.src", "ip.dst", "ipv6.src", "ipv6.dst", "tcp.srcport", "tcp.dstport"]);
        let mut meshed = 0;
        for line in lines.lines() {
            let fields: Vec<&str> = line.split('\t').collect();
            let (ends, ports) = fields.split_at(4);
            if ends.iter().any(|end| client.iter().any(|own| own == end)) {
                assert!(ports.contains(&"15008"), "another port than the mesh's between pods: {line}");
                meshed += 1;
            }
        }
        assert!(meshed > 100, "{meshed} segments of the client");
        self.check_that_all_is_tls();
    }

    /// Each direction of each connection begins with a TLS handshake record (RFC 8446, section 5.1). A
    /// machine that is busy loses packets of a capture: only where the SYN is in it is it known which byte
    /// was the first.
    fn check_that_all_is_tls(&self) {
        let ends = ["tcp.stream", "tcp.dstport"];
        let opened = self.fields_of("tcp.port == 15008 && tcp.flags.syn == 1", &ends);
        let opened: HashSet<&str> = opened.lines().collect();
        let first = "tcp.port == 15008 && tcp.seq == 1 && tcp.len > 0";
        let lines = self.fields_of(first, &["tcp.stream", "tcp.dstport", "tcp.payload"]);
        let mut directions = 0;
        for line in lines.lines() {
            let (direction, payload) = line.rsplit_once('\t').unwrap();
            if !opened.contains(direction) {
                continue;
            }
            assert!(payload.starts_with("160303") || payload.starts_with("160301"), "not TLS: {line:.80}");
            directions += 1;
        }
        assert!(directions >= 12, "{directions} directions of connections in the capture");
    }

    fn fields(&self, names: &[&str]) -> String {
        self.fields_of("tcp", names)
    }

    /// Fields of the segments that a display filter lets through.
    fn fields_of(&self, filter: &str, names: &[&str]) -> String {
        let mut command = std::process::Command::new("tshark");
        command.arg("-r").arg(&self.file).args(["-Y", filter, "-T", "fields"]);
        command.args(names.iter().flat_map(|name| ["-e", name]));
        String::from_utf8_lossy(&command.output().unwrap().stdout).into_owned()
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // A test that failed has left it running.
        let _ended_already = self.program.kill();
        let _gone_already = fs::remove_file(&self.file);
    }
}

#[test]
fn addresses_are_found_in_what_programs_write() {
    assert!(names("addr=10.244.1.2:4711", "10.244.1.2"));
    assert!(names("::ffff:10.244.1.2 - - [x]", "10.244.1.2"));
    assert!(names("from fd00:244:1::2  port 5", "fd00:244:1::2"));
    assert!(!names("10.244.1.20", "10.244.1.2"));
    assert!(!names("", &Ipv6Addr::LOCALHOST.to_string()));
}
