//! The lab with the three paths: in each namespace a client on one node, a server there, and one on the other
//! node.

use std::cell::{Cell, OnceCell};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command::CommandExt;
use crate::workspace::Workspace;

use super::envoy::{Envoy, ONE_THREAD, RouterWay, TWO_THREADS, Variant};
use super::plan::{Path, Place};
use super::proc;
use super::report::Report;

const NAME: &str = "bench";
const CLIENT: &str = "client";
/// A second client, on the same node.
pub const BULK: &str = "bulk";
const NODES: [&str; 2] = ["node1", "node2"];
/// A service that nobody is behind.
const NOBODY: &str = "nobody";
/// Seconds that a load may take beyond its own duration.
const GRACE: u32 = 20;
/// nginx.
pub const HTTP: u16 = 8080;
/// nghttpd, which speaks HTTP/2 with prior knowledge.
pub const CALLS: u16 = 8081;
/// iperf3.
pub const STREAM: u16 = 5201;
/// What nginx serves of [`LARGE_BODY_BYTES`].
pub const LARGE_BODY: &str = "/large";
/// 1 MiB.
pub const LARGE_BODY_BYTES: u64 = 1 << 20;
/// Routes of the service that has many.
const ROUTES: u32 = 1000;
/// The client's Envoys route from these and [`Variant::port_offset`], by place.
const ROUTED: [(Place, u16); 4] =
    [(Place::Http, 22_000), (Place::ManyRoutes, 22_000), (Place::HttpSame, 22_100), (Place::Grpc, 22_200)];
/// The server's Envoys take what is routed to them at these: requests, and calls.
const TAKEN: [(Place, u16); 2] = [(Place::Http, 23_000), (Place::Grpc, 23_200)];
/// The client's Envoy listens at the server's port and this, by place.
const LOCAL: [(Place, u16); 2] = [(Place::Cross, 20_000), (Place::Same, 21_000)];

/// A lab that is up, until it is dropped.
pub struct Paths {
    mesh_lab: PathBuf,
    directory: PathBuf,
    /// Address of a server by namespace and name.
    servers: BTreeMap<(String, String), String>,
    /// Requests a second that Envoy can do at most, once measured.
    pub envoy_most: OnceCell<f64>,
    /// Which of its Envoys the path takes where requests are routed.
    pub variant: Cell<Variant>,
    _allowed: CubicAllowed,
}

impl Paths {
    /// Brings everything up, with the same congestion control everywhere and more arguments for the agents.
    pub fn up(workspace: &Workspace, agent_arguments: &[String]) -> Result<Self> {
        let allowed = CubicAllowed::everywhere()?;
        let directory = workspace.target().join("bench");
        let envoy = Envoy::prepare(&directory)?;
        let mesh_lab = workspace.program("mesh-lab");
        let mut paths = Self {
            mesh_lab,
            directory,
            servers: BTreeMap::new(),
            envoy_most: OnceCell::new(),
            variant: Cell::new(Variant::ALL[0]),
            _allowed: allowed,
        };
        paths.lab(&["down"]).captured()?;
        let arguments = agent_arguments.iter().map(|argument| format!("--agent-arg={argument}"));
        paths.lab(&["up"]).args(arguments).checked()?;
        paths.set_congestion_control_of_nodes()?;
        paths.write_nginx()?;
        envoy.write_server("server", &[HTTP, STREAM])?;
        for threads in [TWO_THREADS, ONE_THREAD] {
            envoy.write_routers(&format!("server-router-{threads}"), &[], &served(threads))?;
        }
        paths.apply("servers", &paths.servers_manifest(&envoy))?;
        paths.find_servers()?;
        envoy.write_client("client", &paths.envoy_ways()?)?;
        for threads in [TWO_THREADS, ONE_THREAD] {
            envoy.write_routers(&format!("client-router-{threads}"), &paths.router_ways(threads)?, &[])?;
        }
        paths.apply("clients", &clients_manifest(&envoy))?;
        paths.check_congestion_control()?;
        Ok(paths)
    }

    /// Where files of the benchmark lie, which pods see as well.
    pub fn directory(&self) -> &std::path::Path {
        &self.directory
    }

