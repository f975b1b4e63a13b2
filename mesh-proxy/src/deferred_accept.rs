//! Room two, too: connections of pods whose `connect()` waits until it is known whether somebody takes them
//! ([`mesh_common::deferred_accept`]). The proxy opens the way first and accepts afterwards; of what it can't
//! open nothing is ever accepted, and the client hears that where it does without a mesh.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_common::deferred_accept::DeferredSyn;
use mesh_common::maps::{Endpoint, Handoff};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use super::accept::{self, Cap, Caps, Full};
use super::outbound::{self, Attempt, Opened};
use super::pod::LocalPod;
use super::surroundings::{Asked, ConnectOutcome};
use super::tunnel::Early;
use super::worker::Worker;

/// SYNs of one pod that may wait for a worker to look at them. Those beyond are sent again by their kernel.
const UNREAD: usize = 256;

/// Connections of one pod that a worker has wait at a time. Those beyond are accepted at once: to open them
/// is then as bounded as all that a pod opens.
const WAITING: usize = 512;

/// How long a way that is open waits for its client to be accepted, which is a matter of microseconds if it
/// still wants it.
const UNCLAIMED: Duration = Duration::from_millis(200);

/// For how long a pod's connections to a destination wait for nothing if a SYN can't be sent again: until the
/// client's kernel has done that itself.
const LET_THROUGH: Duration = Duration::from_secs(2);

/// Where the SYNs of each listener go, by the kernel's cookie of it. Each pod has a queue of its own on each
/// worker, so that none has those of others wait.
#[derive(Default)]
pub struct Listeners(Mutex<HashMap<u64, mpsc::Sender<Box<DeferredSyn>>>>);

impl Listeners {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Box<DeferredSyn>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a SYN to the worker that has its listener. One that finds no room is sent again by its kernel.
    pub fn hand_over(&self, syn: DeferredSyn) {
        if let Some(worker) = self.all().get(&syn.listener) {
            let _comes_again = worker.try_send(Box::new(syn));
        }
    }
}

/// A worker's connections that are not accepted yet, by their two ends.
#[derive(Default)]
pub struct DeferredAccepts(RefCell<HashMap<Handoff, Deferred>>);

/// One of them.
struct Deferred {
    /// The SYN that came last.
    syn: DeferredSyn,
    /// What waits for its client to be accepted.
    opened: Option<Box<Opened>>,
    /// What opens it, and then waits.
    task: AbortHandle,
    _slot: accept::Held,
}

impl DeferredAccepts {
    /// The way that was opened for a connection which is accepted now, if one was.
    pub fn take(&self, pod: &LocalPod, socket: &TcpStream, peer: SocketAddr) -> Option<Opened> {
        let mut all = self.0.borrow_mut();
        if all.is_empty() {
            return None;
        }
        let end = |at: SocketAddr| Endpoint::new(at.ip().to_canonical().into(), at.port());
        let connection =
            Handoff { netns: pod.netns, client: end(peer), server: end(socket.local_addr().ok()?) };
        let held = all.remove(&connection)?;
        held.task.abort();
        held.opened.map(|opened| *opened)
    }

    /// Whether the SYN is one of a connection that is here already. If that is open it is to be sent again.
    fn is_known(&self, syn: &DeferredSyn) -> Option<bool> {
        let mut all = self.0.borrow_mut();
        let held = all.get_mut(&syn.connection)?;
        held.syn = *syn;
        Some(held.opened.is_some())
    }

    /// One begins; `opening` does not run before this returns.
    fn begin(&self, syn: DeferredSyn, slot: accept::Held, opening: impl Future<Output = ()> + 'static) {
        let task = spawn_local(opening).abort_handle();
        let held = Deferred { syn, opened: None, task, _slot: slot };
        self.0.borrow_mut().insert(syn.connection, held);
    }

