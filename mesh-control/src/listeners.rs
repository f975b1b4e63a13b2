//! Where admin, metrics and health are served: in threads of their own, apart from agents, and within bounds.

use std::fs;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::os::unix::net;
use std::path::Path;
use std::sync::{Arc, OnceLock};

use axum::Router;
use mesh_listen::http::{Guard, Limits, Site, guard, serve};
use mesh_listen::{Accept, Readers, apart};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::{oneshot, watch};

use crate::admin::{self, Admin};
use crate::config::Configuration;
use crate::metrics::Metrics;
use crate::options::Options;
use crate::parts::{Tasks, at};
use crate::server::{StartError, listen};

/// Connections that wait in the kernel, to the admin socket.
const BACKLOG: i32 = 128;

/// Which pods there are, once that is known: metrics are served before.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<OnceLock<watch::Receiver<Arc<Configuration>>>>);

impl Known {
    /// From now on it is.
    pub fn tell(&self, configuration: watch::Receiver<Arc<Configuration>>) {
        // It is told once.
        let _again = self.0.set(configuration);
    }

    fn namespace_of(&self, address: IpAddr) -> Option<String> {
        self.0.get()?.borrow().addresses.namespace_of(address)
    }
}

/// Serves metrics, to whom the options name, and health, to everybody. Returns the address, with the port
/// that the kernel chose where none was given.
pub(crate) fn serve_metrics(
    options: &Options,
    routes: Router,
    (known, metrics): (Known, &Metrics),
    tasks: &mut Tasks,
) -> Result<SocketAddr, StartError> {
    let address = options.metrics;
    let failed = |error| StartError::Listen { address, error };
    let listener = listen(address)?;
    let bound = listener.local_addr().map_err(failed)?;
    let site = Site::new(routes, Limits::default(), scrapers(options.metrics_allow.clone(), known));
    metrics.listeners.add("metrics", site.gate());
    start("metrics", move || TcpListener::from_std(listener), site, tasks).map_err(failed)?;
    Ok(bound)
}

/// Serves the admin endpoint: to its owner by the Unix socket, for reading on loopback.
pub(crate) fn serve_admin(
    options: &Options,
    admin: &Arc<Admin>,
    metrics: &Metrics,
    tasks: &mut Tasks,
) -> Result<(), StartError> {
    if let Some(path) = &options.admin_socket {
        let socket = bind(path).map_err(at(path))?;
        let routes = admin::reading(admin).merge(admin::changing(admin));
        let site = Site::new(routes, Limits::default(), guard::owner());
        metrics.listeners.add("admin-socket", site.gate());
        start("admin-socket", move || UnixListener::from_std(socket), site, tasks).map_err(at(path))?;
    }
    if let Some(address) = options.admin {
        let listener = listen(address)?;
        let site = Site::new(admin::reading(admin), Limits::default(), guard::readers_only());
        metrics.listeners.add("admin", site.gate());
        let failed = |error| StartError::Listen { address, error };
        start("admin", move || TcpListener::from_std(listener), site, tasks).map_err(failed)?;
    }
    Ok(())
}

fn start<L: Accept>(
    name: &str,
    open: impl FnOnce() -> io::Result<L> + Send + 'static,
    site: Arc<Site>,
    tasks: &mut Tasks,
) -> io::Result<()> {
    let stop = tasks.stopping.subscribe();
    let (serving, served) = oneshot::channel::<()>();
    apart(name, 0, move || {
        let listener = open()?;
        Ok(async move {
            serve(listener, site, stop).await;
            drop(serving);
        })
    })?;
    // The sender is never used: an error is the end of it.
    tasks.serving.spawn(async move { drop(served.await) });
    Ok(())
}

/// Metrics tell of the mesh's nodes. Health is everybody's: the kubelet's probes come from the node.
fn scrapers(readers: Readers, known: Known) -> Guard {
    Box::new(move |peer, parts| {
        if parts.uri.path() != "/metrics" {
            return Ok(());
        }
        readers.admit(peer, |address| known.namespace_of(address))
    })
}

/// Binds the admin socket, for our own user only; one that a dead process left behind is replaced.
fn bind(path: &Path) -> io::Result<net::UnixListener> {
    if fs::symlink_metadata(path).is_ok_and(|metadata| metadata.file_type().is_socket()) {
        fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.bind(&SockAddr::unix(path)?)?;
    // Before anybody can connect.
    fs::set_permissions(path, fs::Permissions::from_mode(0o600))?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}
