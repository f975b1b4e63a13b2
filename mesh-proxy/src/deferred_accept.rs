//! Step 2 of a connection, where a pod's `connect()` waits until the destination has taken it
//! ([`mesh_common::deferred_accept`]). The kernel holds the SYN back, the proxy opens the way first and
//! accepts afterwards. If the way can't be opened nothing is accepted, and `connect()` fails as it would
//! without a mesh.

use std::cell::RefCell;
use std::collections::HashMap;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::rc::Rc;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use mesh_common::deferred_accept::DeferredSyn;
use mesh_common::maps::{AddressPort, NetnsConnection};
use socket2::SockRef;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use super::local_pod_identity::LocalPod;
use super::outbound::{self, ConnectRequest, OpenedOutbound};
use super::surroundings::{ConnectOutcome, RequestedDestination};
use super::tunnel::EarlyData;
use super::worker::Worker;
use super::worker_and_pod_connection_limits::{
    ConnectionLimit, LimitReached, PodConnectionLimits, SingleLimitSlot,
};

/// SYNs of one pod that may wait for a worker to read them. Further ones are sent again by the client's
/// kernel.
const UNREAD: usize = 256;

/// Connections of one pod that wait on a worker at a time. Further ones are accepted at once; opening them is
/// then bounded by the pod's limit.
const WAITING: usize = 512;

/// Time for a client to be accepted once its way is open: a matter of microseconds if it still wants it.
const UNCLAIMED: Duration = Duration::from_millis(200);

/// How long a pod's connections to a destination are not deferred after a SYN could not be sent again: until
/// the client's kernel has done that itself.
const LET_THROUGH: Duration = Duration::from_secs(2);

/// Sends each listener's SYNs to its worker, by the listener's socket cookie. Each pod has a queue of its own
/// on each worker, so that none delays those of others.
#[derive(Default)]
pub struct SynRouter(Mutex<HashMap<u64, mpsc::Sender<Box<DeferredSyn>>>>);

impl SynRouter {
    fn all(&self) -> MutexGuard<'_, HashMap<u64, mpsc::Sender<Box<DeferredSyn>>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands a SYN to the worker of its listener. One that finds no room is sent again by the client's
    /// kernel.
    pub fn hand_to_listeners_worker(&self, syn: DeferredSyn) {
        if let Some(worker) = self.all().get(&syn.listener) {
            let _comes_again = worker.try_send(Box::new(syn));
        }
    }
}

/// A worker's connections that are not accepted yet, by their two ends.
#[derive(Default)]
pub struct DeferredAccepts(RefCell<HashMap<NetnsConnection, Deferred>>);

/// A connection that is not accepted yet.
struct Deferred {
    /// The last SYN that came for it.
    syn: DeferredSyn,
    /// The open way, which waits for its client to be accepted.
    opened: Option<Box<OpenedOutbound>>,
    /// The task that opens the way, and then waits.
    task: AbortHandle,
    _slot: SingleLimitSlot,
}

impl DeferredAccepts {
    /// Takes the way that was opened for a connection which is accepted now; none if there is none, or it is
    /// still being opened, which is given up.
    pub fn take_opened_outbound(
        &self,
        pod: &LocalPod,
        socket: &TcpStream,
        peer: SocketAddr,
    ) -> Option<OpenedOutbound> {
        let mut all = self.0.borrow_mut();
        if all.is_empty() {
            return None;
        }
        let end = |at: SocketAddr| AddressPort::new(at.ip().to_canonical().into(), at.port());
        let connection =
            NetnsConnection { netns: pod.netns, client: end(peer), server: end(socket.local_addr().ok()?) };
        let held = all.remove(&connection)?;
        held.task.abort();
        held.opened.map(|opened| *opened)
    }

    /// Looks a SYN's connection up, and keeps the SYN as its last one. Returns whether its way is open, so
    /// that the SYN is to be sent again; none if the connection is new.
    fn is_known(&self, syn: &DeferredSyn) -> Option<bool> {
        let mut all = self.0.borrow_mut();
        let held = all.get_mut(&syn.connection)?;
        held.syn = *syn;
        Some(held.opened.is_some())
    }

    /// Adds a connection; `opening` does not run before this returns.
    fn begin(&self, syn: DeferredSyn, slot: SingleLimitSlot, opening: impl Future<Output = ()> + 'static) {
        let task = spawn_local(opening).abort_handle();
        let held = Deferred { syn, opened: None, task, _slot: slot };
        self.0.borrow_mut().insert(syn.connection, held);
    }

