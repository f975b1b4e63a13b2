//! Programs see the same of their sockets with and without the mesh: each runs in a namespace that is
//! enrolled and in one that is not.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use mesh_api::manifest::Kind;
use serde_json::{Map, Value};

use crate::world::{PORT, World, eventually};

const PROGRAMS: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/sockets/sockets.py");
const SOURCES: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/sockets");

/// In a namespace: services that nobody is behind, each in its way, and servers that listen on one family.
const NOBODY: &str = "\
apiVersion: v1
kind: Service
metadata: {name: nothing, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: nothing}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: unready, namespace: NS, labels: {app: unready}}
spec:
  nodeName: node2
  containers: [{name: main, command: [python3, PEER, serve, \"7000\"], readinessProbe: {exec: {command: [\"false\"]}}}]
---
apiVersion: v1
kind: Service
metadata: {name: unready, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: unready}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: shut, namespace: NS, labels: {app: shut}}
spec: {nodeName: node2, containers: [{name: main, command: [sleep, infinity]}]}
---
apiVersion: v1
kind: Service
metadata: {name: shut, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: shut}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Service
metadata: {name: elsewhere, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, internalTrafficPolicy: Local, selector: {app: server}, ports: [{port: 7000}]}
---
apiVersion: v1
kind: Pod
metadata: {name: ipv4, namespace: NS, labels: {app: ipv4}}
spec:
  nodeName: node2
  containers:
  - {name: main, command: [python3, SOCKETS, serve4, \"7000\"], readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: ipv4, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: ipv4}, ports: [{port: 7000}]}
";

/// Has a world of both namespaces with these beside what it has.
fn world(name: &str) -> World {
    let world = World::new(name);
    let peer = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py");
    for namespace in ["app", "out"] {
        let manifests = NOBODY.replace("NS", namespace).replace("PEER", peer);
        world.apply(&manifests.replace("SOCKETS", PROGRAMS));
    }
    eventually("servers are ready", || {
        ["app", "out"].iter().all(|namespace| {
            world.client(namespace, "client", &["who", &format!("ipv4.{namespace}"), PORT]).ok
        })
    });
    world
}

/// What the programs say in a pod, each by its name.
fn told(world: &World, namespace: &str, pod: &str) -> Map<String, Value> {
    let server = world.addresses(namespace, "server");
    let own = world.addresses(namespace, pod);
    let arguments = ["python3", PROGRAMS, "tell", namespace, &server[0], &server[1], &own[0], &own[1]];
    let ran = world.exec(namespace, pod, &arguments);
    assert!(ran.ok, "{ran:?}");
    serde_json::from_str(&ran.text).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

#[test]
fn programs_see_of_their_sockets_what_they_see_without_a_mesh() {
    let world = world("sockets");
    // From the other node, and from the server's own, where connections go directly from the second on.
    for pod in ["client", "neighbour"] {
        let without = told(&world, "out", pod);
        assert!(without.len() >= 20, "{without:#?}");
        for round in 0..3 {
            // The last one with an interface and addresses more, which go again.
            let extra = (round == 2).then(|| Extra::add(&world, pod));
            let with = told(&world, "app", pod);
            drop(extra);
            let differ: Vec<_> =
                without.iter().filter(|(name, said)| with.get(*name) != Some(said)).collect();
            let found: Vec<_> = differ.iter().map(|(name, _)| (name, with.get(*name))).collect();
            assert!(differ.is_empty(), "{pod}, round {round}: without {differ:#?}, with {found:#?}");
        }
    }
}

/// A second interface of a pod, as long as it lives.
struct Extra<'a>(&'a World, &'a str);

impl<'a> Extra<'a> {
    fn add(world: &'a World, pod: &'a str) -> Self {
        let steps = "ip link add extra type veth peer name extra-end && ip address add 10.98.7.6/24 dev extra && \
            ip address add fd98::6/64 dev extra nodad && ip link set extra up";
        let ran = world.exec("app", pod, &["sh", "-c", steps]);
        assert!(ran.ok, "{ran:?}");
        Self(world, pod)
    }
}

impl Drop for Extra<'_> {
    fn drop(&mut self) {
        self.0.exec("app", self.1, &["ip", "link", "delete", "extra"]);
    }
}

fn build(command: &mut Command) {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Builds a static program of one Go source, with the Go that `cargo xtask test` has found or installed.
pub fn go_build(source: &str, program: &str) {
    let go = std::env::var("NODEMESH_GO").unwrap_or_else(|_| "go".to_owned());
    let arguments = ["build", "-o", program, source];
    build(Command::new(go).args(arguments).env("CGO_ENABLED", "0").env("GOFLAGS", "-buildvcs=false"));
}

/// How to run a program of each language, built into a directory.
fn languages(directory: &Path) -> [(&'static str, Vec<String>); 3] {
    let at = |name: &str| directory.join(name).to_str().unwrap().to_owned();
    let source = |name: &str| format!("{SOURCES}/{name}");
    build(Command::new("cc").args(["-O1", "-o", &at("in-c"), &source("sockets.c")]));
    build(Command::new("javac").args(["-d", directory.to_str().unwrap(), &source("Sockets.java")]));
    go_build(&source("sockets.go"), &at("in-go"));
    let java = ["java", "-Xmx64m", "-cp", directory.to_str().unwrap(), "Sockets"];
    [("C", vec![at("in-c")]), ("Go", vec![at("in-go")]), ("Java", java.map(str::to_owned).to_vec())]
}

/// A service's addresses, IPv4 first.
fn service(world: &World, namespace: &str, name: &str) -> [String; 2] {
    let object = world.lab.object(Kind::Service, namespace, name).unwrap().unwrap();
    [0, 1].map(|index| object["spec"]["clusterIPs"][index].as_str().unwrap().to_owned())
}

/// What a program says of its connections to a namespace's pods and services, with words for their addresses.
fn connections(world: &World, namespace: &str, pod: &str, program: &[String], closed: &str) -> String {
    let named = [
        ("SERVER", world.addresses(namespace, "server")),
        ("SERVICE", service(world, namespace, "server")),
        ("NOTHING", service(world, namespace, "nothing")),
        ("IPV4ONLY", service(world, namespace, "ipv4")),
    ];
    let mut arguments: Vec<&str> = program.iter().map(String::as_str).collect();
    for (name, both) in &named[..3] {
        both.iter().for_each(|address| arguments.extend([*name, &**address, PORT]));
    }
    // Where nobody listens, for the first time and right after it.
    named[0]
        .1
        .iter()
        .for_each(|address| arguments.extend(["CLOSED", &**address, closed, "CLOSED", &**address, closed]));
    // Whose other family nobody serves, by the service and the pod.
    arguments.extend(["other", &named[3].1[0], PORT]);
    let ran = world.exec(namespace, pod, &arguments);
    assert!(ran.ok, "{program:?}: {ran:?}");
    let own = world.addresses(namespace, pod);
    let mut words: BTreeMap<&str, &str> = BTreeMap::new();
    words.extend([(&*own[0], "own4"), (&*own[1], "own6")]);
    for (name, both) in &named {
        words.extend(both.iter().map(|address| (&**address, *name)));
    }
    words_for(&ran.text, &words)
}

/// A text with words for addresses, which programs write in more than one form.
fn words_for(text: &str, words: &BTreeMap<&str, &str>) -> String {
    let word = |token: &str| {
        let ip = token.parse::<std::net::IpAddr>().ok()?;
        words.iter().find(|(address, _)| address.parse() == Ok(ip.to_canonical())).map(|(_, word)| *word)
    };
    text.split(' ').map(|token| word(token).unwrap_or(token)).collect::<Vec<_>>().join(" ")
}

#[test]
fn programs_in_other_languages_see_the_same() {
    let world = world("languages");
    let directory = tempfile::tempdir().unwrap();
    for ((language, program), closed) in languages(directory.path()).into_iter().zip(["7997", "7998", "7999"])
    {
        for pod in ["client", "neighbour"] {
            let without = connections(&world, "out", pod, &program, closed);
            assert!(without.contains("refused") && without.contains("hello<done>"), "{language}: {without}");
            for _near_ones_are_direct_now in 0..2 {
                let with = connections(&world, "app", pod, &program, closed);
                assert_eq!(with, without, "{language}, from {pod}: with and without");
            }
        }
    }
}

/// A server that tells of urgent data, behind a service whose rule has every connection go through the proxy.
const URGENT: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: urgent, namespace: NS, labels: {app: urgent}}
spec:
  nodeName: node2
  containers:
  - {name: main, command: [python3, SOCKETS, serve_urgent, \"7000\"], readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: urgent, namespace: NS}
spec: {ipFamilyPolicy: PreferDualStack, selector: {app: urgent}, ports: [{port: 7000}]}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: urgent, namespace: NS}
spec: {host: urgent, trafficPolicy: {connectionPool: {tcp: {maxConnections: 1000}}}}
";

/// Near, whether the kernel or the proxy carries it, and to and from those that are not in the mesh.
#[test]
fn urgent_data_arrives_as_urgent_data() {
    let world = World::new("urgent");
    for namespace in ["app", "out"] {
        world.apply(&URGENT.replace("NS", namespace).replace("SOCKETS", PROGRAMS));
    }
    let told =
        |namespace, pod, host: &str| world.exec(namespace, pod, &["python3", PROGRAMS, "urgent", host, PORT]);
    for namespace in ["app", "out"] {
        let by_service = &service(&world, namespace, "urgent")[0];
        eventually("it is reached", || {
            told(namespace, "neighbour", by_service).text.contains("a[b][c]de[f]")
        });
    }
    let heard = |namespace, pod, host: &str| {
        let ran = told(namespace, pod, host);
        assert!(ran.ok, "{ran:?}");
        ran.text
    };
    let without = heard("out", "neighbour", &world.addresses("out", "urgent")[0]);
    assert!(without.contains("ab[c]d told") && without.contains("much[y]z told"), "{without}");
    for family in [0, 1] {
        let (inside, outside) =
            (&world.addresses("app", "urgent")[family], &world.addresses("out", "urgent")[family]);
        let by_proxy = &service(&world, "app", "urgent")[family];
        for (namespace, pod, host) in [
            ("app", "neighbour", by_proxy),
            ("app", "neighbour", inside),
            ("app", "client", outside),
            ("out", "client", inside),
        ] {
            assert_eq!(heard(namespace, pod, host), without, "from {namespace}/{pod} to {host}");
        }
    }
}

/// A server that keeps what connects, at three ports.
const KEEPER: &str = "\
apiVersion: v1
kind: Pod
metadata: {name: keeper, namespace: NS, labels: {app: keeper}}
spec:
  nodeName: node2
  containers:
  - {name: main, command: [python3, SOCKETS, keep, \"7001\", \"7002\", \"7003\", \"7004\"], readinessProbe: {tcpSocket: {port: 7003}, periodSeconds: 1}}
---
apiVersion: v1
kind: Service
metadata: {name: keeper, namespace: NS}
spec:
  ipFamilyPolicy: PreferDualStack
  selector: {app: keeper}
  ports: [{name: one, port: 7001}, {name: two, port: 7002}, {name: three, port: 7003}, {name: four, port: 7004}]
";

/// So many ephemeral ports are all that a pod has from now on.
fn few_ports(world: &World, namespace: &str, pod: &str) {
    let set = "echo 40000 40099 > /proc/sys/net/ipv4/ip_local_port_range";
    assert!(world.exec(namespace, pod, &["sh", "-c", set]).ok);
}

/// How many connections of each of several clients work, all of them held at once.
fn all_at_once(world: &World, namespace: &str, clients: &[&str], arguments: &[&str]) -> Vec<String> {
    let program: Vec<_> = ["python3", PROGRAMS, "many"].iter().chain(arguments).copied().collect();
    let start = |pod| {
        let mut command = world.lab.exec_command(namespace, pod, &program);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
    };
    let mut running: Vec<_> = clients.iter().map(|pod| start(pod)).collect();
    let say = |child: &mut Child| {
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        line.trim().to_owned()
    };
    let said = running.iter_mut().map(say).collect();
    for mut child in running {
        drop(child.stdin.take());
        child.wait().unwrap();
    }
    said
}

#[test]
fn a_pod_has_as_many_connections_to_each_destination_as_it_has_ports() {
    let world = World::new("manyports");
    // Without the mesh first: what is asked for is what that gives.
    for namespace in ["out", "app"] {
        world.apply(&KEEPER.replace("NS", namespace).replace("SOCKETS", PROGRAMS));
        let keeper = service(&world, namespace, "keeper");
        for pod in ["client", "other"] {
            let one = ["python3", PROGRAMS, "many", &keeper[1], "1", "7003"];
            eventually("the keeper is ready", || world.exec(namespace, pod, &one).text == "1");
        }
        for pod in ["client", "other", "neighbour"] {
            few_ports(&world, namespace, pod);
        }
        for family in [0, 1] {
            let out = |pod| {
                all_at_once(&world, namespace, &[pod], &[&keeper[family], "80", "7001", "7002", "7003"])
            };
            for pod in ["client", "neighbour"] {
                assert_eq!(out(pod), ["80 80 80"], "out of {namespace}/{pod}, to {}", keeper[family]);
            }
        }
        // The server's own ports are as few: what it takes is none of them. (The clients' ports rest from
        // what they did.)
        few_ports(&world, namespace, "keeper");
        for family in [0, 1] {
            let clients = ["client", "other", "neighbour"];
            let into = all_at_once(&world, namespace, &clients, &[&keeper[family], "80", "7004"]);
            assert_eq!(into, ["80", "80", "80"], "into {namespace}, to {}", keeper[family]);
        }
    }
    for pod in ["client", "other"] {
        let ran = world.exec("app", pod, &["python3", PROGRAMS, "one_port", "23457", "7001", "7002", "7003"]);
        assert_eq!(ran.text, "shared shared", "{pod}: {ran:?}");
    }
}

#[test]
fn servers_that_are_bound_to_an_interface_are_reached_and_see_their_clients() {
    let world = World::new("boundservers");
    for namespace in ["app", "out"] {
        let server = crate::world::idle_pod("bound", "node2", "server");
        let server = server.replace("namespace: app", &format!("namespace: {namespace}"));
        let serve = format!("command: [python3, {PROGRAMS}, serve_bound]");
        world.apply(&server.replace("command: [sleep, infinity]", &serve));
        eventually("it has addresses", || world.pod(namespace, "bound")["status"]["podIPs"][1].is_object());
        let at = world.addresses(namespace, "bound");
        // From the server's own node the first goes through the proxy, and further ones need none.
        for pod in ["client", "neighbour", "neighbour"] {
            let own = world.addresses(namespace, pod);
            let ask = ["python3", PROGRAMS, "first_words", &at[0], "7000", &at[1], "7001"];
            eventually(&format!("{namespace}/{pod} is seen by both"), || {
                world.exec(namespace, pod, &ask).words() == own
            });
        }
    }
}

#[test]
fn nobody_there_is_refused_at_once_recorded_and_reached_when_somebody_comes() {
    let world = world("nobody");
    let refused = || {
        let ran = world.client("app", "client", &["who", "nothing.app", PORT]);
        assert!(!ran.ok && ran.error.contains("ConnectionRefusedError"), "{ran:?}");
    };
    refused();
    world.logged("node1", "service app/nothing.app.svc.cluster.local:7000 has no workload");
    let log = world.agent_log("node1");
    let line = log.lines().find(|line| line.contains("has no workload")).unwrap();
    assert!(line.contains("transport=none") && line.contains("outcome=failed"), "{line}");
    assert!(world.metric("node1", "nodemesh_ebpf_faults_total", "NobodyThere") > 0.5);
    let elsewhere = |pod| world.client("app", pod, &["who", "elsewhere.app", PORT]);
    assert!(elsewhere("client").error.contains("ConnectionRefusedError"), "none on its node");
    assert!(elsewhere("neighbour").ok);
    // Somebody comes, and goes.
    let somebody = "apiVersion: v1\nkind: Pod\nmetadata: {name: somebody, namespace: app, labels: {app: nothing}}\nspec:\n  nodeName: node2\n  containers: [{name: main, command: [python3, PEER, serve, \"7000\"], readinessProbe: {tcpSocket: {port: 7000}, periodSeconds: 1}}]\n";
    let somebody = somebody.replace("PEER", concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py"));
    world.apply(&somebody);
    eventually("somebody is there", || world.client("app", "client", &["who", "nothing.app", PORT]).ok);
    world.lab.delete(&somebody).unwrap();
    eventually("nobody is there", || {
        world.client("app", "client", &["who", "nothing.app", PORT]).error.contains("ConnectionRefusedError")
    });
    // What the kernel was told outlives the agent that told it, and is put right by the next.
    world.lab.agent("node1").kill().unwrap();
    world.apply(&somebody);
    world.lab.agent("node1").start().unwrap();
    eventually("somebody is there for the next agent", || {
        world.client("app", "client", &["who", "nothing.app", PORT]).ok
    });
}

/// The first connection waits until it is known; those that come within a moment are told at once, and then
/// one is tried anew.
#[test]
fn what_has_just_refused_is_refused_in_connect_for_a_moment() {
    const CLOSED: &str = "7999";
    let world = World::new("refusedlately");
    let server = world.addresses("app", "server");
    for family in [0, 1] {
        let ask = || world.client("app", "client", &["who", &server[family], CLOSED]);
        let told = || world.metric("node1", "nodemesh_ebpf_faults_total", "RefusedLately");
        let before = told();
        let refused = |pod| {
            let ran = world.client("app", pod, &["who", &server[family], CLOSED]);
            assert!(ran.error.contains("ConnectionRefusedError"), "{pod}: {ran:?}");
        };
        refused("client");
        eventually("the kernel says so", || {
            refused("client");
            told() > before + 0.5
        });
        // Whatever one pod is told, another of its node finds out by itself.
        let found_out = || world.agent_log("node1").matches("nobody takes connections").count();
        let before = found_out();
        refused("other");
        eventually("it was asked", || found_out() > before);
        let mut listens = world.client_command("app", "server", &["serve", CLOSED]).spawn().unwrap();
        eventually("it is tried anew", || ask().ok);
        crate::restarts::signal(listens.id(), rustix::process::Signal::TERM);
        listens.wait().unwrap();
        refused("client");
    }
}

#[test]
fn services_that_find_no_room_in_the_kernel_are_the_proxys() {
    let world = World::new("portsfull");
    let mut ports = world.pinned::<20, 4>("node1", "OPEN_PORTS");
    let filled = (0..u32::MAX).find(|number| {
        let mut key = [0xfd; 20];
        key[..4].copy_from_slice(&number.to_be_bytes());
        ports.insert(key, [1, 0, 0, 0], 0).is_err()
    });
    assert!(filled.is_some_and(|filled| filled > 100_000), "{filled:?}");
    let late = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: app}\nspec: {selector: {app: server}, ports: [{port: 7000}]}\n";
    world.apply(late);
    eventually("it is reached", || world.client("app", "client", &["who", "late.app", PORT]).ok);
    world.apply(&late.replace("{app: server}", "{app: nobody}"));
    eventually("the proxy says no", || !world.client("app", "client", &["who", "late.app", PORT]).ok);
    world.apply(late);
    eventually("it is reached again", || world.client("app", "client", &["who", "late.app", PORT]).ok);
}
