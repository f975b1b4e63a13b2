//! Putting the parts together, and taking them apart in order.

use std::io;
use std::net::{self, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::FutureExt as _;
use futures_util::future::BoxFuture;
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
use crate::ca::{AuthorityError, CertificateService};
use crate::findings::Findings;
use crate::kubernetes::roots::RootsError;
use crate::listeners::{self, Known};
use crate::metrics::Metrics;
use crate::options::Options;
use crate::parts::{self, Parts, Tasks};
use crate::tls::{self, ServerTls, TlsError};
use crate::xds::DiscoveryService;

/// Agents that are alive answer a ping within this.
const PING_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence after which an agent is pinged.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// Calls at a time of one connection. An agent has one or two.
const STREAMS: u32 = 32;
/// Bytes of a call, and of all calls of a connection, that are taken before anybody reads them.
const WINDOW: u32 = 64 << 10;
/// Bytes of a call's headers; a token has about a thousand.
const HEADERS: u32 = 8 << 10;
/// Calls that a peer takes back before they are looked at.
const TAKEN_BACK: usize = 20;
/// A call is answered within this: the API server is asked whose the token is, and a pod waited for. A stream
/// of discovery is answered when it begins.
const ANSWERED_WITHIN: Duration = Duration::from_secs(20);
/// A resumed stream names every resource that it holds.
const LARGEST_DISCOVERY_REQUEST: usize = 64 << 20;
/// A signing request has about 500 bytes, with RSA up to 2,000. It is read before anybody looks whose it is.
const LARGEST_CERTIFICATE_REQUEST: usize = 8 << 10;
/// Connections that wait in the kernel.
const BACKLOG: i32 = 1024;

/// A control plane that serves.
pub struct ControlPlane {
    listen: SocketAddr,
    metrics: SocketAddr,
    ready: watch::Sender<bool>,
    tasks: Tasks,
    admin_socket: Option<PathBuf>,
}

impl ControlPlane {
    /// Reads everything and then listens: agents are served the whole configuration from the first moment.
    /// Metrics and health are served at once.
    // A boxed future is compiled here, with all that it calls, and not again in each program that awaits it.
    pub fn start(options: &Options) -> BoxFuture<'_, Result<Self, StartError>> {
        Self::open(options).boxed()
    }

    async fn open(options: &Options) -> Result<Self, StartError> {
        let metrics = Arc::new(Metrics::default());
        let (ready, mut tasks) = (watch::Sender::new(false), Tasks::default());
        let known = Known::default();
        let routes = admin::metrics(Arc::clone(&metrics), ready.subscribe());
        let metrics_address =
            listeners::serve_metrics(options, routes, (known.clone(), &metrics), &mut tasks)?;
        let (parts, publisher, changes) = parts::open(options, metrics, &mut tasks).await?;
        known.tell(parts.configuration.clone());
        let listen = parts.serve_agents(options, &mut tasks)?;
        parts.serve_admin(options, publisher.findings(), &mut tasks)?;
        tasks.background.spawn(publisher.follow(changes));
        ready.send_replace(true);
        info!(%listen, metrics = %metrics_address, source = %options.source, "mesh-control serves");
        let admin_socket = options.admin_socket.clone();
        Ok(Self { listen, metrics: metrics_address, ready, tasks, admin_socket })
    }

    /// The address that agents connect to.
    pub fn listen_address(&self) -> SocketAddr {
        self.listen
    }

    /// The address of the metrics endpoint.
    pub fn metrics_address(&self) -> SocketAddr {
        self.metrics
    }

    /// Returns when one of its tasks has panicked: the others can't do without it.
    pub async fn breaks(&mut self) {
        let Tasks { serving, background, .. } = &mut self.tasks;
        tokio::select! {
            () = panicked(serving) => {}
            () = panicked(background) => {}
        }
    }

    /// Stops accepting, tells agents to go, and waits for them until the deadline.
    pub async fn stop(mut self, deadline: Duration) {
        self.ready.send_replace(false);
        self.tasks.stopping.send_replace(true);
        let served = async { while self.tasks.serving.join_next().await.is_some() {} };
        if tokio::time::timeout(deadline, served).await.is_err() {
            warn!("connections were still open after {deadline:?}; closing them");
        }
        self.tasks.background.shutdown().await;
        if let Some(path) = &self.admin_socket {
            // A socket file that stays is replaced at the next start.
            let _ = std::fs::remove_file(path);
        }
        info!("mesh-control stopped");
    }
}

async fn panicked(tasks: &mut JoinSet<()>) {
    while let Some(ended) = tasks.join_next().await {
        if ended.is_err_and(|error| error.is_panic()) {
            return;
        }
    }
    std::future::pending::<()>().await;
}

