//! A worker's state: the pods that it serves and what their connections need. [`run_worker`] is its thread.

mod thread;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_api::identity::SpiffeId;
use mesh_api::plan::{Snapshot, Workload};
use tokio::sync::{Notify, watch};

use crate::authorized_connections::AuthorizedConnections;
use crate::balance::{OutlierDetector, Picker, ServiceLimits, SessionAffinity};
use crate::certs::{Certificates, WorkloadCertificate};
use crate::deferred_accept::{self, DeferredAccepts};
use crate::flood_penalty::FloodPenalties;
use crate::http::{Copies, UpstreamConnections};
use crate::local_pod_identity::LocalPod;
use crate::mux::PodReceiveBudget;
use crate::surroundings::Surroundings;
use crate::telemetry::WorkerMetrics;
use crate::tunnel_pool::TunnelPool;

pub use self::thread::{PodListeners, WorkerCommand, run_worker};

/// How long a new pod's connections wait for the control plane to tell of the pod (docs/wire.md, Answers) and
/// to sign its certificate.
pub const NEW_POD_WAIT: Duration = Duration::from_secs(5);

/// Least time between log lines about connections over a pod's limit.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// State that all workers share.
pub struct SharedState {
    /// Configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Follows the configuration in force.
    pub updates: watch::Receiver<Arc<Snapshot>>,
    /// Whether connections are accepted. Until then they wait in the listeners' queues.
    pub serving: watch::Receiver<bool>,
    /// Certificates of this node's identities.
    pub certificates: Certificates,
    /// Outlier detection.
    pub outliers: OutlierDetector,
    /// Session affinity: clients that keep their endpoint of a service.
    pub affinity: SessionAffinity,
    /// Connections, requests and retries of services that limit them.
    pub service_limits: ServiceLimits,
    /// Queues of deferred SYNs.
    pub syn_router: deferred_accept::SynRouter,
    /// Most connections that a worker may have open.
    pub most_connections: usize,
    /// Most of these for one pod.
    pub most_of_pod: usize,
    /// Most connections between nodes that others may have open to a worker, each with many streams.
    pub most_sessions: usize,
    /// Bytes that one pod's streams may hold on a worker, beyond the first 16 KiB of each.
    pub buffers_of_pod: usize,
    /// How long connections may go on after the agent was told to stop.
    pub drain: Duration,
}

/// One worker. Only its thread uses it, except for what is shared on purpose.
pub struct Worker {
    /// What all workers share.
    pub shared: Arc<SharedState>,
    /// The node, or a test, that it runs on.
    pub surroundings: Box<dyn Surroundings>,
    /// Connections between nodes that this one opened.
    pub pool: TunnelPool,
    /// Idle connections to endpoints that take HTTP requests.
    pub http_connections: UpstreamConnections,
    /// Copies of HTTP requests that are under way to mirrors.
    pub copies: Copies,
    /// Load balancing.
    pub picker: Picker,
    /// Connections that pods of this node accepted.
    pub authorizations: Rc<AuthorizedConnections>,
    /// Connections that are not accepted yet.
    pub deferred: DeferredAccepts,
    /// Peers that were cut off for a flood.
    pub flood_penalties: FloodPenalties,
    /// This worker's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// Tells connections between nodes to finish.
    pub draining: Rc<DrainSignal>,
    /// When it was last logged that a pod has too many connections.
    complained: Cell<Option<Instant>>,
    by_address: RefCell<HashMap<IpAddr, Arc<LocalPod>>>,
    /// Memory of each pod's streams, by its uid, as long as one of its connections needs it.
    budgets: RefCell<HashMap<Arc<str>, Weak<PodReceiveBudget>>>,
}

/// Whether a worker finishes what it has and takes nothing new.
#[derive(Default)]
pub struct DrainSignal {
    begun: Cell<bool>,
    told: Notify,
}

impl DrainSignal {
    /// Begins to drain.
    pub fn begin_drain(&self) {
        self.begun.set(true);
        self.told.notify_waiters();
    }

