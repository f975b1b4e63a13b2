//! Enrols and lets go pods, so that those enrolled are those wanted.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, TcpListener};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::join_all;
use mesh_api::admin::PodStatus;
use mesh_api::plan::Snapshot;
use mesh_proxy::certs::Certificates;
use mesh_proxy::local_pod_identity::LocalPod;
use mesh_proxy::telemetry::AgentMetrics;
use mesh_proxy::worker::{PodListeners, WorkerCommand};
use tokio::sync::{mpsc, watch};
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

use super::announced_as_plain_check::{AnnouncedPlaintextCheck, is_announced_as_plaintext};
use super::kernel_destinations::KernelDestinations;
use super::preexisting_connection_judge::{PreexistingJudge, list_or_close_preexisting};
use crate::direct::DirectHandle;
use crate::keeper::protocol::Claim;
use crate::keeper_client::{EnrolResult as Answer, KeeperClient};
use crate::pods::{NodePod, NodePods};
use crate::strict_egress::{EgressEnforcer, StrictEgressError};
use crate::sys::{self, PreexistingConnection};

mod pod_statuses;

/// How often a pod without processes is looked for. Short, so that it is enrolled before its first program
/// runs.
const LOOK_EVERY: Duration = Duration::from_millis(5);

/// Time after which it is looked for less often: its sandbox may take long, or never come.
const PATIENCE: Duration = Duration::from_secs(10);
const LOOK_SELDOM: Duration = Duration::from_millis(500);

/// How often unused memory is given back and failed pods are tried again.
const TIDY_EVERY: Duration = Duration::from_secs(10);

/// State of each pod, for the admin endpoint.
pub type PodStatuses = watch::Sender<Vec<PodStatus>>;

/// Called with each pod that could not be enrolled, and why.
pub type ReportNotEnrolledFn = Box<dyn Fn(&NodePod, &str) + Send>;

/// Everything that an enroller works with.
pub struct EnrollerSetup {
    /// Takes pods into the mesh.
    pub keeper: KeeperClient,
    /// Receives the uids of pods that got a new network namespace, since their sandbox was made again.
    pub moved: mpsc::UnboundedReceiver<String>,
    /// The destinations that the kernel knows.
    pub destinations: KernelDestinations,
    /// The workers.
    pub workers: Vec<mpsc::UnboundedSender<WorkerCommand>>,
    /// Certificates, asked for when a pod is enrolled.
    pub certificates: Certificates,
    /// Told of each pod that is enrolled or let go.
    pub direct: DirectHandle,
    /// Strict egress.
    pub egress: EgressEnforcer,
    /// Set once connections may be accepted.
    pub serving: watch::Sender<bool>,
    /// How long that waits for certificates.
    pub patience: Duration,
    /// Metrics.
    pub metrics: Arc<AgentMetrics>,
    /// Where the state of each pod is published.
    pub statuses: PodStatuses,
    /// Called for each pod that could not be enrolled, at each attempt.
    pub report: ReportNotEnrolledFn,
}

/// Enrols and lets go pods as they come and go.
pub struct Enroller {
    setup: EnrollerSetup,
    enrolled: BTreeMap<Arc<str>, Enrolled>,
    /// The configuration, for the tasks that judge preexisting connections.
    snapshots: Option<watch::Receiver<Arc<Snapshot>>>,
    failed: BTreeMap<Arc<str>, String>,
    /// Requests to the keeper, one for each pod: a slow one keeps no other waiting.
    asking: JoinSet<Asked>,
    asked: HashSet<Arc<str>>,
    /// Pods that were not there when they were last asked for.
    resting: HashSet<Arc<str>>,
    took_over: bool,
    /// Whether the keeper was told that this proxy serves.
    told_ready: bool,
    /// Whether a pod was enrolled or let go, or the agent started, since memory was given back.
    untidy: bool,
}

