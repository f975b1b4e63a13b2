//! One core of the proxy: a thread with a runtime of its own. A connection lives and dies on the core that accepted
//! it; cores share the snapshot, the certificates and nothing else on the data path.

use std::cell::RefCell;
use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_api::identity::SpiffeId;
use mesh_api::plan::{Snapshot, TargetKey, Workload};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::LocalOptions;
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::{AbortHandle, spawn_local};

use super::accept::{Cap, Place, accept_loop};
use super::admission::Admissions;
use super::balance::{Health, Limits, Turns};
use super::pool::Pool;
use super::{inbound, outbound};
use crate::certs::{Certificates, Identity};
use crate::sys::Netns;
use crate::sys::ebpf::FlowMap;
use crate::telemetry::WorkerMetrics;

/// How often a core looks for idle connections and unused counters.
const SWEEP_EVERY: Duration = Duration::from_secs(30);

/// Counters that nothing used for this long are forgotten.
const COUNTERS_KEPT: Duration = Duration::from_hours(1);

/// How long a new pod's connections wait for the control plane to tell of the pod (wire reference 6.4).
const WORKLOAD_WAIT: Duration = Duration::from_secs(5);

/// What all cores share.
pub struct Shared {
    /// Configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// The same, for whoever waits for a change.
    pub updates: watch::Receiver<Arc<Snapshot>>,
    /// Certificates of this node's identities.
    pub certificates: Certificates,
    /// Endpoints that fail.
    pub health: Health<TargetKey>,
    /// Connections of services that limit them.
    pub limits: Limits<(Arc<str>, u16)>,
    /// Connections that a core may have open at once.
    pub most_connections: usize,
    /// How long connections may go on after the agent was told to stop.
    pub drain: Duration,
}

/// An enrolled pod, as a core knows it.
pub struct LocalPod {
    /// Kubernetes uid.
    pub uid: Arc<str>,
    /// Namespace.
    pub namespace: Arc<str>,
    /// Name.
    pub name: Arc<str>,
    /// Who its processes are.
    pub identity: SpiffeId,
    /// Addresses, canonical.
    pub addresses: Vec<IpAddr>,
    /// Its network namespace.
    pub netns: Netns,
}

/// A pod's listeners of one core.
pub struct PodListeners {
    /// Port 15001.
    pub outbound: std::net::TcpListener,
    /// Port 15006.
    pub inbound: std::net::TcpListener,
    /// Port 15008.
    pub hbone: std::net::TcpListener,
}

/// What the enroller tells a core.
pub enum Command {
    /// Serve a pod.
    Add(Arc<LocalPod>, PodListeners),
    /// Stop accepting for a pod. Its open connections go on.
    Remove(Arc<str>),
    /// Stop accepting at all and end when the last connection has, or at the deadline.
    Drain,
}

/// One core.
pub struct Core {
    /// What all cores share.
    pub shared: Arc<Shared>,
    /// What is remembered with sockets.
    pub flows: RefCell<FlowMap>,
    /// HBONE connections.
    pub pool: Pool,
    /// Whose turn it is among endpoints.
    pub turns: Turns<TargetKey>,
    /// Connections that pods of this node took.
    pub admissions: Rc<Admissions>,
    /// This core's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// Tells HBONE connections to let go.
    pub draining: Rc<Notify>,
    pods: RefCell<HashMap<Arc<str>, ServedPod>>,
    by_address: RefCell<HashMap<IpAddr, Arc<LocalPod>>>,
    cap: Rc<Cap>,
}

struct ServedPod {
    pod: Arc<LocalPod>,
    accepting: Vec<AbortHandle>,
}

impl fmt::Display for LocalPod {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.namespace, self.name)
    }
}

impl LocalPod {
    /// The pod's address of the same family as `other`, or `other` if it has none.
    pub fn address_like(&self, other: IpAddr) -> IpAddr {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4()).unwrap_or(other)
    }
}

/// Runs a core until it is told to drain. To be called on the core's own thread.
pub fn run(
    shared: Arc<Shared>,
    flows: FlowMap,
    metrics: Arc<WorkerMetrics>,
    commands: mpsc::UnboundedReceiver<Command>,
) -> std::io::Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build_local(LocalOptions::default())?;
    let cap = Cap::new(shared.most_connections);
    let core = Rc::new(Core {
        flows: RefCell::new(flows),
        pool: Pool::default(),
        turns: Turns::default(),
        admissions: Rc::default(),
        metrics,
        draining: Rc::default(),
        pods: RefCell::default(),
        by_address: RefCell::default(),
        cap,
        shared,
    });
    runtime.block_on(core.serve(commands));
    Ok(())
}