    /// Whether draining has begun.
    pub fn has_begun(&self) -> bool {
        self.begun.get()
    }

    /// Returns once draining has begun.
    pub async fn wait_for_drain(&self) {
        while !self.begun.get() {
            self.told.notified().await;
        }
    }
}

impl Worker {
    /// Creates a worker without pods.
    pub fn new(
        shared: Arc<SharedState>,
        surroundings: Box<dyn Surroundings>,
        metrics: Arc<WorkerMetrics>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shared,
            surroundings,
            pool: TunnelPool::default(),
            http_connections: UpstreamConnections::default(),
            copies: Copies::default(),
            picker: Picker::default(),
            authorizations: Rc::default(),
            deferred: DeferredAccepts::default(),
            flood_penalties: FloodPenalties::default(),
            metrics,
            draining: Rc::default(),
            complained: Cell::default(),
            by_address: RefCell::default(),
            budgets: RefCell::default(),
        })
    }

    /// Returns the configuration in force.
    pub fn snapshot(&self) -> Arc<Snapshot> {
        self.shared.snapshot.load_full()
    }

    /// Returns the certificate of an identity of this node, waiting up to [`NEW_POD_WAIT`]: a pod that just
    /// started may be a moment ahead of it. None if there is none by then.
    pub async fn wait_for_certificate(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        match self.shared.certificates.current(id) {
            Some(identity) => Some(identity),
            None => self.shared.certificates.wait_for_certificate(id, NEW_POD_WAIT).await,
        }
    }

    /// Returns the enrolled pod of this node that has `address`; none if no pod has.
    pub fn local_pod_by_address(&self, address: IpAddr) -> Option<Arc<LocalPod>> {
        self.by_address.borrow().get(&address.to_canonical()).cloned()
    }

    /// Returns a pod's workload, waiting up to [`NEW_POD_WAIT`]: a pod that just started may be a moment
    /// ahead of the control plane. None if that has not told of it by then.
    pub async fn wait_for_workload(&self, pod: &LocalPod) -> Option<Arc<Workload>> {
        if let Some(workload) = pod.find_workload(&self.shared.snapshot.load()) {
            return Some(workload);
        }
        let mut updates = self.shared.updates.clone();
        let wait = async {
            loop {
                updates.changed().await.ok()?;
                if let Some(workload) = pod.find_workload(&updates.borrow_and_update()) {
                    return Some(workload);
                }
            }
        };
        tokio::time::timeout(NEW_POD_WAIT, wait).await.ok().flatten()
    }

    /// Returns the budget of a pod's streams.
    pub fn receive_budget(&self, pod: &LocalPod) -> Rc<PodReceiveBudget> {
        let mut budgets = self.budgets.borrow_mut();
        if let Some(budget) = budgets.get(&pod.uid).and_then(Weak::upgrade) {
            return budget;
        }
        let budget = PodReceiveBudget::new(self.shared.buffers_of_pod, Some(Arc::clone(&self.metrics)));
        budgets.retain(|_, budget| budget.strong_count() > 0);
        budgets.insert(Arc::clone(&pod.uid), Rc::downgrade(&budget));
        budget
    }

    /// Counts and logs a connection of a pod that was refused because the pod has as many as it may.
    pub fn report_over_limit(&self, pod: &LocalPod) {
        self.metrics.count_over_limit();
        if self.complained.get().is_none_or(|last| last.elapsed() > COMPLAIN_EVERY) {
            self.complained.set(Some(Instant::now()));
            let most = self.shared.most_of_pod;
            tracing::warn!(%pod, most, "the pod has its connections already: more are refused");
        }
    }

    /// Adds a pod of this node.
    pub fn add_pod(&self, pod: &Arc<LocalPod>) {
        let addresses = pod.addresses.iter().map(|address| (*address, Arc::clone(pod)));
        self.by_address.borrow_mut().extend(addresses);
    }

    /// Removes a pod. Another pod that took over one of its addresses meanwhile keeps it.
    pub fn remove_pod(&self, uid: &str) {
        let mut gone = None;
        self.by_address.borrow_mut().retain(|_, pod| {
            let stays = &*pod.uid != uid;
            if !stays {
                gone = Some(Arc::clone(pod));
            }
            stays
        });
        if let Some(pod) = gone {
            self.surroundings.forget_pod(&pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::wire::security::Action;

    use super::*;
    use crate::fixture::{
        PlainSurroundings, WorkerWithPod, run_as_worker, shop_pod, shop_policy, workload_in_shop,
    };

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// Another pod had its address before, and news of others are not what it waits for.
    #[test]
    fn a_pod_that_the_mesh_does_not_know_yet_is_waited_for() {
        run_as_worker(async {
            let WorkerWithPod { worker, configuration, .. } =
                WorkerWithPod::new(PlainSurroundings::default());
            configuration.set_workload(workload_in_shop("old", address(2)));
            let new = shop_pod("new", address(2));
            let (found, ()) = tokio::join!(worker.wait_for_workload(&new), async {
                configuration.set_workload(workload_in_shop("other", address(3)));
                tokio::task::yield_now().await;
                configuration.remove_workload("old");
                configuration.set_workload(workload_in_shop("new", address(2)));
            });
            assert_eq!(&*found.unwrap().uid, "new");
        });
    }

    #[test]
    fn a_pod_that_the_mesh_does_not_come_to_know_is_waited_for_for_a_bounded_time() {
        run_as_worker(async {
            let node = WorkerWithPod::new(PlainSurroundings::default());
            let began = Instant::now();
            assert!(node.worker.wait_for_workload(&shop_pod("new", address(2))).await.is_none());
            assert!((NEW_POD_WAIT..NEW_POD_WAIT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        });
    }

    #[test]
    fn the_configuration_in_force_is_the_newest() {
        run_as_worker(async {
            let WorkerWithPod { worker, configuration, .. } =
                WorkerWithPod::new(PlainSurroundings::default());
            let before = worker.snapshot();
            configuration.set_policy(&shop_policy("no-guests", Action::Deny, &["guest"]));
            let now = worker.snapshot();
            assert!(now.generation() > before.generation());
            assert_eq!((before.all_policies().len(), now.all_policies().len()), (0, 1));
        });
    }

    #[test]
    fn a_pod_that_is_gone_is_forgotten_and_who_took_its_address_over_is_not() {
        run_as_worker(async {
            let surroundings = PlainSurroundings::default();
            let gone = Rc::clone(&surroundings.gone);
            let WorkerWithPod { worker, .. } = WorkerWithPod::new(surroundings);
            let old = LocalPod { addresses: vec![address(2), address(3)], ..shop_pod("old", address(2)) };
            worker.add_pod(&Arc::new(old));
            worker.add_pod(&Arc::new(shop_pod("new", address(3))));
            worker.remove_pod("old");
            assert_eq!(*gone.borrow(), ["old".into()]);
            let at = |last| worker.local_pod_by_address(address(last)).map(|pod| Arc::clone(&pod.uid));
            assert_eq!((at(1), at(2), at(3)), (Some("a".into()), None, Some("new".into())));
        });
    }

    #[test]
    fn the_streams_of_a_pod_share_what_they_may_hold_until_the_last_is_gone() {
        run_as_worker(async {
            let WorkerWithPod { worker, pod: a, .. } = WorkerWithPod::new(PlainSurroundings::default());
            let budget = worker.receive_budget(&a);
            let others = worker.receive_budget(&shop_pod("b", address(2)));
            assert!(Rc::ptr_eq(&budget, &worker.receive_budget(&a)) && !Rc::ptr_eq(&budget, &others));
            drop(budget);
            let _new = worker.receive_budget(&shop_pod("c", address(3)));
            let left = worker.budgets.borrow();
            assert!(!left.contains_key("a") && left.contains_key("b"), "what nobody holds is forgotten");
        });
    }
}
