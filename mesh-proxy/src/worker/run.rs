//! Step 1 of a connection (see [the crate page](crate)): a worker's thread, with a runtime of its own. A
//! connection stays on the worker that accepted it; workers share [`Shared`] alone.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_listen::{Bounds, Gate};
use socket2::TcpKeepalive;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_local};

use super::{LocalPod, Shared, Worker};
use crate::accept::{Accepted, Cap, Caps, ConnectionSlot, accept_loop};
use crate::handshakes::WorkerHandshakes;
use crate::liveness::Beat;
use crate::relay::reset_on_drop;
use crate::sessions::Sessions;
use crate::surroundings::Surroundings;
use crate::telemetry::WorkerMetrics;
use crate::{deferred_accept, inbound, outbound, tls};

/// How often a worker looks for idle connections and unused counters.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Time after which unused counters are forgotten.
const COUNTERS_KEPT: Duration = Duration::from_hours(1);

/// One of so many parts of a worker's connections is reserved for pods that have few, whatever others do.
const RESERVED_PART: usize = 8;

/// A pod's listeners on one worker.
pub struct PodListeners {
    /// Connections that the pod opens, port 15001.
    pub outbound: std::net::TcpListener,
    /// Connections to the pod without mutual TLS, port 15006.
    pub inbound: std::net::TcpListener,
    /// Connections to the pod over mutual TLS, port 15008.
    pub hbone: std::net::TcpListener,
}

/// What the enroller asks of a worker.
pub enum Command {
    /// Serves a pod.
    Add(Arc<LocalPod>, PodListeners),
    /// Stops accepting for a pod, by its uid. Its open connections go on.
    Remove(Arc<str>),
    /// Stops accepting at all, and ends with the last connection or at the deadline.
    Drain,
}

/// Returns the TCP keep-alive that finds dead peers which owe us nothing, since their node may have lost
/// power: after a minute of silence, four probes fifteen seconds apart.
fn keepalive() -> TcpKeepalive {
    TcpKeepalive::new()
        .with_time(Duration::from_mins(1))
        .with_interval(Duration::from_secs(15))
        .with_retries(4)
}

/// Tasks that run before sockets are polled again (tokio's `event_interval`). A bulk stream's task always has
/// work and takes a tenth of a millisecond each time: with tokio's 61 all others' bytes would wait six.
const LOOK_AT_SOCKETS: u32 = 2;

/// Sockets that are served per poll (tokio's `max_io_events_per_tick`). Data for a peer is sent after the
/// last of them: with all that are ready, which may be a hundred, the peer's node would be idle meanwhile.
const SOCKETS_AT_ONCE: usize = 8;

/// The pods that a worker serves, and the limits of their connections.
struct Serving {
    worker: Rc<Worker>,
    /// Limits of all pods together: applications' connections, connections of other nodes, and handshakes of
    /// those.
    connections: Rc<Cap>,
    sessions: Rc<Cap>,
    handshakes: WorkerHandshakes,
    /// The tasks that accept for each pod, by uid.
    accepting: RefCell<HashMap<Arc<str>, Vec<AbortHandle>>>,
}

/// Runs a worker until it is told to drain; `beat` notes that its loop turns. Call this on the worker's own
/// thread; `start` is called on its runtime. Errors: the runtime or the surroundings can't be had.
pub fn run<S: Surroundings + 'static>(
    shared: Arc<Shared>,
    start: impl FnOnce() -> std::io::Result<S>,
    metrics: Arc<WorkerMetrics>,
    commands: mpsc::UnboundedReceiver<Command>,
    beat: &Beat,
) -> std::io::Result<()> {
    // No signals and no child processes: their bookkeeping would cost something in every wakeup.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .enable_time()
        .event_interval(LOOK_AT_SOCKETS)
        .max_io_events_per_tick(SOCKETS_AT_ONCE)
        .build_local(LocalOptions::default())?;
    runtime.block_on(async {
        let serving = Serving {
            connections: Cap::with_reserve(shared.most_connections, shared.most_connections / RESERVED_PART),
            sessions: Cap::with_reserve(shared.most_sessions, shared.most_sessions / RESERVED_PART),
            handshakes: WorkerHandshakes::default(),
            worker: Worker::new(shared, Box::new(start()?), metrics),
            accepting: RefCell::default(),
        };
        tokio::select! {
            () = serving.serve(commands) => {}
            () = beat.keep() => {}
        }
        Ok(())
    })
}

impl Serving {
    async fn serve(self, mut commands: mpsc::UnboundedReceiver<Command>) {
        spawn_local(follow_configuration(Rc::clone(&self.worker)));
        spawn_local(sweep(Rc::clone(&self.worker)));
        while let Some(command) = commands.recv().await {
            match command {
                Command::Add(pod, listeners) => {
                    if let Err(error) = self.add(&pod, listeners) {
                        tracing::error!(%pod, %error, "can't listen for the pod: its connections are refused");
                    }
                }
                Command::Remove(uid) => self.remove(&uid),
                Command::Drain => break,
            }
        }
        self.drain().await;
    }