    /// It is open, or will not be. Returns the SYN that came last.
    fn settle(&self, connection: &Handoff, opened: Option<Opened>) -> Option<DeferredSyn> {
        let mut all = self.0.borrow_mut();
        let Some(opened) = opened else { return all.remove(connection).map(|held| held.syn) };
        let held = all.get_mut(connection)?;
        held.opened = Some(Box::new(opened));
        Some(held.syn)
    }

    fn forget(&self, connection: &Handoff) {
        self.0.borrow_mut().remove(connection);
    }
}

/// A pod whose connections wait.
#[derive(Clone)]
struct Client {
    pod: Arc<LocalPod>,
    caps: Caps,
    waiting: Rc<Cap>,
}

/// Has the SYNs of a listener come to this worker, as long as this lives.
struct Registered {
    worker: Rc<Worker>,
    listener: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.shared.listeners.all().remove(&self.listener);
    }
}

/// Looks after the connections of a pod that come to one of its outbound listeners, for ever. Errors: the
/// listener is none.
pub fn serve(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    listener: &TcpListener,
    caps: &Caps,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let registered = Registered { worker: Rc::clone(worker), listener: SockRef::from(listener).cookie()? };
    let (sender, mut syns) = mpsc::channel(UNREAD);
    worker.shared.listeners.all().insert(registered.listener, sender);
    let of = Client { pod: Arc::clone(pod), caps: caps.clone(), waiting: Cap::new(WAITING) };
    Ok(async move {
        let mut serving = registered.worker.shared.serving.clone();
        if serving.wait_for(|serving| *serving).await.is_ok() {
            while let Some(syn) = syns.recv().await {
                begin(&registered.worker, &of, *syn);
            }
        }
    })
}

fn begin(worker: &Rc<Worker>, of: &Client, syn: DeferredSyn) {
    match worker.deferred.is_known(&syn) {
        Some(true) => let_through(worker, &of.pod, syn),
        Some(false) => {}
        None => match of.waiting.try_slot() {
            Some(slot) => worker.deferred.begin(syn, slot, open(Rc::clone(worker), of.clone(), syn)),
            None => let_through(worker, &of.pod, syn),
        },
    }
}

/// Opens the way for a connection, and has its client hear what came of it.
async fn open(worker: Rc<Worker>, of: Client, syn: DeferredSyn) {
    let Client { pod, caps, .. } = of;
    let opened = match caps.try_slot() {
        Ok(slot) => {
            let opened = Box::pin(outbound::open(&worker, &pod, &attempt(&syn), Early::None)).await;
            // The one that is accepted takes one.
            drop(slot);
            opened
        }
        Err(Full::Pod) => {
            worker.over_limit(&pod);
            None
        }
        // It waits in the listener's queue.
        Err(Full::Worker) => {
            worker.deferred.forget(&syn.connection);
            return let_through(&worker, &pod, syn);
        }
    };
    let refused = opened.is_none();
    let Some(syn) = worker.deferred.settle(&syn.connection, opened) else { return };
    Box::pin(decide(Rc::clone(&worker), pod, syn, refused)).await;
    if !refused {
        tokio::time::sleep(UNCLAIMED).await;
        worker.deferred.forget(&syn.connection);
    }
}

/// It is accepted, whether somebody takes it or not.
fn let_through(worker: &Rc<Worker>, pod: &Arc<LocalPod>, syn: DeferredSyn) {
    drop(spawn_local(decide(Rc::clone(worker), Arc::clone(pod), syn, false)));
}

fn attempt(syn: &DeferredSyn) -> Attempt {
    Attempt { asked: Asked::from(&syn.destination), port: syn.connection.client.port }
}

/// Has the pod's kernel take the SYN again, and let it through or refuse it.
async fn decide(worker: Rc<Worker>, pod: Arc<LocalPod>, syn: DeferredSyn, refused: bool) {
    if let Err(error) = worker.surroundings.decide(&pod, &syn, refused).await {
        let client = SocketAddr::from(syn.connection.client);
        tracing::debug!(%pod, %client, %error, "a SYN that waits is not sent again");
        worker.surroundings.note_outcome(&pod, syn.destination.into(), ConnectOutcome::Untold(LET_THROUGH));
    }
}