/// The keeper's answer about a pod, with its preexisting connections if nobody has judged them.
type Asked = (NodePod, Result<(Answer, Option<Vec<PreexistingConnection>>), String>);

struct Enrolled {
    /// The pod, with the addresses that it has.
    pod: NodePod,
    /// The addresses that it was said to have when it was asked for.
    told: Vec<IpAddr>,
    netns: u64,
    /// The task that judges its preexisting connections.
    settling: Option<AbortHandle>,
    /// Why its strict egress is not in force, if it is not.
    egress_not_in_force: Option<String>,
    /// Whether the control plane has peers speak plaintext to it.
    plain: AnnouncedPlaintextCheck,
}

impl Enroller {
    /// Creates an enroller with nothing enrolled.
    pub fn new(setup: EnrollerSetup) -> Self {
        let (enrolled, failed) = (BTreeMap::new(), BTreeMap::new());
        Self {
            setup,
            enrolled,
            snapshots: None,
            failed,
            asking: JoinSet::new(),
            asked: HashSet::new(),
            resting: HashSet::new(),
            took_over: false,
            told_ready: false,
            untidy: true,
        }
    }

    /// Follows pods and configuration until one of their sources ends.
    pub async fn run(
        mut self,
        mut pods: watch::Receiver<Arc<NodePods>>,
        mut snapshots: watch::Receiver<Arc<Snapshot>>,
        mut configured: watch::Receiver<bool>,
    ) {
        self.snapshots = Some(snapshots.clone());
        let mut tidy = tokio::time::interval_at(Instant::now() + TIDY_EVERY, TIDY_EVERY);
        let mut pending_since = Instant::now();
        let mut look_at = Instant::now();
        loop {
            let wanted = pods.borrow_and_update().clone();
            if look_at <= Instant::now() {
                self.resting.clear();
            }
            let pending = self.reconcile(&wanted).await;
            let (is_configured, newest) = (*configured.borrow_and_update(), snapshots.borrow().clone());
            if is_configured && self.asked.is_empty() {
                self.tell_ready(&newest);
            }
            if look_at <= Instant::now() {
                look_at = Instant::now() + pause(pending, pending_since);
            }
            tokio::select! {
                changed = pods.changed() => match changed {
                    Ok(()) => {
                        pending_since = Instant::now();
                        look_at = pending_since;
                    }
                    Err(_) => return,
                },
                Some(asked) = self.asking.join_next() => {
                    let Ok(asked) = asked else { return };
                    let wanted = pods.borrow().clone();
                    if self.take(&wanted, asked).await {
                        look_at = look_at.min(Instant::now() + pause(1, pending_since));
                    }
                }
                changed = snapshots.changed() => match changed {
                    Ok(()) => {
                        let snapshot = snapshots.borrow_and_update().clone();
                        self.setup.destinations.update_from_snapshot(&snapshot);
                    }
                    Err(_) => return,
                },
                Ok(()) = configured.changed(), if !self.told_ready => {}
                Some(uid) = self.setup.moved.recv() => {
                    self.dismiss(&uid.into()).await;
                    pending_since = Instant::now();
                    look_at = pending_since;
                }
                _ = tidy.tick() => {
                    self.tidy();
                    if self.setup.destinations.is_incomplete() {
                        let snapshot = snapshots.borrow_and_update().clone();
                        self.setup.destinations.update_from_snapshot(&snapshot);
                    }
                }
                () = tokio::time::sleep_until(look_at) => {}
            }
        }
    }

    fn tidy(&mut self) {
        // The cause may be gone: a program that had the port, for instance.
        self.failed.clear();
        self.look_for_plain();
        if std::mem::take(&mut self.untidy) {
            sys::release_code_pages_and_heap();
        } else {
            sys::release_code_pages();
        }
    }

