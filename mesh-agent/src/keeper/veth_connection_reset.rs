//! Takes down what goes from veth to veth: of a pod that is let go, or of all of them. Connections are reset
//! before the programs go that they rely on.

use std::collections::{HashMap, HashSet};
use std::fs;
use std::io;
use std::net::IpAddr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc};
use std::thread::JoinHandle;

use crate::sys::ebpf::{self, VethFlows};
use crate::sys::{self, Connection, Netns};

/// Namespaces by address. On a machine with several nodes one address may be in several.
pub(super) type NetnsByIp = HashMap<IpAddr, Vec<Arc<Netns>>>;

/// Resets connections, each at its client's socket, which usually tells the server's.
fn reset(connections: &[(Connection, Option<Connection>)], places: &NetnsByIp) {
    for (client, server) in connections {
        let told = close(client, places, sys::destroy_connection);
        let destroy = if told { sys::destroy_unbound_connection } else { sys::destroy_connection };
        server.iter().for_each(|server| _ = close(server, places, destroy));
    }
}

/// Closes a socket in every namespace where it may be. Returns whether it was found.
fn close(socket: &Connection, all: &NetnsByIp, destroy: fn(&Netns, &Connection) -> io::Result<bool>) -> bool {
    let mut places = all.get(&socket.local.ip()).into_iter().flatten();
    places.any(|netns| {
        let closed = destroy(netns, socket);
        if let Err(error) = &closed {
            let Connection { local, remote, .. } = socket;
            tracing::warn!(%local, %remote, %error, "a connection is not reset");
        }
        closed.unwrap_or(false)
    })
}

/// Resets all connections from veth to veth, of agents whose programs are about to go.
pub(super) fn reset_all_veth_connections(flows: &[VethFlows], places: impl FnOnce() -> NetnsByIp) {
    let sockets: Vec<_> = flows.iter().flat_map(|flows| flows.client_and_server_sockets_over(None)).collect();
    if !sockets.is_empty() {
        tracing::info!(connections = sockets.len(), "resetting direct connections");
        reset(&sockets, &places());
    }
}

/// A pod that was let go, with what is left to do for it.
pub(super) struct PodTeardown {
    /// The cookie of its network namespace.
    pub cookie: u64,
    /// The index of the node's end of its veth, and the flows that may go over it.
    pub flows: Option<(u32, VethFlows)>,
    /// Where the sockets of those flows may be.
    pub places: NetnsByIp,
    /// Pin of the program at its veth.
    pub link: PathBuf,
}

impl PodTeardown {
    /// Resets the connections over the pod's veth, and then removes the program. No flow is filed for the pod
    /// any more.
    fn work(self) {
        if let Some((ifindex, flows)) = self.flows {
            reset(&flows.client_and_server_sockets_over(Some(ifindex)), &self.places);
        }
        match fs::remove_file(&self.link) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::error!(link = %self.link.display(), %error, "a program stays at a veth");
            }
            _ => {}
        }
    }
}

/// Pods that are being let go. A pod chooses how many connections it has, so they are reset outside of the
/// keeper's loop, by one thread, one pod after the other.
#[derive(Default)]
pub(super) struct TeardownQueue {
    pods: Arc<Mutex<HashSet<u64>>>,
    thread: Option<(mpsc::Sender<PodTeardown>, JoinHandle<()>)>,
}

impl TeardownQueue {
    /// Adds a pod. Errors: the thread can't be started.
    pub fn push(&mut self, teardown: PodTeardown) -> io::Result<()> {
        let (sender, _) = match &mut self.thread {
            Some(thread) => thread,
            none => none.insert(start(Arc::clone(&self.pods))?),
        };
        lock(&self.pods).insert(teardown.cookie);
        // The thread ends when the sender is dropped, and not before.
        sender.send(teardown).map_err(io::Error::other)
    }

    /// Whether a pod is still being let go.
    pub fn has(&self, cookie: u64) -> bool {
        lock(&self.pods).contains(&cookie)
    }

    /// Whether no pod is being let go.
    pub fn is_empty(&self) -> bool {
        lock(&self.pods).is_empty()
    }

    /// Waits for all of them.
    pub fn join(&mut self) {
        if let Some((sender, thread)) = self.thread.take() {
            drop(sender);
            // A panic there leaves no more behind than an error.
            let _ended = thread.join();
        }
    }
}

fn start(pods: Arc<Mutex<HashSet<u64>>>) -> io::Result<(mpsc::Sender<PodTeardown>, JoinHandle<()>)> {
    let (sender, teardowns) = mpsc::channel::<PodTeardown>();
    let work = move || {
        for teardown in teardowns {
            let cookie = teardown.cookie;
            teardown.work();
            lock(&pods).remove(&cookie);
        }
    };
    Ok((sender, std::thread::Builder::new().name("leaving".to_owned()).spawn(work)?))
}

fn lock(pods: &Mutex<HashSet<u64>>) -> MutexGuard<'_, HashSet<u64>> {
    pods.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Detaches everything that agents left below a directory. Connections from veth to veth are reset first:
/// without the programs the rest of them would cross the bridge that pods share. Errors: a pin can't be
/// removed.
pub fn reset_flows_and_unpin_all(root: &Path) -> io::Result<()> {
    ebpf::clear_pinned_pod_links(root);
    reset_all_veth_connections(&VethFlows::open_all_pinned_below(root), every_place);
    ebpf::unpin_all(root)
}

/// Returns the addresses of all network namespaces that have a process.
fn every_place() -> NetnsByIp {
    let mut places = NetnsByIp::new();
    let mut seen = HashSet::new();
    let processes = fs::read_dir("/proc").into_iter().flatten().filter_map(Result::ok);
    for pid in processes.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok()) {
        let is_new =
            fs::metadata(format!("/proc/{pid}/ns/net")).is_ok_and(|it| seen.insert((it.dev(), it.ino())));
        let Some(netns) = is_new.then(|| Netns::of_process(pid).ok()).flatten() else { continue };
        let netns = Arc::new(netns);
        for address in sys::pod_addresses_in(&netns).unwrap_or_default() {
            places.entry(address).or_default().push(Arc::clone(&netns));
        }
    }
    places
}
