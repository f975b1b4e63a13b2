//! A worker's state: the pods that it serves and what their connections need. [`run`] is its thread.

mod run;

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

use crate::authorization::Authorizations;
use crate::balance::{Affinity, Health, Limits, Picker};
use crate::certs::{Certificates, WorkloadCertificate};
use crate::deferred_accept::{self, DeferredAccepts};
use crate::mux::Budget;
use crate::pod::LocalPod;
use crate::pool::Pool;
use crate::surroundings::Surroundings;
use crate::telemetry::WorkerMetrics;

pub use self::run::{Command, PodListeners, run};

/// How long a new pod's connections wait for the control plane to tell of the pod (docs/wire.md, Answers) and
/// to sign its certificate.
pub const NEWS_WAIT: Duration = Duration::from_secs(5);

/// Least time between log lines about connections over a pod's limit.
const COMPLAIN_EVERY: Duration = Duration::from_secs(10);

/// State that all workers share.
pub struct Shared {
    /// Configuration in force.
    pub snapshot: Arc<ArcSwap<Snapshot>>,
    /// Follows the configuration in force.
    pub updates: watch::Receiver<Arc<Snapshot>>,
    /// Whether connections are accepted. Until then they wait in the listeners' queues.
    pub serving: watch::Receiver<bool>,
    /// Certificates of this node's identities.
    pub certificates: Certificates,
    /// Outlier detection.
    pub health: Health,
    /// Session affinity: clients that keep their endpoint of a service.
    pub affinity: Affinity,
    /// Open connections of services that limit them.
    pub limits: Limits<(Arc<str>, u16)>,
    /// Queues of deferred SYNs.
    pub listeners: deferred_accept::Listeners,
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
    pub shared: Arc<Shared>,
    /// The node, or a test, that it runs on.
    pub surroundings: Box<dyn Surroundings>,
    /// Connections between nodes that this one opened.
    pub pool: Pool,
    /// Load balancing.
    pub picker: Picker,
    /// Connections that pods of this node accepted.
    pub authorizations: Rc<Authorizations>,
    /// Connections that are not accepted yet.
    pub deferred: DeferredAccepts,
    /// This worker's counters.
    pub metrics: Arc<WorkerMetrics>,
    /// Tells connections between nodes to finish.
    pub draining: Rc<Draining>,
    /// When it was last logged that a pod has too many connections.
    complained: Cell<Option<Instant>>,
    by_address: RefCell<HashMap<IpAddr, Arc<LocalPod>>>,
    /// Memory of each pod's streams, by its uid, as long as one of its connections needs it.
    budgets: RefCell<HashMap<Arc<str>, Weak<Budget>>>,
}

/// Whether a worker finishes what it has and takes nothing new.
#[derive(Default)]
pub struct Draining {
    begun: Cell<bool>,
    told: Notify,
}

impl Draining {
    /// Begins to drain.
    pub fn begin(&self) {
        self.begun.set(true);
        self.told.notify_waiters();
    }

    /// Returns once draining has begun.
    pub async fn begun(&self) {
        while !self.begun.get() {
            self.told.notified().await;
        }
    }
}

