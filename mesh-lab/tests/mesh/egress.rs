//! Strict egress: what the mesh does not know, and no rule names, is refused.

use std::process::Command;
use std::time::{Duration, Instant};

use crate::world::{Outside, PORT, Ran, World, control_binary, eventually};

/// Where [`Outside`] listens.
const OUTSIDE: &str = "172.30.0.1";
const ITS_PORT: &str = "8099";

/// Connects in a way, and prints the error number.
const CONNECT: &str = "import socket, sys
way, host, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
s = socket.socket(socket.AF_INET6 if ':' in host else socket.AF_INET)
s.settimeout(5)
try:
    if way == 'sendto':
        s.sendto(b'GET / HTTP/1.0\\r\\n\\r\\n', socket.MSG_FASTOPEN, (host, port))
    else:
        if way == 'fast-open':
            s.setsockopt(socket.IPPROTO_TCP, 30, 1)
        s.connect((host, port))
        s.sendall(b'GET / HTTP/1.0\\r\\n\\r\\n')
    print('reached' if s.recv(4) == b'HTTP' else 'cut')
except OSError as error:
    print(error.errno)
";

/// `ECONNREFUSED`.
const REFUSED: &str = "111";

fn namespace(strict: &str, allow: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: app\n  labels: {{nodemesh.io/dataplane: enabled, nodemesh.io/strict-egress: \"{strict}\"}}\n  annotations: {{nodemesh.io/egress-allow: \"{allow}\"}}\n"
    )
}

fn connect(world: &World, pod: &str, way: &str, host: &str) -> String {
    world.exec("app", pod, &["python3", "-c", CONNECT, way, host, ITS_PORT]).text
}

fn why(world: &World, to: &str) -> Ran {
    let program = control_binary().with_file_name("meshctl");
    let mut command = Command::new(program);
    let output = command
        .args(["--lab", &world.lab.layout().name().to_string(), "why", "app/client", to])
        .output()
        .unwrap();
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    Ran { ok: output.status.success(), text: text(&output.stdout), error: text(&output.stderr) }
}

#[test]
fn pods_with_strict_egress_go_only_where_the_mesh_knows_the_way() {
    let world = World::new("strict-egress");
    let outside = Outside::new(&world);
    let reaches = |pod: &str| connect(&world, pod, "connect", OUTSIDE) == "reached";
    eventually("it is reached", || outside.is_reached_from("client") && reaches("client"));
    world.apply(&namespace("enabled", ""));
    eventually("it is refused", || !reaches("client") && !reaches("neighbour"));
    for way in ["connect", "fast-open", "sendto"] {
        let began = Instant::now();
        assert_eq!(connect(&world, "client", way, OUTSIDE), REFUSED, "{way}");
        assert_eq!(connect(&world, "client", way, &format!("::ffff:{OUTSIDE}")), REFUSED, "{way}");
        assert!(began.elapsed() < Duration::from_secs(4), "at once: {:?}", began.elapsed());
    }
    // What the mesh knows, whether in it or not, and the pod itself.
    for host in ["server.app", "server.out"] {
        assert!(world.client("app", "client", &["who", host, PORT]).ok, "{host}");
        assert!(world.client("app", "neighbour", &["who", host, PORT]).ok, "{host}");
    }
    let own = world.addresses("app", "server");
    for host in ["127.0.0.1", &own[0]] {
        assert!(world.client("app", "server", &["who", host, PORT]).ok, "{host}");
    }
    assert!(world.client("out", "client", &["who", "server.out", PORT]).ok, "nobody else's business");
    eventually("it is told", || {
        let log = world.agent_log("node1");
        log.contains("strict egress of the namespace") && log.contains("app/client")
    });
    assert!(world.metric("node1", "nodemesh_ebpf_faults_total", "EgressRefused") > 0.5);
    let said = why(&world, &format!("{OUTSIDE}:{ITS_PORT}"));
    let expected = format!("refused: strict egress of namespace app, no rule names {OUTSIDE}:{ITS_PORT}");
    assert!(!said.ok && said.text.contains(&expected), "{said:?}");
    // The kernel goes on refusing, whatever becomes of the agent.
    world.lab.agent("node1").kill().unwrap();
    assert_eq!(connect(&world, "client", "connect", OUTSIDE), REFUSED);
    world.lab.agent("node1").start().unwrap();
    eventually("the agent is back", || world.client("app", "client", &["who", "server.app", PORT]).ok);
    assert_eq!(connect(&world, "client", "connect", OUTSIDE), REFUSED);
    world.apply(&namespace("disabled", ""));
    eventually("it is open again", || reaches("client") && reaches("neighbour"));
}

#[test]
fn what_a_namespace_names_is_excepted_and_a_mistake_excepts_nothing() {
    let world = World::new("egress-rules");
    let _outside = Outside::new(&world);
    let says = |expected: &str| connect(&world, "client", "connect", OUTSIDE) == expected;
    eventually("it is reached", || says("reached"));
    world.apply(&namespace("enabled", "172.30.0.1:8098, 192.0.2.0/24"));
    eventually("another port is excepted, and another network", || says(REFUSED));
    for allow in ["172.30.0.1:8099", "172.30.0.0/16", "192.0.2.1 172.30.0.0/24:8099", "0.0.0.0/0"] {
        world.apply(&namespace("enabled", allow));
        eventually(&format!("{allow} names it"), || says("reached"));
        let mapped = connect(&world, "client", "connect", &format!("::ffff:{OUTSIDE}"));
        assert_eq!(mapped, "reached", "{allow}: the same address in the form of IPv6");
        world.apply(&namespace("enabled", "::/0"));
        eventually("all of IPv6 is nothing of IPv4", || says(REFUSED));
    }
    world.apply(&namespace("enabled", "172.30.0.1:8099"));
    eventually("it is named", || says("reached"));
    world.apply(&namespace("enabled", "172.30.0.1:8099, 172.30.0.1/16"));
    eventually("a mistake excepts nothing", || says(REFUSED));
    eventually("which is told", || {
        world.agent_log("node1").contains("nothing outside of the mesh is excepted")
    });
    // A value without a meaning is the stricter one, and a pod can't be less strict than its namespace.
    world.apply(&namespace("yes", ""));
    eventually("the mistake is gone, the label has another", || {
        why(&world, &format!("{OUTSIDE}:{ITS_PORT}")).text.ends_with(ITS_PORT)
    });
    assert!(says(REFUSED));
}
