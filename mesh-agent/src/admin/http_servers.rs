//! Where the endpoints are served, to whom, and within which limits.
//!
//! No thread that serves traffic, configuration or certificates does this: a scrape of a large node, or a
//! list of a large mesh, takes a core for a while. Health has a thread of its own, so that such a list does
//! not make the agent look dead.

use std::io;
use std::sync::Arc;

use mesh_listen::apart;
use mesh_listen::http::{Guard, Limits, Site, guard, serve as http};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use super::AdminState;
use crate::keeper_client::AdminListeners;

/// Added to the nice value of the thread that serves lists: where cores are scarce, traffic goes first.
const GIVES_WAY: i32 = 10;

/// Serves in threads of their own until `leave` says that another proxy serves, or its sender is gone.
/// Errors: a thread can't be started, or a socket can't be polled.
pub fn spawn_http_servers(
    state: Arc<AdminState>,
    listeners: AdminListeners,
    leave: watch::Receiver<bool>,
) -> io::Result<()> {
    let AdminListeners { admin, metrics, health, admin_socket } = listeners;
    let (healthy, stop) =
        (Site::new(super::health(&state), health_limits(), guard::everybody()), leave.clone());
    state.metrics.listeners.add("health", healthy.gate());
    apart("health", 0, move || Ok(http(TcpListener::from_std(health)?, healthy, stop)))?;
    apart("admin", GIVES_WAY, move || {
        let read = Site::new(super::reading(&state), Limits::default(), guard::readers_only());
        let change = super::reading(&state).merge(super::changing(&state));
        let change = Site::new(change, Limits::default(), guard::owner());
        let scrape = Site::new(super::scraping(&state), Limits::default(), scrapers(Arc::clone(&state)));
        for (name, site) in [("admin", &read), ("admin-socket", &change), ("metrics", &scrape)] {
            state.metrics.listeners.add(name, site.gate());
        }
        let (admin, metrics) = (TcpListener::from_std(admin)?, TcpListener::from_std(metrics)?);
        let admin_socket = admin_socket.map(UnixListener::from_std).transpose()?;
        let by_socket = leave.clone();
        let owner = async move {
            if let Some(socket) = admin_socket {
                http(socket, change, by_socket).await;
            }
        };
        let all = async move {
            tokio::join!(http(admin, read, leave.clone()), http(metrics, scrape, leave.clone()), owner);
        };
        Ok(all)
    })?;
    Ok(())
}

/// Limits of health: a probe sends one request per connection, and waits a second.
fn health_limits() -> Limits {
    Limits { idle: None, ..Limits::default() }
}

/// Who may read metrics, which name workloads and identities of all namespaces.
fn scrapers(state: Arc<AdminState>) -> Guard {
    Box::new(move |peer, _| {
        state.config.metrics_allow.admit(peer, |address| {
            let workload = state.xds.snapshot.load().workload_by_address(address)?;
            // A workload on no node is no pod: a Service without selector may list any address.
            (!workload.node.is_empty()).then(|| workload.namespace.to_string())
        })
    })
}
