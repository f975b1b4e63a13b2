//! The lab with the three paths: in each namespace a client on one node, a server there, and one on the other node.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::command::CommandExt;
use crate::workspace::Workspace;

use super::envoy::Envoy;
use super::plan::{Path, Place};
use super::report::Report;

const NAME: &str = "bench";
const CLIENT: &str = "client";
/// nginx.
pub const HTTP: u16 = 8080;
/// iperf3.
pub const STREAM: u16 = 5201;
/// The client's Envoy listens at the server's port and this, by place.
const LOCAL: [(Place, u16); 2] = [(Place::Cross, 20_000), (Place::Same, 21_000)];

/// A lab that is up, until it is dropped.
pub struct Paths {
    mesh_lab: PathBuf,
    directory: PathBuf,
    /// Address of a server by namespace and name.
    servers: BTreeMap<(String, String), String>,
    _allowed: CubicAllowed,
}

impl Paths {
    /// Brings everything up, with the same congestion control everywhere.
    pub fn up(workspace: &Workspace) -> Result<Self> {
        let directory = workspace.target().join("bench");
        let envoy = Envoy::prepare(&directory)?;
        let mesh_lab = workspace.program("mesh-lab");
        let allowed = CubicAllowed::everywhere()?;
        let mut paths = Self { mesh_lab, directory, servers: BTreeMap::new(), _allowed: allowed };
        paths.lab(&["down"]).captured()?;
        paths.lab(&["up", "--agent-arg=--access-log=off"]).checked()?;
        fs::write(paths.directory.join("nginx.conf"), NGINX).context("can't write nginx.conf")?;
        envoy.write_server("server", &[HTTP, STREAM])?;
        paths.apply("servers", &paths.servers_manifest(&envoy))?;
        paths.find_servers()?;
        envoy.write_client("client", &paths.envoy_ways()?)?;
        paths.apply("clients", &clients_manifest(&envoy))?;
        paths.check_congestion_control()?;
        Ok(paths)
    }

    /// A program in a path's client pod.
    pub fn in_client(&self, path: Path, program: &[&str]) -> Command {
        let mut command = self.lab(&["exec", "-n", path.name(), CLIENT, "--"]);
        command.args(program);
        command
    }

    /// Where the client of a path finds a server's port.
    pub fn target(&self, path: Path, place: Place, port: u16) -> Result<(String, u16)> {
        if path == Path::Envoy {
            return Ok(("127.0.0.1".into(), local_port(place, port)));
        }
        Ok((self.server(path, place)?.to_owned(), port))
    }

    /// Process ids of the proxies of a path.
    pub fn proxies(&self, path: Path) -> Result<Vec<u32>> {
        match path {
            Path::None => Ok(Vec::new()),
            Path::Mesh => self.agents(),
            Path::Envoy => processes_with(&self.directory.join("envoy-").display().to_string()),
        }
    }

    /// Adds the resident memory of each path's largest proxy to the report.
    pub fn note_memory(&self, report: &mut Report, metric: &str) -> Result<()> {
        for path in [Path::Mesh, Path::Envoy] {
            let sizes: Vec<f64> = self.proxies(path)?.into_iter().map(resident).collect::<Result<_>>()?;
            report.add(metric, path, sizes.into_iter().fold(0.0, f64::max));
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
                ];
                if path == Path::Envoy {
                    containers.push(container_of("envoy", &envoy.command("server"), None));
                }
                objects.push(pod(path, place.name(), node, &containers));
            }
        }
        objects
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
        let key = (path.name().to_owned(), place.name().to_owned());
        self.servers.get(&key).map(String::as_str).with_context(|| format!("no pod {}/{}", key.0, key.1))
    }

    fn envoy_ways(&self) -> Result<Vec<(u16, String, u16)>> {
        let mut ways = Vec::new();
        for place in Place::ALL {
            for port in [HTTP, STREAM] {
                let server = self.server(Path::Envoy, place)?.to_owned();
                ways.push((local_port(place, port), server, port));
            }
        }
        Ok(ways)
    }

    /// The machine's default may be another; the figures of two are not to be compared.
    fn check_congestion_control(&self) -> Result<()> {
        for path in Path::ALL {
            for pod in [CLIENT, Place::Cross.name(), Place::Same.name()] {
                let read = ["exec", "-n", path.name(), pod, "--", "cat", CONGESTION_CONTROL];
                let found = self.lab(&read).captured()?;
                ensure!(found.trim() == "cubic", "pod {}/{pod} has {}", path.name(), found.trim());
            }
        }
        Ok(())
    }

    fn agents(&self) -> Result<Vec<u32>> {
        let text = self.lab(&["status", "-o", "json"]).captured()?;
        let status: Value = serde_json::from_str(&text).context("mesh-lab status -o json")?;
        let nodes = status["nodes"].as_array().context("a lab without nodes")?;
        let pid = |node: &Value| node["agent"]["pid"].as_u64().and_then(|pid| u32::try_from(pid).ok());
        nodes.iter().map(|node| pid(node).context("a node without an agent")).collect()
    }
}

