//! The lab that the tests share in shape: an enrolled namespace with a server on node2 and clients on both
//! nodes, and a namespace outside the mesh with the same.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapInfo};
use mesh_lab::{Lab, Options, poll};
use serde_json::Value;

/// More than anything here takes.
pub const SOON: Duration = Duration::from_secs(30);

/// Where the tests' server listens.
pub const PORT: &str = "7000";

pub const PEER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/mesh/peer.py");

/// A map of the kernel by the sizes of its keys and values alone.
pub type Bytes<const KEY: usize, const VALUE: usize> = HashMap<MapData, [u8; KEY], [u8; VALUE]>;

/// A lab in that shape.
pub struct World {
    pub lab: Lab,
}

/// Waits for a condition, and fails if it does not come.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    assert!(poll(SOON, || check().then_some(())).is_some(), "not in time: {what}");
}

/// A server that no node and no pod of the lab is.
pub struct Outside<'a> {
    world: &'a World,
    server: Child,
}

/// What came of a program that ran in a pod.
#[derive(Debug)]
pub struct Ran {
    pub ok: bool,
    pub text: String,
    pub error: String,
}

impl World {
    /// With several workers, whatever the machine's cores are.
    pub fn new(name: &str) -> Self {
        let workers = "--workers=2".to_owned();
        Self::with(name, &Options { agent_arguments: vec![workers], ..Options::default() })
    }

    pub fn with(name: &str, options: &Options) -> Self {
        let lab = Lab::up(name, options).unwrap();
        lab.apply(&manifests()).unwrap();
        lab.wait_ready(SOON).unwrap();
        let world = Self { lab };
        // The first connection finds neighbours and makes the pooled session; tests that count time come
        // after it.
        eventually("a first connection", || world.client("app", "client", &["who", "server.app", PORT]).ok);
        world
    }