    /// Checks which pods the control plane takes for plain ones.
    fn look_for_plain(&mut self) {
        let Some(snapshot) = self.snapshots.as_ref().map(|snapshots| Arc::clone(&snapshots.borrow())) else {
            return;
        };
        for Enrolled { pod, plain, .. } in self.enrolled.values_mut() {
            let told = plain
                .record_and_should_report(is_announced_as_plaintext(&snapshot, pod))
                .then(|| plain.plaintext_reason())
                .flatten();
            if let Some(reason) = told {
                tracing::warn!(namespace = %pod.namespace, pod = %pod.name, reason, "served as plain");
            }
        }
    }

    /// Asks the keeper for every pod that is wanted and not enrolled. Returns how many are pending.
    async fn reconcile(&mut self, wanted: &NodePods) -> usize {
        self.dismiss_unwanted(wanted).await;
        self.restrict(wanted);
        self.failed.retain(|uid, _| wanted.get(uid).is_some_and(NodePod::should_be_enrolled));
        let mut pending = HashSet::new();
        for pod in wanted.values().filter(|pod| pod.should_be_enrolled()) {
            if self.enrolled.contains_key(&pod.uid) || self.failed.contains_key(&pod.uid) {
                continue;
            }
            pending.insert(Arc::clone(&pod.uid));
            if !self.asked.contains(&pod.uid) && !self.resting.contains(&pod.uid) {
                self.ask(pod);
            }
        }
        if pending.is_empty() {
            self.take_over().await;
        }
        self.share_statuses_and_counts(wanted, &pending);
        pending.len()
    }

    /// Asks the keeper for a pod.
    ///
    /// Without addresses the keeper takes those of the pod's network namespace: Kubernetes tells addresses
    /// only when containers may run already, and the namespace has them before.
    fn ask(&mut self, pod: &NodePod) {
        let (keeper, pod) = (self.setup.keeper.clone(), pod.clone());
        self.asked.insert(Arc::clone(&pod.uid));
        self.asking.spawn(async move {
            let answer = enrol(&keeper, &pod).await;
            (pod, answer)
        });
    }

    /// Handles the keeper's answer about a pod. Returns whether it is pending: it has no process in a network
    /// namespace of its own yet, or no address there.
    async fn take(&mut self, wanted: &NodePods, (pod, answer): Asked) -> bool {
        self.asked.remove(&pod.uid);
        let as_asked = wanted.get(&pod.uid) == Some(&pod) && pod.should_be_enrolled();
        match answer {
            Ok((Answer::NotYet, _)) => {
                self.resting.insert(pod.uid);
                return true;
            }
            Ok((Answer::Enrolled { netns, .. }, _)) if !as_asked => {
                let_go(&self.setup.keeper, &pod, netns).await;
            }
            Ok((Answer::Enrolled { netns, addresses, listeners, .. }, preexisting)) => {
                tracing::info!(namespace = %pod.namespace, pod = %pod.name, "enrolled");
                let told = pod.addresses.clone();
                self.serve(&NodePod { addresses, ..pod }, told, netns, listeners, preexisting);
            }
            Err(_) if !as_asked => {}
            Err(reason) => {
                tracing::error!(namespace = %pod.namespace, pod = %pod.name, error = reason, "pod not enrolled");
                (self.setup.report)(&pod, &reason);
                self.failed.insert(pod.uid, reason);
            }
        }
        false
    }

    async fn dismiss_unwanted(&mut self, wanted: &NodePods) {
        let unwanted: Vec<_> = self
            .enrolled
            .iter()
            .filter(|(uid, enrolled)| {
                let now = wanted.get(*uid);
                // A pod whose identity, addresses or probes changed is enrolled anew.
                !now.is_some_and(|now| {
                    now.should_be_enrolled() && now.matches_enrolled(&enrolled.pod, &enrolled.told)
                })
            })
            .map(|(uid, _)| Arc::clone(uid))
            .collect();
        for uid in unwanted {
            self.dismiss(&uid).await;
        }
    }