impl Drop for Paths {
    fn drop(&mut self) {
        if let Err(error) = self.lab(&["down"]).captured() {
            eprintln!("warning: the lab was not taken down: {error:#}");
        }
    }
}

/// While it lives, network namespaces may choose CUBIC: the kernel lets them have only what this list of the machine
/// names. The machine's own choice is another setting and stays.
struct CubicAllowed {
    before: String,
}

impl CubicAllowed {
    const LIST: &str = "/proc/sys/net/ipv4/tcp_allowed_congestion_control";

    fn everywhere() -> Result<Self> {
        let before = fs::read_to_string(Self::LIST).with_context(|| format!("can't read {}", Self::LIST))?;
        fs::write(Self::LIST, format!("{} cubic", before.trim())).context("can't allow CUBIC")?;
        Ok(Self { before })
    }
}

impl Drop for CubicAllowed {
    fn drop(&mut self) {
        if let Err(error) = fs::write(Self::LIST, &self.before) {
            eprintln!("warning: {} is not as it was ({}): {error}", Self::LIST, self.before.trim());
        }
    }
}

const CONGESTION_CONTROL: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

const NGINX: &str = "\
worker_processes 1;
daemon off;
pid /dev/null;
error_log stderr error;
events { worker_connections 4096; }
http {
  access_log off;
  keepalive_requests 100000000;
  server { listen 8080 reuseport backlog=4096; location / { return 200 'ok'; } }
}
";

fn clients_manifest(envoy: &Envoy) -> Vec<Value> {
    let client = |path| {
        let mut containers = vec![container("wait", &["sleep", "infinity"], None)];
        if path == Path::Envoy {
            containers.push(container_of(
                "envoy",
                &envoy.command("client"),
                Some(local_port(Place::Cross, HTTP)),
            ));
        }
        pod(path, CLIENT, "node1", &containers)
    };
    Path::ALL.map(client).to_vec()
}

fn local_port(place: Place, port: u16) -> u16 {
    let base = LOCAL.iter().find(|(candidate, _)| *candidate == place).map_or(0, |(_, base)| *base);
    base + port
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
        "metadata": {"name": name, "namespace": path.name()},
        "spec": {"nodeName": node, "containers": containers},
    })
}

fn container(name: &str, program: &[&str], port: Option<u16>) -> Value {
    let program: Vec<_> = program.iter().map(|&word| word.to_owned()).collect();
    container_of(name, &program, port)
}

/// A container that is ready once `port` is open, by a look from inside: a client's Envoy listens on loopback only.
fn container_of(name: &str, program: &[String], port: Option<u16>) -> Value {
    let script = format!("echo cubic > {CONGESTION_CONTROL} && exec \"$@\"");
    let mut command = vec!["sh".to_owned(), "-c".to_owned(), script, name.to_owned()];
    command.extend_from_slice(program);
    let mut container = json!({"name": name, "command": command});
    if let Some(port) = port {
        let open = format!("ss -Hltn 'sport = :{port}' | grep -q .");
        container["readinessProbe"] = json!({"exec": {"command": ["sh", "-c", open]}, "periodSeconds": 1});
    }
    container
}

/// Processes with an argument that starts like that.
fn processes_with(argument: &str) -> Result<Vec<u32>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").context("can't read /proc")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        // A process that has ended meanwhile is none of them.
        let line = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if line.split(|byte| *byte == 0).any(|word| word.starts_with(argument.as_bytes())) {
            found.push(pid);
        }
    }
    ensure!(!found.is_empty(), "no Envoy runs");
    Ok(found)
}

/// Resident memory in megabytes.
fn resident(pid: u32) -> Result<f64> {
    let path = format!("/proc/{pid}/status");
    let text = fs::read_to_string(&path).with_context(|| format!("can't read {path}"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no VmRSS")?;
    let kilobytes: f64 = line.trim().trim_end_matches(" kB").parse().context("VmRSS is no number")?;
    Ok(kilobytes * 1024.0 / 1e6)
}
