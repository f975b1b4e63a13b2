//! The task: changes plans on news of pods and configuration, tells the kernel, and records its events.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::policy::Verdict;
use mesh_api::plan::{EndpointId, Snapshot};
use mesh_common::direct::{CONNECT_YES_TTL_NS, DIRECT_EVENTS_RING_BYTES, DirectEventKind, NO_SERVER};
use mesh_proxy::telemetry::WorkerMetrics;
use mesh_proxy::worker::SharedState;
use tokio::sync::watch;

use super::flow_tracker::{ConnectionEnds, FlowPods, FlowTracker};
use super::planned_routes::{PlannedRoutes, ReplanTrigger, RouteChange};
use super::route_plan::{PlanContext, Pod, RoutePlan};
use super::same_node_links::PodLinks;
use super::{Ask, DirectReceiver, PodEvent};
use crate::keeper_client::KeeperClient;
use crate::node_surroundings::NodeShared;
use crate::sys::ebpf::{DirectEvent, DirectMaps, PendingDirectConnection};

/// How often the kernel's events are read (sooner when there are many), and outdated plans are made again. A
/// changed policy is in force everywhere after at most this and the time to decide.
const TICK: Duration = Duration::from_millis(100);

/// Ticks between two beats, which keep routes in force for much longer, and between checks of what changes
/// with time alone.
const BEAT: u32 = 10;

/// Ticks between two sweeps of unused entries.
const SWEEP: u32 = 300;

/// How long an endpoint that refused a direct connection is left to the proxy, which tries others.
const REST: Duration = Duration::from_secs(5);

/// Time after which unused counters are forgotten.
const COUNTERS_KEPT: Duration = Duration::from_hours(1);

/// What the task works with.
pub struct DirectTaskSetup {
    /// The kernel's maps.
    pub kernel: DirectMaps,
    /// Closes connections of pods.
    pub keeper: KeeperClient,
    /// The node, which knows how its pods are connected.
    pub node: Arc<NodeShared>,
    /// State shared with the workers.
    pub shared: Arc<SharedState>,
    /// Counters of direct connections.
    pub metrics: Arc<WorkerMetrics>,
}

/// Keeps direct connections in line with configuration and pods.
pub struct DirectTask {
    kernel: DirectMaps,
    keeper: KeeperClient,
    node: Arc<NodeShared>,
    shared: Arc<SharedState>,
    receiver: DirectReceiver,
    table: PlannedRoutes,
    flows: FlowTracker,
    /// Connections whose ends are not known yet, by the cookie of the client's socket: they began before this
    /// proxy knew its pods.
    older: HashMap<u64, DirectEvent>,
    /// Whether a predecessor's connections were added to these.
    found_older: bool,
    resting: HashMap<EndpointId, Instant>,
    links: PodLinks,
    /// Why plans are to be made again.
    stale: ReplanTrigger,
    /// Whether a route has changed or a pod is gone: connections under way may have been allowed by a route
    /// that is no more.
    taken_back: bool,
    /// The configuration that the open connections were last checked with.
    judged: Arc<Snapshot>,
}

impl DirectTask {
    /// Creates a task without pods and plans.
    pub fn new(work: DirectTaskSetup, receiver: DirectReceiver) -> Self {
        Self {
            older: HashMap::new(),
            found_older: false,
            kernel: work.kernel,
            keeper: work.keeper,
            judged: work.shared.snapshot.load_full(),
            links: PodLinks::new(work.node.wanted_direct_path_mode()),
            node: work.node,
            shared: work.shared,
            receiver,
            table: PlannedRoutes::default(),
            flows: FlowTracker::new(work.metrics),
            resting: HashMap::new(),
            stale: ReplanTrigger::Time,
            taken_back: false,
        }
    }