    fn write_nginx(&self) -> Result<()> {
        let body = self.directory.join("large");
        #[allow(clippy::cast_possible_truncation)]
        fs::write(&body, vec![b'x'; LARGE_BODY_BYTES as usize]).context("can't write a large body")?;
        let configuration = NGINX.replace("BODY", &body.display().to_string());
        fs::write(self.directory.join("nginx.conf"), configuration).context("can't write nginx.conf")
    }

    /// A program in a path's client pod that should take so many seconds; one that hangs is stopped.
    pub fn in_client(&self, path: Path, seconds: u32, program: &[&str]) -> Command {
        self.in_pod(path, CLIENT, seconds, program)
    }

    /// The same in another pod.
    pub fn in_pod(&self, path: Path, pod: &str, seconds: u32, program: &[&str]) -> Command {
        let mut command = self.lab(&["exec", "-n", path.name(), pod, "--", "timeout", "--kill-after=1"]);
        command.arg((seconds + GRACE).to_string()).args(program);
        command
    }

    /// Where the client of a path finds a server's port.
    pub fn target(&self, path: Path, place: Place, port: u16) -> Result<(String, u16)> {
        match path {
            _ if place == Place::Unfiled => Ok((self.server(Path::None, place)?.to_owned(), port)),
            Path::None => Ok((self.server(path, place)?.to_owned(), port)),
            Path::Mesh if place.is_http() => Ok((format!("{}.{}", routed_service(place), path.name()), port)),
            Path::Mesh => Ok((format!("{}.{}", place.server(), path.name()), port)),
            Path::Envoy if place.is_http() => {
                Ok(("127.0.0.1".into(), port_at(&ROUTED, place) + self.variant.get().port_offset()))
            }
            Path::Envoy => Ok(("127.0.0.1".into(), local_port(place, port))),
        }
    }

    /// Process ids of the proxies of a path.
    pub fn proxies(&self, path: Path) -> Result<Vec<u32>> {
        Ok(self.instances(path)?.into_iter().flatten().collect())
    }

    /// The same, those of one instance together: an agent is two processes.
    fn instances(&self, path: Path) -> Result<Vec<Vec<u32>>> {
        match path {
            Path::None => Ok(Vec::new()),
            Path::Mesh => self.agents(),
            Path::Envoy => {
                let found = proc::with_argument(&self.directory.join("envoy-").display().to_string())?;
                Ok(found.into_iter().map(|pid| vec![pid]).collect())
            }
        }
    }

    /// Resident memory of a path's largest proxy, in megabytes.
    pub fn largest(&self, path: Path) -> Result<f64> {
        let sizes =
            self.instances(path)?.iter().map(|pids| proc::resident(pids)).collect::<Result<Vec<_>>>()?;
        Ok(sizes.into_iter().fold(0.0, f64::max))
    }

    /// Adds the resident memory of each path's largest proxy to the report.
    pub fn note_memory(&self, report: &mut Report, metric: &str) -> Result<()> {
        for path in [Path::Mesh, Path::Envoy] {
            report.add(metric, path, self.largest(path)?);
        }
        Ok(())
    }

    fn lab(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(&self.mesh_lab);
        command.args(["--name", NAME]).args(arguments);
        command
    }

    fn apply(&self, name: &str, objects: &[Value]) -> Result<()> {
        let file = self.directory.join(format!("{name}.json"));
        let text = json!({"apiVersion": "v1", "kind": "List", "items": objects}).to_string();
        fs::write(&file, text).with_context(|| format!("can't write {}", file.display()))?;
        self.lab(&["apply", "-f"]).arg(&file).stdout(Stdio::null()).checked()?;
        for path in Path::ALL {
            self.lab(&["wait", "-n", path.name()]).captured()?;
        }
        Ok(())
    }

