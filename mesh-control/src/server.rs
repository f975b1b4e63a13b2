//! Putting the parts together, and taking them apart in order.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use mesh_api::compile::MeshConfig;
use mesh_api::wire::ca::istio_certificate_service_server::IstioCertificateServiceServer;
use mesh_api::wire::xds::aggregated_discovery_service_server::AggregatedDiscoveryServiceServer;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::transport::Server;
use tracing::{error, info, warn};

use crate::admin;
use crate::ca::{Authority, AuthorityError, CertificateService};
use crate::config::Configuration;
use crate::metrics::Metrics;
use crate::nodes::NodeTokens;
use crate::options::{Options, Source};
use crate::source::{Findings, Publisher};
use crate::tls::{self, ServerTls, TlsError};
use crate::watch::{Depth, DirectoryWatch};
use crate::xds::DiscoveryService;
use crate::xds::agents::Agents;

/// Agents that are alive answer a ping within this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which an agent is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// An agent asks for as many certificates at a time as it has accounts; the rest waits its turn.
const STREAMS: u32 = 128;
/// A resumed stream names every resource that it holds.
const LARGEST_DISCOVERY_REQUEST: usize = 64 << 20;
/// A signing request has about 500 bytes.
const LARGEST_CERTIFICATE_REQUEST: usize = 64 << 10;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 1024;

/// A control plane that serves.
pub struct ControlPlane {
    listen: SocketAddr,
    metrics: SocketAddr,
    stopping: watch::Sender<bool>,
    /// What ends by itself once `stopping` is true.
    serving: JoinSet<()>,
    /// What is ended when nobody is served any more.
    background: JoinSet<()>,
    admin_socket: Option<PathBuf>,
}

/// The parts that more than one service uses.
struct Parts {
    authority: Arc<Authority>,
    tokens: Arc<NodeTokens>,
    configuration: watch::Receiver<Arc<Configuration>>,
    agents: Arc<Agents>,
    metrics: Arc<Metrics>,
}

impl ControlPlane {
    /// Reads everything and listens. Agents are served from here on, the whole configuration from the first moment.
    ///
    /// # Panics
    /// Outside of a tokio runtime.
    pub fn start(options: &Options) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let authority = Arc::new(open_authority(options)?);
        let tokens = NodeTokens::open(&options.node_tokens).map_err(at(&options.node_tokens))?;
        let mut publisher = publisher(options, Arc::clone(&metrics));
        let Source::Directory(source) = &options.source;
        let changes = publisher.watch().map_err(at(source))?;
        publisher.publish().map_err(at(source))?;
        let findings = publisher.findings();
        let parts = Parts {
            authority,
            tokens: Arc::new(tokens),
            configuration: publisher.configuration(),
            agents: Arc::new(Agents::new(Arc::clone(&metrics))),
            metrics,
        };
        let stopping = watch::Sender::new(false);
        let (mut serving, mut background) = (JoinSet::new(), JoinSet::new());
        parts.watch_files(&mut background)?;
        let listen = parts.serve_agents(options.listen, &stopping, &mut serving, &mut background)?;
        let metrics = parts.serve_metrics(options.metrics, &stopping, &mut serving)?;
        if let Some(path) = &options.admin_socket {
            let listener = admin::bind(path).map_err(at(path))?;
            let routes = admin::admin(parts.into_admin(options, findings));
            serve_http(listener, routes, &stopping, &mut serving);
        }
        background.spawn(publisher.follow(changes));
        info!(%listen, %metrics, source = %options.source, "mesh-control serves");
        let admin_socket = options.admin_socket.clone();
        Ok(Self { listen, metrics, stopping, serving, background, admin_socket })
    }

    /// The address that agents connect to.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// The address of the metrics endpoint.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Stops accepting, tells agents to go, and waits for them until the deadline.
    pub async fn stop(mut self, deadline: Duration) {
        self.stopping.send_replace(true);
        let served = async { while self.serving.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, served).await.is_err() {
            warn!("connections were still open after {deadline:?}; closing them");
        }
        self.background.shutdown().await;
        if let Some(path) = &self.admin_socket {
            // A socket file that stays is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
        info!("mesh-control stopped");
    }
}

impl Parts {
    /// Follows the tokens and the roots.
    fn watch_files(&self, tasks: &mut JoinSet<()>) -> Result<(), StartError> {
        let tokens = Arc::clone(&self.tokens);
        let directory = tokens.directory();
        let mut changes = DirectoryWatch::new(directory, Depth::Flat).map_err(at(directory))?;
        tasks.spawn(async move {
            loop {
                changes.changed().await;
                if let Err(error) = tokens.reload() {
                    error!(%error, "node tokens not read; the last ones stay in force");
                }
            }
        });
        let authority = Arc::clone(&self.authority);
        let Some(directory) = authority.watched_directory() else { return Ok(()) };
        let mut changes = DirectoryWatch::new(directory, Depth::Flat).map_err(at(directory))?;
        tasks.spawn(async move {
            loop {
                changes.changed().await;
                match authority.reload() {
                    Ok(true) => info!("roots changed"),
                    Ok(false) => {}
                    Err(error) => error!(%error, "roots not read; the last ones stay in force"),
                }
            }
        });
        Ok(())
    }