    /// Runs until a source of news ends.
    pub async fn run(mut self) {
        let mut updates = self.shared.updates.clone();
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut tick = 0_u32;
        loop {
            tokio::select! {
                // Taking permissions away comes before giving them.
                biased;
                event = self.receiver.pods.recv() => match event {
                    Some(PodEvent::Relieved) => return self.flows.end_all_without_outcome(),
                    Some(event) => self.hear(event),
                    None => return,
                },
                changed = changed(&mut updates) => match changed {
                    Some(()) => self.stale = self.stale.max(ReplanTrigger::Configuration),
                    None => return,
                },
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    self.tick(tick).await;
                },
                Ok(()) = self.kernel.wait_for_events() => {
                    let snapshot = self.shared.snapshot.load_full();
                    self.read_events(&snapshot);
                }
                Some(ask) = self.receiver.asks.recv() => self.answer(&ask),
                Some(refusal) = self.receiver.refusals.recv() => {
                    let pod = self.table.pod_by_cookie(refusal.client);
                    self.flows.record_refused_without_endpoint(&refusal, pod, &self.shared.snapshot.load());
                }
            }
        }
    }

    fn hear(&mut self, event: PodEvent) {
        match event {
            PodEvent::Enrolled(pod) => {
                self.table.add_pod(&Arc::new(Pod::from(&*pod)));
                self.look_at_links();
                self.stale = ReplanTrigger::Node;
            }
            PodEvent::Relieved => {}
            PodEvent::Unenrolled(uid) => {
                let changes = self.table.remove_pod(&uid);
                self.tell(changes);
                self.taken_back = true;
            }
        }
    }

    fn answer(&mut self, ask: &Ask) {
        let snapshot = self.shared.snapshot.load_full();
        let context = plan_context(&snapshot, &self.shared, &self.resting, &self.links);
        let change = self.table.plan_route_if_new(context, ask.client, ask.destination);
        self.tell(change);
    }

    async fn tick(&mut self, tick: u32) {
        let snapshot = self.shared.snapshot.load_full();
        let timed = tick.is_multiple_of(BEAT);
        if timed {
            self.beat();
        }
        self.find_older();
        let trigger = std::mem::replace(&mut self.stale, ReplanTrigger::Time);
        if trigger > ReplanTrigger::Time || timed {
            let context = plan_context(&snapshot, &self.shared, &self.resting, &self.links);
            let changes = self.table.replan(context, trigger);
            self.tell(changes);
        }
        self.withdraw(&snapshot).await;
        self.read_events(&snapshot);
        if trigger > ReplanTrigger::Time {
            self.record_older(&snapshot);
            let denied = self.flows.recheck_policy(&snapshot, &self.judged);
            self.judged = Arc::clone(&snapshot);
            if !denied.is_empty() {
                let (revoked, generation) = (denied.len(), snapshot.generation());
                tracing::info!(revoked, generation, "policy changed: closing direct connections");
            }
            denied.iter().for_each(|ends| self.close(ends));
        }
        if tick.is_multiple_of(SWEEP) {
            self.sweep();
        }
    }

    /// Makes sure that no connection arrives that an outdated route has allowed. Each one that did arrive has
    /// an event, so reading events afterwards and asking the policy about them misses none.
    async fn withdraw(&mut self, snapshot: &Snapshot) {
        // Until this proxy serves another one decides what may arrive.
        if !self.found_older || !std::mem::take(&mut self.taken_back) {
            return;
        }
        tokio::time::sleep(Duration::from_nanos(CONNECT_YES_TTL_NS)).await;
        let table = &self.table;
        match self.kernel.refuse_pending_unless(|flow| is_pending_connection_allowed(table, flow, snapshot)) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "direct connections that were under way are refused"),
            Err(error) => {
                self.taken_back = true;
                tracing::error!(%error, "direct connections that are under way can't be taken back");
            }
        }
    }

    fn beat(&mut self) {
        if let Err(error) = self.kernel.write_heartbeat() {
            tracing::error!(%error, "direct connections pause");
        }
        self.look_at_links();
        if let Err(error) = self.kernel.set_clients_over_limit(self.flows.clients_to_send_through_proxy()) {
            tracing::error!(%error, "who has too many direct connections is not told");
        }
        let (before, now) = (self.resting.len(), Instant::now());
        self.resting.retain(|_, until| *until > now);
        if self.resting.len() < before {
            self.stale = ReplanTrigger::Node;
        }
    }

    /// Reads again how pods are connected: their traffic may be shaped by now, or no longer.
    fn look_at_links(&mut self) {
        if self.links.refresh(self.table.pod_cookies(), |pod| self.node.links.link_of(pod)) {
            self.stale = ReplanTrigger::Node;
        }
    }

    /// Reads the events since the last time, but only as many as there are now: the kernel may write faster.
    fn read_events(&mut self, snapshot: &Snapshot) {
        /// Most events in the ring.
        const MOST: usize = DIRECT_EVENTS_RING_BYTES as usize / size_of::<mesh_common::direct::DirectEvent>();
        for _ in 0..MOST {
            let Some(event) = self.kernel.try_next_event() else { break };
            self.record(&event, snapshot);
        }
    }

    /// Finds the connections that began under predecessors. Only once this proxy serves: before, another's
    /// programs may decide, and send their events there.
    fn find_older(&mut self) {
        if self.found_older || !*self.shared.serving.borrow() {
            return;
        }
        self.found_older = true;
        let found = self
            .kernel
            .list_open_connections()
            .into_iter()
            .filter(|event| !self.flows.is_recorded(event.socket));
        self.older.extend(found.map(|event| (event.socket, event)));
        self.stale = ReplanTrigger::Node;
        // Nobody withdrew anything while no proxy ran.
        self.taken_back = true;
    }

    /// Records the older connections whose ends are known by now, so that policy holds for them too.
    fn record_older(&mut self, snapshot: &Snapshot) {
        let (known, unknown): (HashMap<_, _>, _) = std::mem::take(&mut self.older)
            .into_iter()
            .partition(|(_, event)| self.knows_both_ends(event, snapshot));
        self.older = unknown;
        for event in known.values().filter(|event| event.kind.opens_connection()) {
            if !self.flows.is_recorded(event.socket) {
                self.record(event, snapshot);
                self.flows.record_established(event);
            }
        }
    }

    /// Whether enough is known to ask the policy about a connection, or nothing is to be asked. Otherwise it
    /// would never be asked.
    fn knows_both_ends(&self, event: &DirectEvent, snapshot: &Snapshot) -> bool {
        event.probe
            || self.table.pod_by_cookie(event.client_netns).is_some()
                && snapshot.workload_by_address(event.server.ip()).is_some()
    }

    fn record(&mut self, event: &DirectEvent, snapshot: &Snapshot) {
        let begins = event.kind.opens_connection();
        if begins && event.server_netns != NO_SERVER && !self.knows_both_ends(event, snapshot) {
            self.older.insert(event.socket, *event);
            return;
        }
        if event.kind != DirectEventKind::Established {
            self.older.remove(&event.socket);
        }
        let plan = self.table.get_plan_and_touch(event.client_netns, event.destination, Instant::now());
        let pods = FlowPods {
            client: self.table.pod_by_cookie(event.client_netns),
            server: self.table.pod_by_cookie(event.server_netns),
            plan: plan.as_deref(),
        };
        let to_close = match event.kind {
            DirectEventKind::Opening | DirectEventKind::Unlisted => {
                self.flows.record_and_check_opening(event, &pods, snapshot)
            }
            DirectEventKind::Established => {
                self.flows.record_established(event);
                self.report(plan.as_deref(), event, None);
                None
            }
            DirectEventKind::Closed => {
                self.flows.record_closed(event, &pods, snapshot);
                None
            }
            DirectEventKind::Failed => {
                self.flows.record_failed(event);
                self.report(plan.as_deref(), event, Some(&"it did not take a direct connection"));
                None
            }
            DirectEventKind::Astray => {
                self.flows.revoke_misdelivered_flow(event).or_else(|| self.older_like(event))
            }
        };
        if let Some(ends) = to_close {
            self.close(&ends);
        }
    }

    /// Returns a connection between the same two ends that is not recorded yet.
    fn older_like(&self, event: &DirectEvent) -> Option<ConnectionEnds> {
        let is_same = |older: &&DirectEvent| older.client == event.client && older.server == event.server;
        self.older.values().find(is_same).map(ConnectionEnds::from)
    }

    /// Reports the result of a connect to an endpoint of a plan.
    fn report(&mut self, plan: Option<&RoutePlan>, event: &DirectEvent, failure: Option<&dyn Display>) {
        let Some(plan) = plan else { return };
        let Some(key) =
            plan.direct_endpoint_at(event.server_netns, event.server).map(|direct| direct.endpoint.key())
        else {
            return;
        };
        let now = Instant::now();
        if let Some((_, policy)) = &plan.service {
            self.shared.outliers.report_result(&key, &plan.endpoints, policy, failure, now);
        }
        if failure.is_none() {
            plan.remember_affinity_endpoint(&self.shared.affinity, &key, event.destination, now);
            return;
        }
        self.resting.insert(key.clone(), now + REST);
        let snapshot = self.shared.snapshot.load_full();
        let context = plan_context(&snapshot, &self.shared, &self.resting, &self.links);
        let changes = self.table.replan_for_refused_endpoint(context, &key);
        self.tell(changes);
    }

    /// Has a connection closed: at the client's end, or at the server's if the client's pod is no longer
    /// enrolled or has no such socket. If neither helps, the next sweep tries again.
    fn close(&self, ends: &ConnectionEnds) {
        let (keeper, ends) = (self.keeper.clone(), *ends);
        tokio::spawn(async move {
            if keeper.destroy_connection(ends.netns, ends.client_socket()).await == Ok(true) {
                return;
            }
            if let Err(error) = keeper.destroy_connection(ends.server_netns, ends.server_socket()).await {
                let ConnectionEnds { client, server, .. } = ends;
                tracing::error!(%client, %server, %error, "a connection that is denied could not be closed");
            }
        });
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let changes = self.table.remove_unused(now);
        self.tell(changes);
        if let Err(error) = self.kernel.sweep_handshakes() {
            tracing::error!(%error, "what failed handshakes of direct connections left stays");
        }
        self.kernel.sweep_veth_flows();
        let kernel = &self.kernel;
        self.older.retain(|socket, event| {
            event.kind == DirectEventKind::Unlisted || kernel.is_open_or_unknown(*socket)
        });
        let denied = self.flows.end_lost_and_list_denied(|socket| kernel.is_open_or_unknown(socket));
        denied.iter().for_each(|ends| self.close(ends));
        self.flows.forget_unused_metrics(COUNTERS_KEPT);
    }

    fn tell(&mut self, changes: impl IntoIterator<Item = RouteChange>) {
        for change in changes {
            self.taken_back = true;
            let told = match &change {
                RouteChange::Put(key, route) => self.kernel.put_route(key, route).or_else(|error| {
                    // An older route, which a policy may forbid by now, must not stay.
                    self.table.mark_not_in_kernel(key);
                    self.kernel.remove_route(key)?;
                    Err(error)
                }),
                RouteChange::Remove(key) => self.kernel.remove_route(key),
            };
            if let Err(error) = told {
                tracing::error!(%error, "the kernel does not take a change of a route");
            }
        }
    }
}

/// Whether a connection that is under way may arrive: both pods are still here, and the policy allows it.
pub(super) fn is_pending_connection_allowed(
    table: &PlannedRoutes,
    flow: &PendingDirectConnection,
    snapshot: &Snapshot,
) -> bool {
    let pods = FlowPods {
        client: table.pod_by_cookie(flow.client_netns),
        server: table.pod_by_cookie(flow.server_netns),
        plan: None,
    };
    let request = pods.access_request(flow.client.ip(), flow.server, snapshot);
    pods.server.zip(request).is_some_and(|(server, request)| {
        server.is_workload(&request.workload) && matches!(request.decide(snapshot).verdict, Verdict::Allow(_))
    })
}

fn plan_context<'a>(
    snapshot: &'a Snapshot,
    shared: &'a SharedState,
    resting: &'a HashMap<EndpointId, Instant>,
    links: &'a PodLinks,
) -> PlanContext<'a> {
    let SharedState { outliers, affinity, .. } = shared;
    PlanContext { snapshot, outliers, affinity, resting, now: Instant::now(), links }
}

async fn changed(updates: &mut watch::Receiver<Arc<Snapshot>>) -> Option<()> {
    updates.changed().await.ok()?;
    updates.mark_unchanged();
    Some(())
}
