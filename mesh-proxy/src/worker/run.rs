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

#[cfg(test)]
mod tests {
    use mesh_api::wire::security::Action;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::authorization::AccessRequest;
    use crate::fixture::{
        Configuration, Node, PlainSockets, echo, identity, no_certificates, pod, policy, run, shared, until,
        workload,
    };
    use crate::telemetry::{AccessLog, AgentMetrics};

    /// A worker that serves a pod, whose connections all go to a server that echoes.
    struct Served {
        worker: Rc<Worker>,
        commands: mpsc::UnboundedSender<Command>,
        serving: JoinHandle<()>,
        outbound: SocketAddr,
    }

    async fn served(change: impl FnOnce(&mut Shared)) -> Served {
        let configuration = Configuration::default();
        let mut shared = shared(&configuration, no_certificates());
        change(&mut shared);
        let pod = Arc::new(pod("a", [10, 0, 0, 1].into()));
        configuration.workload(workload("a", pod.addresses[0]));
        let surroundings = Box::new(PlainSockets::to(Some(echo().await)));
        let cap = |most| Cap::with_reserve(most, 0);
        let serving = Serving {
            connections: cap(shared.most_connections),
            sessions: cap(shared.most_sessions),
            handshakes: WorkerHandshakes::default(),
            worker: Worker::new(Arc::new(shared), surroundings, WorkerMetrics::new(AccessLog::off())),
            accepting: RefCell::default(),
        };
        let worker = Rc::clone(&serving.worker);
        let listeners = PodListeners { outbound: listener(), inbound: listener(), hbone: listener() };
        let outbound = listeners.outbound.local_addr().unwrap();
        let (commands, received) = mpsc::unbounded_channel();
        commands.send(Command::Add(pod, listeners)).unwrap();
        Served { worker, commands, serving: spawn_local(serving.serve(received)), outbound }
    }

    fn listener() -> std::net::TcpListener {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        listener
    }

    impl Served {
        /// A connection of the pod, once it is echoed.
        async fn connect(&self) -> std::io::Result<TcpStream> {
            let mut client = TcpStream::connect(self.outbound).await?;
            is_echoed(&mut client).await.map(|()| client)
        }

        fn told(&self, command: Command) {
            self.commands.send(command).expect("it serves");
        }
    }

    async fn is_echoed(client: &mut TcpStream) -> std::io::Result<()> {
        client.write_all(b"x").await?;
        client.read_u8().await.map(drop)
    }

    /// What the metrics say of such connections.
    fn counted(worker: &Worker, name: &str) -> String {
        let metrics = AgentMetrics::new(vec![Arc::clone(&worker.metrics)], AccessLog::off());
        let (text, start) = (metrics.render().unwrap(), format!("nodemesh_connections_{name}_total "));
        text.lines().find_map(|line| line.strip_prefix(&start)).expect("it is counted").to_owned()
    }

    #[test]
    fn a_pod_that_is_dismissed_is_served_no_more_and_its_open_connections_go_on() {
        run(async {
            let served = served(|_| {}).await;
            let mut client = served.connect().await.unwrap();
            assert!(served.worker.local_pod([10, 0, 0, 1].into()).is_some());
            served.told(Command::Remove("a".into()));
            until("forgotten", || served.worker.local_pod([10, 0, 0, 1].into()).is_none()).await;
            until("nobody listens", || std::net::TcpStream::connect(served.outbound).is_err()).await;
            is_echoed(&mut client).await.unwrap();
        });
    }

    #[test]
    fn connections_wait_until_they_are_to_be_served() {
        run(async {
            let begin = tokio::sync::watch::Sender::new(false);
            let served = served(|shared| shared.serving = begin.subscribe()).await;
            let (connected, ()) = tokio::join!(served.connect(), async {
                let mut waiting = TcpStream::connect(served.outbound).await.unwrap();
                waiting.write_all(b"x").await.unwrap();
                let early = tokio::time::timeout(Duration::from_millis(50), waiting.read_u8()).await;
                assert!(early.is_err(), "served before its time");
                begin.send_replace(true);
            });
            connected.unwrap();
        });
    }

    #[test]
    fn connections_beyond_what_a_pod_may_have_are_reset_and_counted() {
        run(async {
            let served = served(|shared| shared.most_of_pod = 2).await;
            let (first, _second) = (served.connect().await.unwrap(), served.connect().await.unwrap());
            assert_eq!(counted(&served.worker, "over_limit"), "0");
            for refused in 1..3 {
                let error = served.connect().await.unwrap_err();
                assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
                assert_eq!(counted(&served.worker, "over_limit"), refused.to_string());
            }
            drop(first);
            let again = async { while served.connect().await.is_err() {} };
            tokio::time::timeout(Duration::from_secs(15), again).await.expect("a place that is free again");
        });
    }

    #[test]
    fn a_worker_that_drains_ends_with_its_last_connection() {
        run(async {
            let mut served = served(|shared| shared.drain = Duration::from_mins(10)).await;
            let mut client = served.connect().await.unwrap();
            served.told(Command::Drain);
            until("nobody listens", || std::net::TcpStream::connect(served.outbound).is_err()).await;
            is_echoed(&mut client).await.unwrap();
            assert!(!served.serving.is_finished());
            drop(client);
            (&mut served.serving).await.unwrap();
        });
    }

    #[test]
    fn a_worker_that_drains_ends_at_the_deadline_whoever_is_left() {
        const DRAIN: Duration = Duration::from_millis(200);
        run(async {
            let served = served(|shared| shared.drain = DRAIN).await;
            let _client = served.connect().await.unwrap();
            let began = Instant::now();
            served.told(Command::Drain);
            served.serving.await.unwrap();
            assert!(began.elapsed() >= DRAIN, "{:?}", began.elapsed());
        });
    }

    #[test]
    fn a_change_of_policy_reaches_open_connections_and_is_counted() {
        run(async {
            let Node { worker, configuration, pod } = Node::new(PlainSockets::default());
            let request = AccessRequest {
                identity: Some(identity("guest")),
                source: [10, 0, 0, 9].into(),
                destination: "10.0.0.1:80".parse().unwrap(),
                workload: worker.workload_of(&pod).await.unwrap(),
            };
            let (guest, _) = worker.authorizations.authorize(request, || worker.snapshot()).unwrap();
            let follow = spawn_local(follow_configuration(Rc::clone(&worker)));
            tokio::task::yield_now().await;
            configuration.policy(&policy("no-guests", Action::Deny, &["guest"]));
            let denial =
                tokio::time::timeout(Duration::from_secs(15), guest.revoked()).await.expect("revoked");
            assert!(denial.to_string().contains("shop/no-guests"), "{denial}");
            assert_eq!(counted(&worker, "revoked"), "1");
            drop(configuration);
            follow.await.unwrap();
        });
    }
}