    fn serve_agents(
        &self,
        address: SocketAddr,
        stopping: &watch::Sender<bool>,
        serving: &mut JoinSet<()>,
        background: &mut JoinSet<()>,
    ) -> Result<SocketAddr, StartError> {
        let listener = listen(address).map_err(|error| StartError::Listen { address, error })?;
        let bound = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
        let tls = Arc::new(ServerTls::new(Arc::clone(&self.authority))?);
        let incoming = tls::incoming(listener, Arc::clone(&tls), Arc::clone(&self.metrics));
        background.spawn(async move { tls.keep_fresh().await });
        let server = Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .max_concurrent_streams(STREAMS)
            .add_service(
                AggregatedDiscoveryServiceServer::new(self.discovery(stopping))
                    .max_decoding_message_size(LARGEST_DISCOVERY_REQUEST)
                    .max_encoding_message_size(usize::MAX),
            )
            .add_service(
                IstioCertificateServiceServer::new(self.certificates())
                    .max_decoding_message_size(LARGEST_CERTIFICATE_REQUEST),
            );
        let stop = stopped(stopping);
        serving.spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
                error!(%error, "the xDS and CA server failed");
            }
        });
        Ok(bound)
    }

    fn serve_metrics(
        &self,
        address: SocketAddr,
        stopping: &watch::Sender<bool>,
        serving: &mut JoinSet<()>,
    ) -> Result<SocketAddr, StartError> {
        let listener = listen(address).map_err(|error| StartError::Listen { address, error })?;
        let bound = listener.local_addr().map_err(|error| StartError::Listen { address, error })?;
        serve_http(listener, admin::metrics(Arc::clone(&self.metrics)), stopping, serving);
        Ok(bound)
    }

    fn discovery(&self, stopping: &watch::Sender<bool>) -> DiscoveryService {
        DiscoveryService {
            authority: Arc::clone(&self.authority),
            tokens: Arc::clone(&self.tokens),
            configuration: self.configuration.clone(),
            agents: Arc::clone(&self.agents),
            metrics: Arc::clone(&self.metrics),
            stopping: stopping.subscribe(),
        }
    }

    fn certificates(&self) -> CertificateService {
        CertificateService {
            authority: Arc::clone(&self.authority),
            tokens: Arc::clone(&self.tokens),
            configuration: self.configuration.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    fn into_admin(self, options: &Options, findings: Arc<Mutex<Findings>>) -> admin::Admin {
        admin::Admin {
            source: options.source.to_string(),
            authority: self.authority,
            configuration: self.configuration,
            findings,
            agents: self.agents,
        }
    }
}

fn open_authority(options: &Options) -> Result<Authority, StartError> {
    std::fs::create_dir_all(&options.state_dir).map_err(at(&options.state_dir))?;
    let given = options.given_authority();
    let (domain, longest) = (&options.trust_domain, options.workload_cert_ttl);
    Ok(Authority::open(&options.state_dir, given.as_ref(), domain, longest)?)
}

fn publisher(options: &Options, metrics: Arc<Metrics>) -> Publisher {
    let mesh = MeshConfig {
        trust_domain: options.trust_domain.clone(),
        root_namespace: options.root_namespace.clone(),
        cluster_domain: options.cluster_domain.clone(),
        cluster_id: options.cluster_id.clone(),
        ..MeshConfig::default()
    };
    let Source::Directory(path) = &options.source;
    Publisher::new(path.clone(), options.state_dir.join("last-good.json"), mesh, metrics)
}

/// Listens; on an IPv6 wildcard for IPv4 too, whatever the system's default is.
fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    TcpListener::from_std(socket.into())
}

fn serve_http<L>(listener: L, routes: axum::Router, stopping: &watch::Sender<bool>, tasks: &mut JoinSet<()>)
where
    L: axum::serve::Listener,
    L::Addr: std::fmt::Debug,
{
    let stop = stopped(stopping);
    tasks.spawn(async move {
        if let Err(error) = axum::serve(listener, routes).with_graceful_shutdown(stop).await {
            error!(%error, "an HTTP endpoint failed");
        }
    });
}

fn stopped(stopping: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut stopping = stopping.subscribe();
    async move {
        // An error means that the control plane is gone, which is a stop as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> StartError {
    let path = path.to_owned();
    move |error| StartError::Path { path, error }
}

/// Why the control plane does not start. The operator has to act.
#[derive(Debug, Error)]
pub enum StartError {
    /// No authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// No TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// An address is taken or not ours.
    #[error("cannot listen on {address}: {error}")]
    Listen {
        /// The address.
        address: SocketAddr,
        /// What the kernel said.
        error: io::Error,
    },
    /// A directory or socket can't be used.
    #[error("{}: {error}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// What the kernel said.
        error: io::Error,
    },
}