    /// Runs `peer.py` as a client in a pod.
    pub fn client(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Ran {
        let mut program = vec!["python3", PEER];
        program.extend(arguments);
        self.exec(namespace, pod, &program)
    }

    /// The same, to be started by the caller.
    pub fn client_command(&self, namespace: &str, pod: &str, arguments: &[&str]) -> Command {
        let mut program = vec!["python3", "-u", PEER];
        program.extend(arguments);
        self.lab.exec_command(namespace, pod, &program)
    }

    pub fn exec(&self, namespace: &str, pod: &str, program: &[&str]) -> Ran {
        let output = self.lab.exec(namespace, pod, program).unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        Ran { ok: output.status.success(), text: text(&output.stdout), error: text(&output.stderr) }
    }

    pub fn apply(&self, manifests: &str) {
        self.lab.apply(manifests).unwrap();
    }

    /// A pod as `lab get pods -o json` shows it.
    pub fn pod(&self, namespace: &str, pod: &str) -> Value {
        self.lab.pods(namespace).unwrap().into_iter().find(|it| it["metadata"]["name"] == pod).unwrap()
    }

    /// A pod's addresses, IPv4 first.
    pub fn addresses(&self, namespace: &str, pod: &str) -> [String; 2] {
        let pod = self.pod(namespace, pod);
        [0, 1].map(|index| pod["status"]["podIPs"][index]["ip"].as_str().unwrap().to_owned())
    }

    /// What an agent's admin endpoint answers.
    pub fn admin(&self, node: &str, path: &str) -> Value {
        let url = format!("http://127.0.0.1:15000{path}");
        let output = self.lab.node_exec(node, &["curl", "-sS", "-m", "5", &url]).unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or(Value::Null)
    }

    /// The sum of a counter of an agent over the label sets that have `with` in them.
    pub fn metric(&self, node: &str, name: &str, with: &str) -> f64 {
        let url = "http://127.0.0.1:15020/metrics";
        let output = self.lab.node_exec(node, &["curl", "-sS", "-m", "5", url]).unwrap();
        String::from_utf8_lossy(&output.stdout)
            .lines()
            .filter(|line| line.starts_with(name) && line.contains(with))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// A map of a node's agent, by its name.
    pub fn pinned<const KEY: usize, const VALUE: usize>(&self, node: &str, name: &str) -> Bytes<KEY, VALUE> {
        let node = self.lab.layout().node(node);
        let layout = std::fs::read_dir(node.bpf()).unwrap().next().unwrap().unwrap().path();
        let map = Map::HashMap(MapData::from_pin(layout.join("maps").join(name)).unwrap());
        map.try_into().unwrap()
    }

    /// An array that a process holds and nobody has pinned, by its name.
    pub fn held<const VALUE: usize>(process: u32, name: &str) -> Array<MapData, [u8; VALUE]> {
        Map::Array(Self::held_map(process, name)).try_into().unwrap()
    }

    /// A hash map that a process holds and nobody has pinned, by its name.
    pub fn held_hash<const KEY: usize, const VALUE: usize>(process: u32, name: &str) -> Bytes<KEY, VALUE> {
        Map::HashMap(Self::held_map(process, name)).try_into().unwrap()
    }

    fn held_map(process: u32, name: &str) -> MapData {
        let descriptors = std::fs::read_dir(format!("/proc/{process}/fdinfo")).unwrap();
        let ids = descriptors.filter_map(|it| {
            let text = std::fs::read_to_string(it.unwrap().path()).ok()?;
            text.lines().find_map(|line| line.strip_prefix("map_id:")?.trim().parse().ok())
        });
        let named = |id: &u32| MapInfo::from_id(*id).unwrap().name_as_str() == Some(name);
        let id = ids.into_iter().find(named).unwrap();
        MapData::from_id(id).unwrap()
    }

    /// Removes what a node's agent has pinned, as `mesh-agent cleanup` does for a user.
    pub fn clean_up(&self, node: &str) {
        let layout = self.lab.layout().node(node);
        let (agent, pins) = (control_binary().with_file_name("mesh-agent"), layout.bpf().to_string_lossy());
        let cleanup = [agent.to_str().unwrap(), "cleanup", "--bpf-root", &pins];
        assert!(self.lab.node_exec(node, &cleanup).unwrap().status.success());
    }

    /// What an agent logged so far.
    pub fn agent_log(&self, node: &str) -> String {
        let status = self.lab.status().unwrap();
        let node = status.nodes.iter().find(|it| it.name == node).unwrap();
        std::fs::read_to_string(&node.agent.as_ref().unwrap().log).unwrap()
    }

    /// Waits for an agent to log a text: lines are written by a thread of their own, soon after what they
    /// tell of.
    pub fn logged(&self, node: &str, text: &str) {
        eventually(&format!("{node} logs {text}"), || self.agent_log(node).contains(text));
    }

    /// Process id of a node's agent.
    pub fn agent_pid(&self, node: &str) -> u32 {
        let status = self.lab.status().unwrap();
        let node = status.nodes.iter().find(|it| it.name == node).unwrap();
        node.agent.as_ref().unwrap().pid.unwrap()
    }
}

impl<'a> Outside<'a> {
    pub fn new(world: &'a World) -> Self {
        let program = "import http.server as h; h.HTTPServer(('172.30.0.1', 8099), h.SimpleHTTPRequestHandler).serve_forever()";
        let mut command = world.lab.node_command("fabric", &["python3", "-c", program]);
        Self { world, server: command.stderr(Stdio::null()).spawn().unwrap() }
    }

    /// Whether a pod of the enrolled namespace gets a page from it.
    pub fn is_reached_from(&self, pod: &str) -> bool {
        let curl = ["curl", "-sS", "-m", "5", "-o", "/dev/null", "http://172.30.0.1:8099/"];
        self.world.exec("app", pod, &curl).ok
    }
}

impl Drop for Outside<'_> {
    fn drop(&mut self) {
        // It ended by itself if this fails; then there is nothing to wait for either.
        let _ended = self.server.kill().and_then(|()| self.server.wait());
    }
}

impl Ran {
    pub fn words(&self) -> Vec<&str> {
        self.text.split_whitespace().collect()
    }
}

/// A `PeerAuthentication` of a namespace.
pub fn mutual_tls(namespace: &str, mode: &str) -> String {
    format!(
        "apiVersion: security.istio.io/v1\nkind: PeerAuthentication\nmetadata: {{name: default, namespace: {namespace}}}\nspec: {{mtls: {{mode: {mode}}}}}\n"
    )
}

fn manifests() -> String {
    let mut parts = Vec::new();
    for (namespace, label) in [("app", "enabled"), ("out", "disabled")] {
        parts.push(format!(
            "apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}, labels: {{nodemesh.io/dataplane: {label}}}}}\n---\n"
        ));
        for (pod, node, account) in [
            ("server", "node2", "server"),
            ("client", "node1", "client"),
            ("neighbour", "node2", "client"),
            ("other", "node1", "other"),
        ] {
            parts.push(pod_manifest(namespace, pod, node, account));
        }
        parts.push(format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: server, namespace: {namespace}}}\nspec: {{selector: {{app: server}}, ports: [{{name: tcp, port: {PORT}}}]}}\n---\n"
        ));
    }
    parts.concat()
}

fn pod_manifest(namespace: &str, pod: &str, node: &str, account: &str) -> String {
    let (command, probe) = if pod == "server" {
        (
            format!("[python3, -u, {PEER}, serve, \"{PORT}\"]"),
            format!("readinessProbe: {{tcpSocket: {{port: {PORT}}}, periodSeconds: 1}}"),
        )
    } else {
        ("[sleep, infinity]".to_owned(), "ports: []".to_owned())
    };
    format!(
        r"apiVersion: v1
kind: Pod
metadata: {{name: {pod}, namespace: {namespace}, labels: {{app: {pod}}}}}
spec:
  nodeName: {node}
  serviceAccountName: {account}
  containers:
  - name: main
    command: {command}
    {probe}
---
"
    )
}

/// One more pod of the enrolled namespace, which does nothing by itself.
pub fn idle_pod(pod: &str, node: &str, account: &str) -> String {
    pod_manifest("app", pod, node, account)
}

/// The control plane's program, beside the lab's.
pub fn control_binary() -> std::path::PathBuf {
    let own = std::env::current_exe().unwrap();
    own.ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("mesh-control"))
        .find(|path| path.is_file())
        .unwrap()
}