impl Parts {
    fn serve_agents(&self, options: &Options, tasks: &mut Tasks) -> Result<SocketAddr, StartError> {
        let listener = bind(options.listen)?;
        let bound = local_address(&listener, options.listen)?;
        let names = tls::names(&options.namespace, &options.cluster_domain);
        let tls = Arc::new(ServerTls::new(Arc::clone(&self.authority), names)?);
        let incoming = tls::incoming(listener, Arc::clone(&tls), Arc::clone(&self.metrics));
        tasks.background.spawn(async move { tls.keep_fresh().await });
        let server = Server::builder()
            .http2_keepalive_interval(Some(PING_INTERVAL))
            .http2_keepalive_timeout(Some(PING_TIMEOUT))
            .max_concurrent_streams(STREAMS)
            .initial_stream_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .http2_max_header_list_size(HEADERS)
            .http2_max_pending_accept_reset_streams(Some(TAKEN_BACK))
            .timeout(ANSWERED_WITHIN)
            .add_service(
                AggregatedDiscoveryServiceServer::new(self.discovery(options, &tasks.stopping))
                    .max_decoding_message_size(LARGEST_DISCOVERY_REQUEST)
                    .max_encoding_message_size(usize::MAX),
            )
            .add_service(
                IstioCertificateServiceServer::new(self.certificates())
                    .max_decoding_message_size(LARGEST_CERTIFICATE_REQUEST),
            );
        let stop = stopped(&tasks.stopping);
        tasks.serving.spawn(async move {
            if let Err(error) = server.serve_with_incoming_shutdown(incoming, stop).await {
                error!(%error, "the xDS and CA server failed");
            }
        });
        Ok(bound)
    }

    fn serve_admin(
        &self,
        options: &Options,
        findings: Arc<Mutex<Findings>>,
        tasks: &mut Tasks,
    ) -> Result<(), StartError> {
        listeners::serve_admin(options, &Arc::new(self.admin(options, findings)), &self.metrics, tasks)
    }

    fn discovery(&self, options: &Options, stopping: &watch::Sender<bool>) -> DiscoveryService {
        DiscoveryService {
            authority: Arc::clone(&self.authority),
            tokens: Arc::clone(&self.nodes),
            configuration: self.configuration.clone(),
            agents: Arc::clone(&self.agents),
            metrics: Arc::clone(&self.metrics),
            stopping: stopping.subscribe(),
            stay: options.agent_stay,
        }
    }

    fn certificates(&self) -> CertificateService {
        CertificateService {
            authority: Arc::clone(&self.authority),
            tokens: Arc::clone(&self.nodes),
            configuration: self.configuration.clone(),
            metrics: Arc::clone(&self.metrics),
        }
    }

    fn admin(&self, options: &Options, findings: Arc<Mutex<Findings>>) -> admin::Admin {
        admin::Admin {
            root_namespace: options.root_namespace.clone(),
            source: options.source.to_string(),
            authority: Arc::clone(&self.authority),
            shared_roots: self.shared_roots.clone(),
            configuration: self.configuration.clone(),
            findings,
            unread: self.unread.clone(),
            agents: Arc::clone(&self.agents),
        }
    }
}

fn bind(address: SocketAddr) -> Result<TcpListener, StartError> {
    let listener = listen(address)?;
    TcpListener::from_std(listener).map_err(|error| StartError::Listen { address, error })
}

/// Listens, for whichever runtime. Errors: the address is taken or not ours.
pub(crate) fn listen(address: SocketAddr) -> Result<net::TcpListener, StartError> {
    listen_once(address).map_err(|error| StartError::Listen { address, error })
}

/// The port that the kernel chose, where none was given.
fn local_address(listener: &TcpListener, asked: SocketAddr) -> Result<SocketAddr, StartError> {
    listener.local_addr().map_err(|error| StartError::Listen { address: asked, error })
}

/// Listens; on an IPv6 wildcard for IPv4 too, whatever the system's default is.
fn listen_once(address: SocketAddr) -> io::Result<net::TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(false)?;
    }
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn stopped(stopping: &watch::Sender<bool>) -> impl Future<Output = ()> + Send + 'static {
    let mut stopping = stopping.subscribe();
    async move {
        // An error means that the control plane is gone, which is a stop as well.
        let _ = stopping.wait_for(|stopping| *stopping).await;
    }
}

/// Why the control plane does not start. The operator has to act.
#[derive(Debug, Error)]
pub enum StartError {
    /// No authority.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// A directory knows no nodes by itself.
    #[error("--node-tokens is needed with a directory as source: the directory of the nodes' tokens")]
    NoNodeTokens,
    /// The Kubernetes API can't be reached or refuses.
    #[error("Kubernetes API: {0}")]
    Kubernetes(#[from] kube::Error),
    /// The roots in the cluster can't be used.
    #[error(transparent)]
    Roots(#[from] RootsError),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_that_panics_is_noticed_and_one_that_ends_is_not() {
        let mut tasks = JoinSet::new();
        tasks.spawn(async {});
        let ended = tokio::time::timeout(Duration::from_millis(50), panicked(&mut tasks)).await;
        assert!(ended.is_err());
        tasks.spawn(async { panic!("it has broken off") });
        tokio::time::timeout(Duration::from_secs(5), panicked(&mut tasks)).await.unwrap();
    }
}