impl Worker {
    /// Creates a worker without pods.
    pub fn new(
        shared: Arc<Shared>,
        surroundings: Box<dyn Surroundings>,
        metrics: Arc<WorkerMetrics>,
    ) -> Rc<Self> {
        Rc::new(Self {
            shared,
            surroundings,
            pool: Pool::default(),
            picker: Picker::default(),
            authorizations: Rc::default(),
            deferred: DeferredAccepts::default(),
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

    /// Returns the certificate of an identity of this node, waiting up to [`NEWS_WAIT`]: a pod that just
    /// started may be a moment ahead of it.
    pub async fn identity(&self, id: &SpiffeId) -> Option<Arc<WorkloadCertificate>> {
        match self.shared.certificates.current(id) {
            Some(identity) => Some(identity),
            None => self.shared.certificates.ready(id, NEWS_WAIT).await,
        }
    }

    /// Returns the enrolled pod of this node that has an address.
    pub fn local_pod(&self, address: IpAddr) -> Option<Arc<LocalPod>> {
        self.by_address.borrow().get(&address.to_canonical()).cloned()
    }

    /// Returns a pod's workload, waiting up to [`NEWS_WAIT`]: a pod that just started may be a moment ahead
    /// of the control plane.
    pub async fn workload_of(&self, pod: &LocalPod) -> Option<Arc<Workload>> {
        if let Some(workload) = pod.workload_in(&self.shared.snapshot.load()) {
            return Some(workload);
        }
        let mut updates = self.shared.updates.clone();
        let wait = async {
            loop {
                updates.changed().await.ok()?;
                if let Some(workload) = pod.workload_in(&updates.borrow_and_update()) {
                    return Some(workload);
                }
            }
        };
        tokio::time::timeout(NEWS_WAIT, wait).await.ok().flatten()
    }

    /// Returns the budget of a pod's streams.
    pub fn budget(&self, pod: &LocalPod) -> Rc<Budget> {
        let mut budgets = self.budgets.borrow_mut();
        if let Some(budget) = budgets.get(&pod.uid).and_then(Weak::upgrade) {
            return budget;
        }
        let budget = Budget::new(self.shared.buffers_of_pod, Some(Arc::clone(&self.metrics)));
        budgets.retain(|_, budget| budget.strong_count() > 0);
        budgets.insert(Arc::clone(&pod.uid), Rc::downgrade(&budget));
        budget
    }

    /// Counts and logs a connection of a pod that was refused because the pod has as many as it may.
    pub fn over_limit(&self, pod: &LocalPod) {
        self.metrics.over_limit();
        if self.complained.get().is_none_or(|last| last.elapsed() > COMPLAIN_EVERY) {
            self.complained.set(Some(Instant::now()));
            let most = self.shared.most_of_pod;
            tracing::warn!(%pod, most, "the pod has its connections already: more are refused");
        }
    }

    /// Adds a pod of this node.
    pub fn know(&self, pod: &Arc<LocalPod>) {
        let addresses = pod.addresses.iter().map(|address| (*address, Arc::clone(pod)));
        self.by_address.borrow_mut().extend(addresses);
    }

    /// Removes a pod. Another pod that took over one of its addresses meanwhile keeps it.
    pub fn forget(&self, uid: &str) {
        let mut gone = None;
        self.by_address.borrow_mut().retain(|_, pod| {
            let stays = &*pod.uid != uid;
            if !stays {
                gone = Some(Arc::clone(pod));
            }
            stays
        });
        if let Some(pod) = gone {
            self.surroundings.forget(&pod);
        }
    }
}

#[cfg(test)]
mod tests {
    use mesh_api::wire::security::Action;

    use super::*;
    use crate::fixture::{Node, PlainSockets, pod, policy, run, workload};

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    /// Another pod had its address before, and news of others are not what it waits for.
    #[test]
    fn a_pod_that_the_mesh_does_not_know_yet_is_waited_for() {
        run(async {
            let Node { worker, configuration, .. } = Node::new(PlainSockets::default());
            configuration.workload(workload("old", address(2)));
            let new = pod("new", address(2));
            let (found, ()) = tokio::join!(worker.workload_of(&new), async {
                configuration.workload(workload("other", address(3)));
                tokio::task::yield_now().await;
                configuration.no_workload("old");
                configuration.workload(workload("new", address(2)));
            });
            assert_eq!(&*found.unwrap().uid, "new");
        });
    }

    #[test]
    fn a_pod_that_the_mesh_does_not_come_to_know_is_waited_for_for_a_bounded_time() {
        run(async {
            let node = Node::new(PlainSockets::default());
            let began = Instant::now();
            assert!(node.worker.workload_of(&pod("new", address(2))).await.is_none());
            assert!((NEWS_WAIT..NEWS_WAIT * 2).contains(&began.elapsed()), "{:?}", began.elapsed());
        });
    }

    #[test]
    fn the_configuration_in_force_is_the_newest() {
        run(async {
            let Node { worker, configuration, .. } = Node::new(PlainSockets::default());
            let before = worker.snapshot();
            configuration.policy(&policy("no-guests", Action::Deny, &["guest"]));
            let now = worker.snapshot();
            assert!(now.generation() > before.generation());
            assert_eq!((before.policies().len(), now.policies().len()), (0, 1));
        });
    }

    #[test]
    fn a_pod_that_is_gone_is_forgotten_and_who_took_its_address_over_is_not() {
        run(async {
            let surroundings = PlainSockets::default();
            let gone = Rc::clone(&surroundings.gone);
            let Node { worker, .. } = Node::new(surroundings);
            let old = LocalPod { addresses: vec![address(2), address(3)], ..pod("old", address(2)) };
            worker.know(&Arc::new(old));
            worker.know(&Arc::new(pod("new", address(3))));
            worker.forget("old");
            assert_eq!(*gone.borrow(), ["old".into()]);
            let at = |last| worker.local_pod(address(last)).map(|pod| Arc::clone(&pod.uid));
            assert_eq!((at(1), at(2), at(3)), (Some("a".into()), None, Some("new".into())));
        });
    }

    #[test]
    fn the_streams_of_a_pod_share_what_they_may_hold_until_the_last_is_gone() {
        run(async {
            let Node { worker, pod: a, .. } = Node::new(PlainSockets::default());
            let budget = worker.budget(&a);
            let others = worker.budget(&pod("b", address(2)));
            assert!(Rc::ptr_eq(&budget, &worker.budget(&a)) && !Rc::ptr_eq(&budget, &others));
            drop(budget);
            let _new = worker.budget(&pod("c", address(3)));
            let left = worker.budgets.borrow();
            assert!(!left.contains_key("a") && left.contains_key("b"), "what nobody holds is forgotten");
        });
    }
}