    fn servers_manifest(&self, envoy: &Envoy) -> Vec<Value> {
        let nginx = self.directory.join("nginx.conf").display().to_string();
        let mut objects = Vec::new();
        for path in Path::ALL {
            objects.push(namespace(path));
            for (place, node) in [(Place::Cross, "node2"), (Place::Same, "node1")] {
                let mut containers = vec![
                    container("nginx", &["nginx", "-c", &nginx], Some(HTTP)),
                    container("iperf3", &["iperf3", "-s", "-p", &STREAM.to_string()], Some(STREAM)),
                    container("nghttpd", &NGHTTPD, Some(CALLS)),
                ];
                if path == Path::Envoy {
                    containers.push(container_of("envoy", &envoy.command("server", TWO_THREADS), None));
                    if place == Place::Cross {
                        containers.extend(routers(envoy, "server"));
                    }
                }
                objects.push(pod(path, place.server(), node, &containers));
                objects.push(service(path, place.server()));
            }
        }
        objects.push(service(Path::Mesh, NOBODY));
        for place in [Place::Http, Place::ManyRoutes, Place::HttpSame] {
            objects.extend(routed(place));
        }
        objects.push(Self::server_on_a_node(&nginx));
        objects
    }

    /// A server that no path has to itself, and that is in no mesh.
    fn server_on_a_node(nginx: &str) -> Value {
        let containers = [
            container("nginx", &["nginx", "-c", nginx], None),
            container("iperf3", &["iperf3", "-s", "-p", &STREAM.to_string()], None),
        ];
        let mut server = pod(Path::None, Place::Unfiled.server(), "node2", &containers);
        server["spec"]["hostNetwork"] = true.into();
        server
    }

    fn find_servers(&mut self) -> Result<()> {
        for path in Path::ALL {
            let text = self.lab(&["get", "pods", "-n", path.name(), "-o", "json"]).captured()?;
            let list: Value = serde_json::from_str(&text).context("mesh-lab get -o json")?;
            for pod in list["items"].as_array().into_iter().flatten() {
                let name = pod["metadata"]["name"].as_str().context("a pod without a name")?;
                let address = pod["status"]["podIP"].as_str().context("a pod without an address")?;
                self.servers.insert((path.name().into(), name.into()), address.into());
            }
        }
        Ok(())
    }

    fn server(&self, path: Path, place: Place) -> Result<&str> {
        let key = (path.name().to_owned(), place.server().to_owned());
        self.servers.get(&key).map(String::as_str).with_context(|| format!("no pod {}/{}", key.0, key.1))
    }

    fn envoy_ways(&self) -> Result<Vec<(u16, String, u16)>> {
        let mut ways = Vec::new();
        for place in Place::SERVERS {
            for port in [HTTP, STREAM] {
                let server = self.server(Path::Envoy, place)?.to_owned();
                ways.push((local_port(place, port), server, port));
            }
        }
        Ok(ways)
    }

    /// On one node a single Envoy routes to the server itself.
    fn router_ways(&self, threads: u16) -> Result<Vec<RouterWay>> {
        let mut ways = Vec::new();
        for place in [Place::Http, Place::HttpSame, Place::Grpc] {
            let server = self.server(Path::Envoy, place)?.to_owned();
            for variant in Variant::of(place).into_iter().filter(|variant| variant.threads == threads) {
                let tls = place != Place::HttpSame;
                let to = if tls { port_at(&TAKEN, place) + variant.port_offset() } else { HTTP };
                ways.push(RouterWay {
                    local: port_at(&ROUTED, place) + variant.port_offset(),
                    to: (server.clone(), to),
                    http2: variant.http2,
                    tls,
                });
            }
        }
        Ok(ways)
    }

    fn set_congestion_control_of_nodes(&self) -> Result<()> {
        NODES
            .iter()
            .try_for_each(|node| self.lab(&["node", node, "--", "sh", "-c", SET_CUBIC]).captured().map(drop))
    }

    /// The machine's default may be another; the figures of two are not to be compared.
    fn check_congestion_control(&self) -> Result<()> {
        for node in NODES {
            let found = self.lab(&["node", node, "--", "cat", CONGESTION_CONTROL]).captured()?;
            ensure!(found.trim() == "cubic", "{node} has {}", found.trim());
        }
        for path in Path::ALL {
            for pod in [CLIENT, BULK, Place::Cross.server(), Place::Same.server()] {
                let read = ["exec", "-n", path.name(), pod, "--", "cat", CONGESTION_CONTROL];
                let found = self.lab(&read).captured()?;
                ensure!(found.trim() == "cubic", "pod {}/{pod} has {}", path.name(), found.trim());
            }
        }
        Ok(())
    }