    /// Ends the opening: with an open way the connection waits to be accepted, without one it is forgotten.
    /// Returns the last SYN.
    fn finish_opening(
        &self,
        connection: &NetnsConnection,
        opened: Option<OpenedOutbound>,
    ) -> Option<DeferredSyn> {
        let mut all = self.0.borrow_mut();
        let Some(opened) = opened else { return all.remove(connection).map(|held| held.syn) };
        let held = all.get_mut(connection)?;
        held.opened = Some(Box::new(opened));
        Some(held.syn)
    }

    fn forget(&self, connection: &NetnsConnection) {
        self.0.borrow_mut().remove(connection);
    }
}

/// A pod whose connections are deferred, and their limits.
#[derive(Clone)]
struct Client {
    pod: Arc<LocalPod>,
    limits: PodConnectionLimits,
    waiting: Rc<ConnectionLimit>,
}

/// Directs a listener's SYNs to this worker until it is dropped.
struct Registered {
    worker: Rc<Worker>,
    listener: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.worker.shared.syn_router.all().remove(&self.listener);
    }
}

/// Returns the task that serves the SYNs of one of a pod's outbound listeners, for ever. They are kept for it
/// from now on, until it is dropped. Errors: the listener has no cookie.
pub fn serve_syns(
    worker: &Rc<Worker>,
    pod: &Arc<LocalPod>,
    listener: &TcpListener,
    limits: &PodConnectionLimits,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let registered = Registered { worker: Rc::clone(worker), listener: SockRef::from(listener).cookie()? };
    let (sender, mut syns) = mpsc::channel(UNREAD);
    worker.shared.syn_router.all().insert(registered.listener, sender);
    let of = Client { pod: Arc::clone(pod), limits: limits.clone(), waiting: ConnectionLimit::new(WAITING) };
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
        None => match of.waiting.try_take_slot() {
            Some(slot) => worker.deferred.begin(syn, slot, open(Rc::clone(worker), of.clone(), syn)),
            None => let_through(worker, &of.pod, syn),
        },
    }
}

/// Opens the way for a connection, and tells its client by accepting or refusing it.
async fn open(worker: Rc<Worker>, of: Client, syn: DeferredSyn) {
    let Client { pod, limits, .. } = of;
    let opened = match limits.try_take_slot() {
        Ok(slot) => {
            let opened = Box::pin(outbound::connect_or_record_failure(
                &worker,
                &pod,
                &connect_request(&syn),
                EarlyData::None,
            ))
            .await;
            // The connection takes its slot when it is accepted.
            drop(slot);
            opened
        }
        Err(LimitReached::Pod) => {
            worker.report_over_limit(&pod);
            None
        }
        // It waits in the listener's queue.
        Err(LimitReached::Worker) => {
            worker.deferred.forget(&syn.connection);
            return let_through(&worker, &pod, syn);
        }
    };
    let refused = opened.is_none();
    let Some(syn) = worker.deferred.finish_opening(&syn.connection, opened) else { return };
    Box::pin(decide(Rc::clone(&worker), pod, syn, refused)).await;
    if !refused {
        tokio::time::sleep(UNCLAIMED).await;
        worker.deferred.forget(&syn.connection);
    }
}

/// Has a connection accepted, whether its destination takes it or not.
fn let_through(worker: &Rc<Worker>, pod: &Arc<LocalPod>, syn: DeferredSyn) {
    drop(spawn_local(decide(Rc::clone(worker), Arc::clone(pod), syn, false)));
}

fn connect_request(syn: &DeferredSyn) -> ConnectRequest {
    let asked = RequestedDestination::from(&syn.destination);
    ConnectRequest { asked, port: syn.connection.client.port, reads_http: true }
}

/// Has the pod's kernel take the SYN again, and let it through or refuse it.
async fn decide(worker: Rc<Worker>, pod: Arc<LocalPod>, syn: DeferredSyn, refused: bool) {
    if let Err(error) = worker.surroundings.release_deferred_syn(&pod, &syn, refused).await {
        let client = SocketAddr::from(syn.connection.client);
        tracing::debug!(%pod, %client, %error, "a SYN that waits is not sent again");
        worker.surroundings.note_connect_result(
            &pod,
            syn.destination.into(),
            ConnectOutcome::SkipDeferral(LET_THROUGH),
        );
    }
}