impl Core {
    async fn serve(self: Rc<Self>, mut commands: mpsc::UnboundedReceiver<Command>) {
        spawn_local(Rc::clone(&self).follow_configuration());
        spawn_local(Rc::clone(&self).sweep());
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

    /// The configuration in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// The certificate of an identity of this node.
    pub fn identity(&self, id: &SpiffeId) -> Option<Arc<Identity>> {
        self.shared.certificates.current(id)
    }

    /// The enrolled pod of this node that has an address.
    pub fn local_pod(&self, address: IpAddr) -> Option<Arc<LocalPod>> {
        self.by_address.borrow().get(&address.to_canonical()).cloned()
    }

    /// A pod as the mesh knows it. A pod that just started may be a moment ahead of the control plane's news.
    pub async fn workload_of(&self, pod: &LocalPod) -> Option<Arc<Workload>> {
        let find = |snapshot: &Snapshot| {
            let mut found = pod.addresses.iter().filter_map(|address| snapshot.workload_by_address(*address));
            found.find(|workload| workload.identity == pod.identity).cloned()
        };
        if let Some(workload) = find(&self.shared.snapshot.load()) {
            return Some(workload);
        }
        let mut updates = self.shared.updates.clone();
        let wait = async {
            loop {
                updates.changed().await.ok()?;
                if let Some(workload) = find(&updates.borrow_and_update()) {
                    return Some(workload);
                }
            }
        };
        tokio::time::timeout(WORKLOAD_WAIT, wait).await.ok().flatten()
    }

    fn add(self: &Rc<Self>, pod: &Arc<LocalPod>, listeners: PodListeners) -> std::io::Result<()> {
        let accepting = vec![
            self.accept(pod, listeners.outbound, outbound::serve)?,
            self.accept(pod, listeners.inbound, inbound::serve_plaintext)?,
            self.accept(pod, listeners.hbone, inbound::serve_hbone)?,
        ];
        let mut by_address = self.by_address.borrow_mut();
        by_address.extend(pod.addresses.iter().map(|address| (*address, Arc::clone(pod))));
        self.pods.borrow_mut().insert(Arc::clone(&pod.uid), ServedPod { pod: Arc::clone(pod), accepting });
        Ok(())
    }

    fn accept<F>(
        self: &Rc<Self>,
        pod: &Arc<LocalPod>,
        listener: std::net::TcpListener,
        serve: impl Fn(Rc<Self>, Arc<LocalPod>, TcpStream, SocketAddr, Place) -> F + 'static,
    ) -> std::io::Result<AbortHandle>
    where
        F: Future<Output = ()> + 'static,
    {
        let listener = TcpListener::from_std(listener)?;
        let (core, pod) = (Rc::clone(self), Arc::clone(pod));
        let (metrics, name) = (Arc::clone(&self.metrics), pod.to_string());
        let refused = move |error: &std::io::Error| {
            metrics.accept_failed();
            tracing::warn!(pod = %name, %error, "can't accept; trying again after a pause");
        };
        let handle = move |socket, peer, place| {
            spawn_local(serve(Rc::clone(&core), Arc::clone(&pod), socket, peer, place));
        };
        Ok(spawn_local(accept_loop(listener, Rc::clone(&self.cap), refused, handle)).abort_handle())
    }

    fn remove(&self, uid: &str) {
        let Some(served) = self.pods.borrow_mut().remove(uid) else { return };
        for accepting in &served.accepting {
            accepting.abort();
        }
        // A pod that took the address over meanwhile keeps it.
        self.by_address.borrow_mut().retain(|_, pod| pod.uid != served.pod.uid);
    }

    /// A change of policy reaches open connections too.
    async fn follow_configuration(self: Rc<Self>) {
        let mut updates = self.shared.updates.clone();
        while updates.changed().await.is_ok() {
            let snapshot = updates.borrow_and_update().clone();
            let revoked = self.admissions.recheck(&snapshot);
            if revoked > 0 {
                self.metrics.revoked(revoked);
                tracing::info!(
                    revoked,
                    generation = snapshot.generation(),
                    "policy changed: closing connections"
                );
            }
        }
    }

    async fn sweep(self: Rc<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            self.pool.sweep(Instant::now());
            self.metrics.forget_unused(COUNTERS_KEPT);
            let snapshot = self.snapshot();
            self.turns.retain(|key| snapshot.workload(&key.workload).is_some());
            self.shared.health.retain(|key| snapshot.workload(&key.workload).is_some());
        }
    }

    /// Stops accepting, lets go, and waits for what is left, up to the deadline.
    async fn drain(&self) {
        for (_, served) in self.pods.borrow_mut().drain() {
            for accepting in served.accepting {
                accepting.abort();
            }
        }
        self.draining.notify_waiters();
        let all_gone = self.cap.all_returned(self.shared.most_connections);
        if tokio::time::timeout(self.shared.drain, all_gone).await.is_err() {
            tracing::info!("deadline reached: closing the connections that are left");
        }
    }
}