    /// A keeper and its proxy on each node.
    fn agents(&self) -> Result<Vec<Vec<u32>>> {
        let text = self.lab(&["status", "-o", "json"]).captured()?;
        let status: Value = serde_json::from_str(&text).context("mesh-lab status -o json")?;
        let nodes = status["nodes"].as_array().context("a lab without nodes")?;
        nodes.iter().map(|node| proc::of_agent(node).context("a node without an agent")).collect()
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        if let Err(error) = self.lab(&["down"]).captured() {
            remark!("warning: the lab was not taken down: {error:#}");
        }
    }
}

/// While it lives, network namespaces may choose CUBIC: the kernel lets them have only what this list of the
/// machine names. The machine's own choice is another setting and stays.
struct CubicAllowed {
    before: String,
    /// One benchmark at a time: a second would share processors and the lab's name with the first, and the
    /// one that ends would take CUBIC from the other.
    _alone: File,
}

impl CubicAllowed {
    const LIST: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";
    const LOCK: &str = "/run/nodemesh-bench.lock";

    fn everywhere() -> Result<Self> {
        let alone = File::create(Self::LOCK).with_context(|| format!("can't make {}", Self::LOCK))?;
        alone.try_lock().with_context(|| format!("another benchmark runs: {} is held", Self::LOCK))?;
        let before = fs::read_to_string(Self::LIST).with_context(|| format!("can't read {}", Self::LIST))?;
        fs::write(Self::LIST, format!("{} cubic", before.trim())).context("can't allow CUBIC")?;
        Ok(Self { before, _alone: alone })
    }
}

impl Drop for CubicAllowed {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::LIST, &self.before) {
            remark!("warning: {} is not as it was ({}): {error}", Self::LIST, self.before.trim());
        }
    }
}

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";
const SET_CUBIC: &str = "echo cubic > /proc/sys/net/ipv4/tcp_congestion_control";

const NGINX: &str = "\
worker_processes 1;
daemon off;
pid /dev/null;
error_log stderr error;
events { worker_connections 16384; }
http {
  access_log off;
  keepalive_requests 100000000;
  server {
    listen 8080 reuseport backlog=4096;
    location / { return 200 'ok'; }
    location /large { alias BODY; }
  }
}
";

/// Sends the message of a call back, with its outcome in trailers.
const NGHTTPD: [&str; 6] =
    ["nghttpd", "--no-tls", "--workers=1", "--echo-upload", "--trailer=grpc-status: 0", "8081"];

/// Containers of the Envoys that route in a pod.
fn routers(envoy: &Envoy, side: &str) -> [Value; 2] {
    [TWO_THREADS, ONE_THREAD].map(|threads| {
        let name = format!("{side}-router-{threads}");
        container_of(&name, &envoy.command(&name, threads), None)
    })
}

/// What the server's Envoys take from their counterparts: the port, the server's, and whether that speaks
/// HTTP/2.
fn served(threads: u16) -> Vec<(u16, u16, bool)> {
    let places = TAKEN
        .into_iter()
        .flat_map(|(place, base)| Variant::of(place).into_iter().map(move |variant| (place, base, variant)));
    let of_threads = places.filter(|(_, _, variant)| variant.threads == threads);
    of_threads
        .map(|(place, base, variant)| {
            let is_grpc = place == Place::Grpc;
            (base + variant.port_offset(), if is_grpc { CALLS } else { HTTP }, is_grpc)
        })
        .collect()
}

/// Name of the service through which the mesh's client reaches a server where requests are routed.
fn routed_service(place: Place) -> &'static str {
    match place {
        Place::ManyRoutes => "routed-many",
        Place::HttpSame => "routed-same",
        _ => "routed",
    }
}

