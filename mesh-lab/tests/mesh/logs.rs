//! The log: nobody waits for it, what a pod can cause at will is counted, and nothing that is sent can forge
//! a line.

use std::fs::{File, OpenOptions, Permissions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;

use mesh_lab::Options;
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use tempfile::TempDir;

use crate::garbage;
use crate::world::{PORT, World, control_binary, eventually};

/// Connects to a port again and again, for so many seconds, and tells how often.
const CONNECT: &str = "import socket, sys, time
end, count = time.time() + float(sys.argv[3]), 0
while time.time() < end:
    sock = socket.socket()
    sock.settimeout(5)
    try:
        sock.connect((sys.argv[1], int(sys.argv[2])))
        sock.recv(1)
    except OSError:
        pass
    sock.close()
    count += 1
print(count)";

/// Asks the authority, without a token, for a certificate with a line break in its name
/// (`CreateCertificate`).
const ASK_FOR_A_CERTIFICATE: &str = "import struct, subprocess
def field(number, value):
    length = len(value)
    return bytes([number << 3 | 2, length & 127 | 128, length >> 7]) + value
name = b'spiffe://cluster.local/ns/a\\n2026-11-29T00:00:00.000000Z  INFO mesh_control: FORGED node=x/sa/y\\x1b[2K'
entry = field(1, b'ImpersonatedIdentity') + field(2, field(3, name))
message = field(4, field(1, entry))
url = 'https://172.30.0.1:15012/istio.v1.auth.IstioCertificateService/CreateCertificate'
curl = ['curl', '-sSk', '-m', '5', '--http2', '-H', 'content-type: application/grpc', '-H', 'te: trailers']
body = b'\\0' + struct.pack('>I', len(message)) + message
subprocess.run(curl + ['--data-binary', '@-', '-o', '/dev/null', url], input=body, check=True)";

/// Programs whose standard error is a pipe that is full, and that nobody reads.
struct Unread {
    directory: TempDir,
    pipe: File,
}

impl Unread {
    fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("stderr");
        mknodat(CWD, &path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
        // Non-blocking for this test alone: whoever opens it has an open file of its own.
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        let mut pipe = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
        let full = std::iter::repeat_with(|| pipe.write(&[b'\n'; 4096])).find_map(Result::err).unwrap();
        assert_eq!(full.kind(), ErrorKind::WouldBlock);
        for program in ["mesh-agent", "mesh-control"] {
            wrap(&control_binary().with_file_name(program), directory.path(), &path);
        }
        Self { directory, pipe }
    }

    fn programs(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// What comes, from now on, until there is `text` in it.
    fn read_until(&mut self, text: &str) -> String {
        let mut all = Vec::new();
        eventually(text, || {
            let mut piece = vec![0; 65536];
            while let Ok(length) = self.pipe.read(&mut piece) {
                all.extend_from_slice(&piece[..length]);
            }
            String::from_utf8_lossy(&all).contains(text)
        });
        String::from_utf8(all).unwrap()
    }
}

fn wrap(program: &Path, directory: &Path, stderr: &Path) {
    let script = format!("#!/bin/sh\nexec {} \"$@\" 2>{}\n", program.display(), stderr.display());
    let wrapper = directory.join(program.file_name().unwrap());
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, Permissions::from_mode(0o755)).unwrap();
}

fn health(world: &World, path: &str) -> String {
    let url = format!("http://127.0.0.1:15021/healthz/{path}");
    let output = world.lab.node_exec("node1", &["curl", "-sS", "-m", "2", &url]).unwrap();
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// Standard error of agents and control plane is full from before they start. All of it works, and tells what
/// it could not say.
#[test]
fn a_log_that_nobody_reads_holds_nobody_up() {
    let mut unread = Unread::new();
    let options = Options {
        agent_arguments: vec!["--workers=2".to_owned(), "--log=trace".to_owned()],
        control_arguments: vec!["--log=trace".to_owned()],
        programs: Some(unread.programs()),
        ..Options::default()
    };
    let world = World::with("unread", &options);
    let who = |pod: &str| world.client("app", pod, &["who", "server.app", PORT]);
    let lost = || world.metric("node1", "nodemesh_log_lines_lost_total", "") > 0.5;
    let [server, _] = world.addresses("app", "server");
    eventually("lines are lost, and counted", || {
        assert!(who("client").ok && who("neighbour").ok, "connections of both nodes go on");
        // To a port of the mesh itself: each is the proxy's to refuse, and over at once.
        assert!(world.exec("app", "other", &["python3", "-c", CONNECT, &server, "15006", "1"]).ok);
        lost()
    });
    for _ in 0..20 {
        assert!(who("client").ok && who("other").ok);
    }
    assert_eq!((health(&world, "live").as_str(), health(&world, "ready").as_str()), ("alive", "ready"));
    // The control plane signs for an agent that starts anew, and tells it everything.
    let stopped = world.lab.agent("node2").stop().unwrap();
    assert_eq!(stopped.ended.as_deref(), Some("exit status: 0"), "it ends in time");
    world.lab.agent("node2").start().unwrap();
    eventually("the next agent works", || who("client").ok);
    // Somebody reads again.
    let text = unread.read_until("lines of the log were lost");
    let told = text.lines().find(|line| line.contains("lines of the log were lost")).unwrap();
    assert!(told.contains(" WARN mesh_log: ") && told.contains(" lines="), "{told}");
    let is_a_line = |line: &&str| line.get(..4) == Some("2026") || line.get(27..28) == Some(" ");
    assert!(text.lines().filter(|line| !line.is_empty()).all(|line| is_a_line(&line)), "whole lines: {text}");
}

/// Metrics count every connection, and the lines say for how many they stand.
#[test]
fn a_denied_client_has_a_line_for_each_second_whatever_it_does() {
    const SECONDS: usize = 3;
    let world = World::new("denials");
    let deny = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: no-other, namespace: app}\nspec:\n  selector: {matchLabels: {app: server}}\n  action: DENY\n  rules: [{from: [{source: {principals: [cluster.local/ns/app/sa/other]}}]}]\n";
    world.apply(deny);
    eventually("denied", || !world.client("app", "other", &["who", "server.app", PORT]).ok);
    let [server, _] = world.addresses("app", "server");
    let ran = world.exec("app", "other", &["python3", "-c", CONNECT, &server, PORT, &SECONDS.to_string()]);
    let attempts: f64 = ran.text.parse().unwrap();
    assert!(attempts > 100.0, "{ran:?}");
    let inbound = ("node2", "response_flags=\"DENY\"");
    for ((node, counted), kind) in [
        (("node1", "reporter=\"source\""), "direction=outbound outcome=denied"),
        (inbound, "direction=inbound outcome=denied"),
        (inbound, "mesh_proxy::inbound: "),
    ] {
        let refused = || world.metric(node, "istio_tcp_connections_failed_total", counted);
        eventually("metrics count all of them", || refused() >= attempts);
        let lines = || -> Vec<String> {
            world.agent_log(node).lines().filter(|line| line.contains(kind)).map(str::to_owned).collect()
        };
        let all = || lines().iter().map(|line| count(line)).sum::<f64>();
        eventually(&format!("as many in lines: {kind}"), || (all() - refused()).abs() < 0.5);
        // One for each second that it lasted, and the first attempt, which was before.
        let lines = lines();
        assert!(lines.len() <= SECONDS + 4, "{}: {lines:?}", lines.len());
        assert!(node == "node1" || lines[0].contains("no-other"), "the first says why: {lines:?}");
    }
}

/// For how many connections a line stands.
fn count(line: &str) -> f64 {
    line.rsplit_once(" count=").map_or(1.0, |(_, count)| count.parse().unwrap())
}

#[test]
fn nothing_that_is_sent_forges_a_line() {
    let world = World::new("forged");
    let directory = tempfile::tempdir().unwrap();
    let member = garbage::member(&world, directory.path(), "spiffe://cluster.local/ns/app/sa/client", "1h");
    let [server, _] = world.addresses("app", "server");
    let to = format!("{server}:{PORT}");
    let goodbye = [&server, "15008", "mesh", &member.0, &member.1, &to, "goodbye"];
    garbage::send(&world, ("out", "client"), &goodbye);
    let asked = world.lab.node_command("node1", &["python3", "-c", ASK_FOR_A_CERTIFICATE]);
    let asked = { asked }.stdin(Stdio::null()).output().unwrap();
    assert!(asked.status.success(), "{asked:?}");
    let control = || std::fs::read_to_string(&world.lab.status().unwrap().control.unwrap().log).unwrap();
    eventually("the authority says what was asked for", || control().contains("FORGED"));
    world.logged("node2", "FORGED");
    for log in [world.agent_log("node2"), control()] {
        let told: Vec<_> = log.lines().filter(|line| line.contains("FORGED")).collect();
        assert!(told.iter().all(|line| line.contains("\\n2026-11-29T00:00:00.000000Z")), "{told:?}");
        assert!(!log.contains('\u{1b}'), "no word for a terminal");
    }
}
