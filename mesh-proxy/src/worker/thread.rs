//! Step 1 of a connection (see [the crate page](crate)): a worker's thread, with a runtime of its own. A
//! connection stays on the worker that accepted it; workers share [`SharedState`] alone.

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

use super::{LocalPod, SharedState, Worker};
use crate::accept_loop::{AcceptResult, accept_loop};
use crate::handshake_limit::WorkerHandshakeLimit;
use crate::liveness::Heartbeat;
use crate::peer_connection_shares::SessionLimit;
use crate::relay::reset_on_drop;
use crate::surroundings::Surroundings;
use crate::telemetry::WorkerMetrics;
use crate::worker_and_pod_connection_limits::{ConnectionLimit, ConnectionSlot, PodConnectionLimits};
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
pub enum WorkerCommand {
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
    connections: Rc<ConnectionLimit>,
    sessions: Rc<ConnectionLimit>,
    handshakes: WorkerHandshakeLimit,
    /// The tasks that accept for each pod, by uid.
    accepting: RefCell<HashMap<Arc<str>, Vec<AbortHandle>>>,
}

/// Runs a worker until it is told to drain (or `commands` has no sender), and then until its connections are
/// over, at most [`SharedState::drain`] longer. `beat` notes that its loop turns. Call this on the worker's
/// own thread; `start` is called on its runtime. Errors: the runtime or the surroundings can't be had.
pub fn run_worker<S: Surroundings + 'static>(
    shared: Arc<SharedState>,
    start: impl FnOnce() -> std::io::Result<S>,
    metrics: Arc<WorkerMetrics>,
    commands: mpsc::UnboundedReceiver<WorkerCommand>,
    beat: &Heartbeat,
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
            connections: ConnectionLimit::with_reserve(
                shared.most_connections,
                shared.most_connections / RESERVED_PART,
            ),
            sessions: ConnectionLimit::with_reserve(
                shared.most_sessions,
                shared.most_sessions / RESERVED_PART,
            ),
            handshakes: WorkerHandshakeLimit::default(),
            worker: Worker::new(shared, Box::new(start()?), metrics),
            accepting: RefCell::default(),
        };
        tokio::select! {
            () = serving.serve(commands) => {}
            () = beat.beat_forever() => {}
        }
        Ok(())
    })
}

impl Serving {
    async fn serve(self, mut commands: mpsc::UnboundedReceiver<WorkerCommand>) {
        spawn_local(follow_configuration(Rc::clone(&self.worker)));
        spawn_local(sweep(Rc::clone(&self.worker)));
        while let Some(command) = commands.recv().await {
            match command {
                WorkerCommand::Add(pod, listeners) => {
                    if let Err(error) = self.add(&pod, listeners) {
                        tracing::error!(%pod, %error, "can't listen for the pod: its connections are refused");
                    }
                }
                WorkerCommand::Remove(uid) => self.remove(&uid),
                WorkerCommand::Drain => break,
            }
        }
        self.drain().await;
    }

    fn add(&self, pod: &Arc<LocalPod>, listeners: PodListeners) -> std::io::Result<()> {
        let shared = &self.worker.shared;
        let connections = PodConnectionLimits {
            worker: Rc::clone(&self.connections),
            pod: ConnectionLimit::new(shared.most_of_pod),
            from_elsewhere: None,
        };
        // A quarter is left for what the pod itself opens.
        let others = shared.most_of_pod.div_ceil(4) * 3;
        let inbound =
            PodConnectionLimits { from_elsewhere: Some(ConnectionLimit::new(others)), ..connections.clone() };
        let sessions = PodConnectionLimits {
            worker: Rc::clone(&self.sessions),
            pod: ConnectionLimit::new(shared.most_sessions),
            from_elsewhere: None,
        };
        let (handshakes, shares) =
            (self.handshakes.new_pod_limit(), SessionLimit::new(shared.most_sessions.div_ceil(2)));
        let streams = inbound.clone();
        let serve_mtls_connection = move |worker, pod, socket, peer, session| {
            let (handshakes, shares) = (handshakes.clone(), shares.clone());
            let limits =
                inbound::MtlsConnectionLimits { session, handshakes, shares, streams: streams.clone() };
            inbound::serve_mtls_connection(worker, pod, socket, peer, limits)
        };
        // One address gets at most half of what others may open.
        let strangers = Gate::new(Bounds { total: others, each: others.div_ceil(2) });
        let serve_plaintext_connection = move |worker, pod, socket, peer, slot| {
            inbound::serve_plaintext_connection(worker, pod, socket, peer, (slot, strangers.clone()))
        };
        let waiting = deferred_accept::serve_syns(&self.worker, pod, &listeners.outbound, &connections)?;
        let accepting = vec![
            spawn_local(waiting).abort_handle(),
            self.accept(pod, listeners.outbound, &connections, outbound::serve_outbound)?,
            self.accept(pod, listeners.inbound, &inbound, serve_plaintext_connection)?,
            self.accept(pod, listeners.hbone, &sessions, serve_mtls_connection)?,
        ];
        self.worker.add_pod(pod);
        self.accepting.borrow_mut().insert(Arc::clone(&pod.uid), accepting);
        Ok(())
    }