/// That service, and its routes: one that everything takes, behind others that nothing takes where there are
/// many.
fn routed(place: Place) -> [Value; 2] {
    let name = routed_service(place);
    let to = json!([{"destination": {"host": name}}]);
    let others = if place == Place::ManyRoutes { ROUTES - 1 } else { 0 };
    let routes = (0..others)
        .map(|index| json!({"match": [{"uri": {"prefix": format!("/other/{index}/")}}], "route": to}))
        .chain([json!({"route": to})]);
    let routes = json!({
        "apiVersion": "networking.istio.io/v1",
        "kind": "VirtualService",
        "metadata": {"name": name, "namespace": Path::Mesh.name()},
        "spec": {"hosts": [name], "http": routes.collect::<Vec<_>>()},
    });
    [service_of(Path::Mesh, name, place.server()), routes]
}

fn clients_manifest(envoy: &Envoy) -> Vec<Value> {
    let client = |path, name| {
        let mut containers = vec![container("wait", &["sleep", "infinity"], None)];
        if path == Path::Envoy {
            containers.push(container_of(
                "envoy",
                &envoy.command("client", TWO_THREADS),
                Some(local_port(Place::Cross, HTTP)),
            ));
            if name == CLIENT {
                containers.extend(routers(envoy, "client"));
            }
        }
        pod(path, name, "node1", &containers)
    };
    Path::ALL.into_iter().flat_map(|path| [client(path, CLIENT), client(path, BULK)]).collect()
}

fn local_port(place: Place, port: u16) -> u16 {
    let base =
        LOCAL.iter().find(|(candidate, _)| candidate.server() == place.server()).map_or(0, |(_, base)| *base);
    base + port
}

fn port_at(bases: &[(Place, u16)], place: Place) -> u16 {
    bases.iter().find(|(candidate, _)| *candidate == place).map_or(0, |(_, base)| *base)
}

fn namespace(path: Path) -> Value {
    let dataplane = if path == Path::Mesh { "enabled" } else { "disabled" };
    json!({
        "apiVersion": "v1",
        "kind": "Namespace",
        "metadata": {"name": path.name(), "labels": {"nodemesh.io/dataplane": dataplane}},
    })
}

fn pod(path: Path, name: &str, node: &str, containers: &[Value]) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": path.name(), "labels": {"app": name}},
        "spec": {"nodeName": node, "containers": containers},
    })
}

/// Host name of a path's service that nobody is behind.
pub fn nobody(path: Path) -> String {
    format!("{NOBODY}.{}", path.name())
}

/// What the mesh's client connects to. IPv4 alone, as the other paths use it.
fn service(path: Path, name: &str) -> Value {
    service_of(path, name, name)
}

/// A service of the pods that are called `app`.
fn service_of(path: Path, name: &str, app: &str) -> Value {
    let port = |name: &str, port: u16| json!({"name": name, "port": port});
    json!({
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "namespace": path.name()},
        "spec": {
            "ipFamilies": ["IPv4"],
            "selector": {"app": app},
            "ports": [port("http", HTTP), port("tcp-stream", STREAM), port("grpc", CALLS)],
        },
    })
}

fn container(name: &str, program: &[&str], port: Option<u16>) -> Value {
    let program: Vec<_> = program.iter().map(|&word| word.to_owned()).collect();
    container_of(name, &program, port)
}

/// A container that is ready once `port` is open, by a look from inside: a client's Envoy listens on loopback
/// only. A startup probe, since it ends: one that goes on takes milliseconds of a processor, which show in
/// the latencies.
fn container_of(name: &str, program: &[String], port: Option<u16>) -> Value {
    let script = format!("{SET_CUBIC} && exec \"$@\"");
    let mut command = vec!["sh".to_owned(), "-c".to_owned(), script, name.to_owned()];
    command.extend_from_slice(program);
    let mut container = json!({"name": name, "command": command});
    if let Some(port) = port {
        let open = format!("ss -Hltn 'sport = :{port}' | grep -q .");
        container["startupProbe"] = json!({
            "exec": {"command": ["sh", "-c", open]},
            "periodSeconds": 1,
            "failureThreshold": 60,
        });
    }
    container
}