    fn add(&self, pod: &Arc<LocalPod>, listeners: PodListeners) -> std::io::Result<()> {
        let shared = &self.worker.shared;
        let connections = Caps {
            worker: Rc::clone(&self.connections),
            pod: Cap::new(shared.most_of_pod),
            from_elsewhere: None,
        };
        // A quarter is left for what the pod itself opens.
        let others = shared.most_of_pod.div_ceil(4) * 3;
        let inbound = Caps { from_elsewhere: Some(Cap::new(others)), ..connections.clone() };
        let sessions = Caps {
            worker: Rc::clone(&self.sessions),
            pod: Cap::new(shared.most_sessions),
            from_elsewhere: None,
        };
        let (handshakes, shares) =
            (self.handshakes.of_pod(), Sessions::new(shared.most_sessions.div_ceil(2)));
        let streams = inbound.clone();
        let serve_hbone = move |worker, pod, socket, peer, session| {
            let (handshakes, shares) = (handshakes.clone(), shares.clone());
            let limits = inbound::SessionLimits { session, handshakes, shares, streams: streams.clone() };
            inbound::serve_hbone(worker, pod, socket, peer, limits)
        };
        // One address gets at most half of what others may open.
        let strangers = Gate::new(Bounds { total: others, each: others.div_ceil(2) });
        let serve_plaintext = move |worker, pod, socket, peer, slot| {
            inbound::serve_plaintext(worker, pod, socket, peer, (slot, strangers.clone()))
        };
        let waiting = deferred_accept::serve(&self.worker, pod, &listeners.outbound, &connections)?;
        let accepting = vec![
            spawn_local(waiting).abort_handle(),
            self.accept(pod, listeners.outbound, &connections, outbound::serve)?,
            self.accept(pod, listeners.inbound, &inbound, serve_plaintext)?,
            self.accept(pod, listeners.hbone, &sessions, serve_hbone)?,
        ];
        self.worker.know(pod);
        self.accepting.borrow_mut().insert(Arc::clone(&pod.uid), accepting);
        Ok(())
    }

    fn accept<F>(
        &self,
        pod: &Arc<LocalPod>,
        listener: std::net::TcpListener,
        caps: &Caps,
        serve: impl Fn(Rc<Worker>, Arc<LocalPod>, TcpStream, SocketAddr, ConnectionSlot) -> F + 'static,
    ) -> std::io::Result<AbortHandle>
    where
        F: Future<Output = ()> + 'static,
    {
        // Accepted connections inherit it from their listener (tcp(7)).
        socket2::SockRef::from(&listener).set_tcp_keepalive(&keepalive())?;
        let listener = TcpListener::from_std(listener)?;
        let (worker, pod) = (Rc::clone(&self.worker), Arc::clone(pod));
        let handle = move |accepted| match accepted {
            Accepted::Connection(socket, peer, slot) => {
                spawn_local(serve(Rc::clone(&worker), Arc::clone(&pod), socket, peer, slot));
            }
            Accepted::Crowded(socket) => {
                reset_on_drop(&socket);
                worker.over_limit(&pod);
            }
            Accepted::Failed(error) => {
                worker.metrics.accept_failed();
                tracing::warn!(%pod, %error, "can't accept; trying again after a pause");
            }
        };
        let (mut serving, caps) = (self.worker.shared.serving.clone(), caps.clone());
        let accepting = async move {
            if serving.wait_for(|serving| *serving).await.is_ok() {
                accept_loop(listener, caps, handle).await;
            }
        };
        Ok(spawn_local(accepting).abort_handle())
    }

    fn remove(&self, uid: &str) {
        for accepting in self.accepting.borrow_mut().remove(uid).unwrap_or_default() {
            accepting.abort();
        }
        self.worker.forget(uid);
    }

    /// Stops accepting, tells connections to finish, and waits for them up to the deadline.
    async fn drain(&self) {
        for accepting in self.accepting.borrow_mut().drain().flat_map(|(_, accepting)| accepting) {
            accepting.abort();
        }
        self.worker.draining.begin();
        let shared = &self.worker.shared;
        let all_gone = async {
            self.connections.all_returned(shared.most_connections).await;
            self.sessions.all_returned(shared.most_sessions).await;
        };
        if tokio::time::timeout(shared.drain, all_gone).await.is_err() {
            tracing::info!("deadline reached: closing the connections that are left");
        }
    }
}

/// Applies changes of policy to open connections too.
async fn follow_configuration(worker: Rc<Worker>) {
    let mut updates = worker.shared.updates.clone();
    let mut before = updates.borrow_and_update().clone();
    while updates.changed().await.is_ok() {
        let snapshot = updates.borrow_and_update().clone();
        let revoked = worker.authorizations.recheck(&snapshot, &before);
        before = Arc::clone(&snapshot);
        if revoked > 0 {
            worker.metrics.revoked(revoked);
            tracing::info!(
                revoked,
                generation = snapshot.generation(),
                "policy changed: closing connections"
            );
        }
    }
}

async fn sweep(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(SWEEP_EVERY).await;
        worker.pool.sweep(Instant::now());
        tls::scratch::give_back();
        worker.surroundings.trim_idle();
        worker.metrics.forget_unused(COUNTERS_KEPT);
        let snapshot = worker.snapshot();
        worker.picker.retain(|key| snapshot.knows_workload(&key.workload));
        worker.shared.health.retain(|key| snapshot.knows_workload(&key.workload));
    }
}