    fn accept<F>(
        &self,
        pod: &Arc<LocalPod>,
        listener: std::net::TcpListener,
        limits: &PodConnectionLimits,
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
            AcceptResult::Connection(socket, peer, slot) => {
                spawn_local(serve(Rc::clone(&worker), Arc::clone(&pod), socket, peer, slot));
            }
            AcceptResult::Crowded(socket) => {
                reset_on_drop(&socket);
                worker.report_over_limit(&pod);
            }
            AcceptResult::Failed(error) => {
                worker.metrics.count_accept_error();
                tracing::warn!(%pod, %error, "can't accept; trying again after a pause");
            }
        };
        let (mut serving, limits) = (self.worker.shared.serving.clone(), limits.clone());
        let accepting = async move {
            if serving.wait_for(|serving| *serving).await.is_ok() {
                accept_loop(listener, limits, handle).await;
            }
        };
        Ok(spawn_local(accepting).abort_handle())
    }

    fn remove(&self, uid: &str) {
        for accepting in self.accepting.borrow_mut().remove(uid).unwrap_or_default() {
            accepting.abort();
        }
        self.worker.remove_pod(uid);
    }

    /// Stops accepting, tells connections to finish, and waits for them up to the deadline.
    async fn drain(&self) {
        for accepting in self.accepting.borrow_mut().drain().flat_map(|(_, accepting)| accepting) {
            accepting.abort();
        }
        self.worker.draining.begin_drain();
        let shared = &self.worker.shared;
        let all_gone = async {
            self.connections.wait_until_all_free(shared.most_connections).await;
            self.sessions.wait_until_all_free(shared.most_sessions).await;
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
        let revoked = worker.authorizations.revoke_denied(&snapshot, &before);
        before = Arc::clone(&snapshot);
        if revoked > 0 {
            worker.metrics.count_revoked(revoked);
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
        worker.pool.drop_closed_and_idle(Instant::now());
        worker.http_connections.close_idle();
        tls::buffer_pool::trim();
        crate::http::read_buffers::trim();
        worker.surroundings.free_unused();
        worker.metrics.remove_unused_labels(COUNTERS_KEPT);
        let snapshot = worker.snapshot();
        worker.picker.retain(|key| snapshot.contains_workload(&key.workload));
        worker.shared.outliers.retain(|key| snapshot.contains_workload(&key.workload));
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::wire::security::Action;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::authorized_connections::AccessRequest;
    use crate::fixture::{
        MeshConfiguration, PlainSurroundings, WorkerWithPod, certificates_without_ca, run_as_worker,
        shared_worker_state, shop_identity, shop_pod, shop_policy, spawn_echo_server, wait_until,
        workload_in_shop,
    };
    use crate::telemetry::{AccessLog, AgentMetrics};

    /// A worker that serves a pod, whose connections all go to a server that echoes.
    struct Served {
        worker: Rc<Worker>,
        commands: mpsc::UnboundedSender<WorkerCommand>,
        serving: JoinHandle<()>,
        outbound: SocketAddr,
    }

    async fn served(change: impl FnOnce(&mut SharedState)) -> Served {
        let configuration = MeshConfiguration::default();
        let mut shared = shared_worker_state(&configuration, certificates_without_ca());
        change(&mut shared);
        let pod = Arc::new(shop_pod("a", [10, 0, 0, 1].into()));
        configuration.set_workload(workload_in_shop("a", pod.addresses[0]));
        let surroundings = Box::new(PlainSurroundings::with_destination(Some(spawn_echo_server().await)));
        let limit = |most| ConnectionLimit::with_reserve(most, 0);
        let serving = Serving {
            connections: limit(shared.most_connections),
            sessions: limit(shared.most_sessions),
            handshakes: WorkerHandshakeLimit::default(),
            worker: Worker::new(Arc::new(shared), surroundings, WorkerMetrics::new(AccessLog::disabled())),
            accepting: RefCell::default(),
        };
        let worker = Rc::clone(&serving.worker);
        let listeners = PodListeners { outbound: listener(), inbound: listener(), hbone: listener() };
        let outbound = listeners.outbound.local_addr().unwrap();
        let (commands, received) = mpsc::unbounded_channel();
        commands.send(WorkerCommand::Add(pod, listeners)).unwrap();
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

        fn told(&self, command: WorkerCommand) {
            self.commands.send(command).expect("it serves");
        }
    }

    async fn is_echoed(client: &mut TcpStream) -> std::io::Result<()> {
        client.write_all(b"x").await?;
        client.read_u8().await.map(drop)
    }

    /// What the metrics say of such connections.
    fn counted(worker: &Worker, name: &str) -> String {
        let metrics = AgentMetrics::new(vec![Arc::clone(&worker.metrics)], AccessLog::disabled());
        let (text, start) =
            (metrics.render_prometheus().unwrap(), format!("nodemesh_connections_{name}_total "));
        text.lines().find_map(|line| line.strip_prefix(&start)).expect("it is counted").to_owned()
    }

    #[test]
    fn a_pod_that_is_dismissed_is_served_no_more_and_its_open_connections_go_on() {
        run_as_worker(async {
            let served = served(|_| {}).await;
            let mut client = served.connect().await.unwrap();
            assert!(served.worker.local_pod_by_address([10, 0, 0, 1].into()).is_some());
            served.told(WorkerCommand::Remove("a".into()));
            wait_until("forgotten", || served.worker.local_pod_by_address([10, 0, 0, 1].into()).is_none())
                .await;
            wait_until("nobody listens", || std::net::TcpStream::connect(served.outbound).is_err()).await;
            is_echoed(&mut client).await.unwrap();
        });
    }

    #[test]
    fn connections_wait_until_they_are_to_be_served() {
        run_as_worker(async {
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
        run_as_worker(async {
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
        run_as_worker(async {
            let mut served = served(|shared| shared.drain = Duration::from_mins(10)).await;
            let mut client = served.connect().await.unwrap();
            served.told(WorkerCommand::Drain);
            wait_until("nobody listens", || std::net::TcpStream::connect(served.outbound).is_err()).await;
            is_echoed(&mut client).await.unwrap();
            assert!(!served.serving.is_finished());
            drop(client);
            (&mut served.serving).await.unwrap();
        });
    }

    #[test]
    fn a_worker_that_drains_ends_at_the_deadline_whoever_is_left() {
        const DRAIN: Duration = Duration::from_millis(200);
        run_as_worker(async {
            let served = served(|shared| shared.drain = DRAIN).await;
            let _client = served.connect().await.unwrap();
            let began = Instant::now();
            served.told(WorkerCommand::Drain);
            served.serving.await.unwrap();
            assert!(began.elapsed() >= DRAIN, "{:?}", began.elapsed());
        });
    }

    #[test]
    fn a_change_of_policy_reaches_open_connections_and_is_counted() {
        run_as_worker(async {
            let WorkerWithPod { worker, configuration, pod } =
                WorkerWithPod::new(PlainSurroundings::default());
            let request = AccessRequest {
                identity: Some(shop_identity("guest")),
                source: [10, 0, 0, 9].into(),
                destination: "10.0.0.1:80".parse().unwrap(),
                workload: worker.wait_for_workload(&pod).await.unwrap(),
            };
            let (guest, _) = worker.authorizations.authorize(request, || worker.snapshot()).unwrap();
            let follow = spawn_local(follow_configuration(Rc::clone(&worker)));
            tokio::task::yield_now().await;
            configuration.set_policy(&shop_policy("no-guests", Action::Deny, &["guest"]));
            let denial = tokio::time::timeout(Duration::from_secs(15), guest.wait_until_revoked())
                .await
                .expect("revoked");
            assert!(denial.to_string().contains("shop/no-guests"), "{denial}");
            assert_eq!(counted(&worker, "revoked"), "1");
            drop(configuration);
            follow.await.unwrap();
        });
    }
}