    /// Updates the strict egress of enrolled pods.
    fn restrict(&mut self, wanted: &NodePods) {
        for (uid, enrolled) in &mut self.enrolled {
            let Some(now) = wanted.get(uid) else { continue };
            if now.egress != enrolled.pod.egress || enrolled.egress_not_in_force.is_some() {
                enrolled.pod.egress.clone_from(&now.egress);
                if enrolled.restrict(&mut self.setup.egress) {
                    // Its first program may have had to wait for that.
                    let (keeper, name) = (self.setup.keeper.clone(), Arc::clone(&enrolled.pod.name));
                    tokio::spawn(allow_pod_start(keeper, name, enrolled.netns));
                }
            }
        }
    }

    /// Serves an enrolled pod; `told` are the addresses that it was said to have when it was asked for.
    fn serve(
        &mut self,
        pod: &NodePod,
        told: Vec<IpAddr>,
        netns: u64,
        listeners: Vec<TcpListener>,
        preexisting: Option<Vec<PreexistingConnection>>,
    ) {
        let mut enrolled = Enrolled {
            pod: pod.clone(),
            told,
            netns,
            settling: None,
            egress_not_in_force: None,
            plain: AnnouncedPlaintextCheck::default(),
        };
        let restricted = enrolled.restrict(&mut self.setup.egress);
        self.setup.certificates.retain_identity(&pod.identity);
        let local = Arc::new(LocalPod {
            uid: Arc::clone(&pod.uid),
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            identity: pod.identity.clone(),
            addresses: pod.addresses.clone(),
            netns,
        });
        for (worker, listeners) in self.setup.workers.iter().zip(by_worker(listeners)) {
            // A worker that is gone was told to stop, and so is this.
            let _stopping = worker.send(WorkerCommand::Add(Arc::clone(&local), listeners));
        }
        self.setup.direct.notify_enrolled(&local);
        if restricted {
            tokio::spawn(allow_pod_start(self.setup.keeper.clone(), Arc::clone(&pod.name), netns));
        }
        enrolled.settling = preexisting.zip(self.snapshots.clone()).map(|(found, snapshots)| {
            let preexisting = PreexistingJudge::new(local, self.setup.keeper.clone(), found);
            tokio::spawn(preexisting.run(snapshots)).abort_handle()
        });
        self.enrolled.insert(Arc::clone(&pod.uid), enrolled);
        self.untidy = true;
    }

    async fn dismiss(&mut self, uid: &Arc<str>) {
        let Some(Enrolled { pod, netns, settling, .. }) = self.enrolled.remove(uid) else { return };
        settling.inspect(AbortHandle::abort);
        tracing::info!(namespace = %pod.namespace, pod = %pod.name, "no longer enrolled");
        let_go(&self.setup.keeper, &pod, netns).await;
        if let Err(error) = self.setup.egress.set_pod_egress(netns, "", None) {
            tracing::error!(pod = %pod.name, %error, "its strict egress stays in force");
        }
        self.setup.direct.notify_unenrolled(uid);
        for worker in &self.setup.workers {
            let _stopping = worker.send(WorkerCommand::Remove(Arc::clone(uid)));
        }
        self.setup.certificates.release_identity(&pod.identity);
        self.untidy = true;
    }

    /// Lets go pods that a predecessor left, once every pod that is wanted is enrolled.
    async fn take_over(&mut self) {
        if self.took_over {
            return;
        }
        self.took_over = true;
        if let Err(error) = self.setup.keeper.unenrol_unclaimed().await {
            tracing::error!(error, "pods that a predecessor enrolled could not be let go");
        }
        let enrolled = self.enrolled.values().map(|enrolled| enrolled.netns).collect();
        if let Err(error) = self.setup.egress.retain_pods(&enrolled) {
            tracing::warn!(%error, "what is gone still takes room among strict egress");
        }
    }

    /// Tells the keeper that this proxy serves, once it has its pods, a configuration and certificates.
    fn tell_ready(&mut self, snapshot: &Arc<Snapshot>) {
        if std::mem::replace(&mut self.told_ready, true) {
            return;
        }
        self.setup.destinations.update_from_snapshot(snapshot);
        let identities: HashSet<_> = self.enrolled.values().map(|it| it.pod.identity.clone()).collect();
        let (keeper, certificates) = (self.setup.keeper.clone(), self.setup.certificates.clone());
        let (serving, patience) = (self.setup.serving.clone(), self.setup.patience);
        tokio::spawn(async move {
            join_all(identities.iter().map(|identity| certificates.wait_for_certificate(identity, patience)))
                .await;
            if let Err(error) = keeper.report_ready().await {
                tracing::error!(error, "the programs are not attached: nothing is taken into the mesh");
            }
            serving.send_replace(true);
        });
    }
}

impl Enrolled {
    /// Writes a pod's strict egress to the kernel, and logs a failure once. Returns whether the kernel
    /// refuses everything that it should.
    fn restrict(&mut self, egress: &mut EgressEnforcer) -> bool {
        let name = format!("{}/{}", self.pod.namespace, self.pod.name);
        let strict = self.pod.egress.as_ref();
        if let Some(problem) = strict.and_then(|strict| strict.problem.as_ref()) {
            tracing::warn!(pod = name, problem, "strict egress: nothing outside of the mesh is excepted");
        }
        let result = egress.set_pod_egress(self.netns, &name, strict);
        let refuses = !matches!(result, Err(StrictEgressError::Kernel(_)));
        let failed = result.err().map(|error| error.to_string());
        if let Some(error) = &failed
            && self.egress_not_in_force != failed
        {
            tracing::error!(pod = name, error, "strict egress is not as it should be");
        }
        self.egress_not_in_force = failed;
        refuses
    }
}

/// Has the keeper enrol a pod, and list its preexisting connections if it is there for the first time. The
/// list is made before anything is served, or the mesh's own connections would be on it, and after the
/// programs decide, or a connection could still slip through.
async fn enrol(
    keeper: &KeeperClient,
    pod: &NodePod,
) -> Result<(Answer, Option<Vec<PreexistingConnection>>), String> {
    let claim = Claim::new(&pod.uid, &pod.addresses, &pod.probe_ports).map_err(|error| error.to_string())?;
    let answer = keeper.enrol_pod(claim.with_own_userns(pod.own_userns)).await?;
    let found = match &answer {
        Answer::Enrolled { netns, preexisting_judged: false, .. } => {
            Some(list_or_close_preexisting(keeper, *netns).await?)
        }
        _ => None,
    };
    Ok((answer, found))
}

/// Lets a pod's first program run, which the CNI plugin has held up until now.
async fn allow_pod_start(keeper: KeeperClient, pod: Arc<str>, netns: u64) {
    if let Err(error) = keeper.allow_pod_start(netns).await {
        tracing::error!(%pod, error, "its programs are not let run");
    }
}

async fn let_go(keeper: &KeeperClient, pod: &NodePod, netns: u64) {
    if let Err(error) = keeper.unenrol_pod(netns).await {
        tracing::error!(pod = %pod.name, error, "pod not let go completely");
    }
}

/// Returns how long until pending pods are looked for again.
fn pause(pending: usize, since: Instant) -> Duration {
    match since.elapsed() {
        _ if pending == 0 => TIDY_EVERY,
        passed if passed < PATIENCE => LOOK_EVERY,
        _ => LOOK_SELDOM,
    }
}

/// Divides a pod's listeners among the workers.
fn by_worker(listeners: Vec<TcpListener>) -> impl Iterator<Item = PodListeners> {
    let mut listeners = listeners.into_iter();
    std::iter::from_fn(move || {
        Some(PodListeners {
            outbound: listeners.next()?,
            inbound: listeners.next()?,
            hbone: listeners.next()?,
        })
    })
}
