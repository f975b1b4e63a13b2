//! The task: changes plans on news of pods and configuration, tells the kernel, and records its events.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::policy::Verdict;
use mesh_api::plan::{EndpointKey, Snapshot};
use mesh_common::direct::{DIRECT_RING, Happened, NO_SERVER, YES_LASTS};
use mesh_proxy::telemetry::WorkerMetrics;
use mesh_proxy::worker::Shared;
use tokio::sync::watch;

use super::flows::{Ends, FlowPods, Flows};
use super::plan::{Plan, Pod, View};
use super::pod_links::PodLinks;
use super::table::{Change, Table, Trigger};
use super::{Ask, DirectReceiver, PodEvent};
use crate::keeper_client::Keeper;
use crate::node::Node;
use crate::sys::ebpf::{DirectEvent, DirectKernel, UnderWay};

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
pub struct Work {
    /// The kernel's maps.
    pub kernel: DirectKernel,
    /// Closes connections of pods.
    pub keeper: Keeper,
    /// The node, which knows how its pods are connected.
    pub node: Arc<Node>,
    /// State shared with the workers.
    pub shared: Arc<Shared>,
    /// Counters of direct connections.
    pub metrics: Arc<WorkerMetrics>,
}

/// Keeps direct connections in line with configuration and pods.
pub struct Task {
    kernel: DirectKernel,
    keeper: Keeper,
    node: Arc<Node>,
    shared: Arc<Shared>,
    receiver: DirectReceiver,
    table: Table,
    flows: Flows,
    /// Connections whose ends are not known yet, by the cookie of the client's socket: they began before this
    /// proxy knew its pods.
    older: HashMap<u64, DirectEvent>,
    /// Whether a predecessor's connections were added to these.
    found_older: bool,
    resting: HashMap<EndpointKey, Instant>,
    links: PodLinks,
    /// Why plans are to be made again.
    stale: Trigger,
    /// Whether a route has changed or a pod is gone: connections under way may have been allowed by a route
    /// that is no more.
    taken_back: bool,
    /// The configuration that the open connections were last checked with.
    judged: Arc<Snapshot>,
}

impl Task {
    /// Creates a task without pods and plans.
    pub fn new(work: Work, receiver: DirectReceiver) -> Self {
        Self {
            older: HashMap::new(),
            found_older: false,
            kernel: work.kernel,
            keeper: work.keeper,
            judged: work.shared.snapshot.load_full(),
            links: PodLinks::new(work.node.same_node_wanted()),
            node: work.node,
            shared: work.shared,
            receiver,
            table: Table::default(),
            flows: Flows::new(work.metrics),
            resting: HashMap::new(),
            stale: Trigger::Time,
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
                    Some(PodEvent::Relieved) => return self.flows.hand_off(),
                    Some(event) => self.hear(event),
                    None => return,
                },
                changed = changed(&mut updates) => match changed {
                    Some(()) => self.stale = self.stale.max(Trigger::Configuration),
                    None => return,
                },
                _ = ticks.tick() => {
                    tick = tick.wrapping_add(1);
                    self.tick(tick).await;
                },
                Ok(()) = self.kernel.fills_up() => {
                    let snapshot = self.shared.snapshot.load_full();
                    self.read_events(&snapshot);
                }
                Some(ask) = self.receiver.asks.recv() => self.answer(&ask),
                Some(refusal) = self.receiver.refusals.recv() => {
                    let pod = self.table.pod(refusal.client);
                    self.flows.refused(&refusal, pod, &self.shared.snapshot.load());
                }
            }
        }
    }

    fn hear(&mut self, event: PodEvent) {
        match event {
            PodEvent::Enrolled(pod) => {
                self.table.add(&Arc::new(Pod::from(&*pod)));
                self.look_at_links();
                self.stale = Trigger::Node;
            }
            PodEvent::Relieved => {}
            PodEvent::Dismissed(uid) => {
                let changes = self.table.remove(&uid);
                self.tell(changes);
                self.taken_back = true;
            }
        }
    }

    fn answer(&mut self, ask: &Ask) {
        let snapshot = self.shared.snapshot.load_full();
        let view = view(&snapshot, &self.shared, &self.resting, &self.links);
        let change = self.table.ask(view, ask.client, ask.destination);
        self.tell(change);
    }

    async fn tick(&mut self, tick: u32) {
        let snapshot = self.shared.snapshot.load_full();
        let timed = tick.is_multiple_of(BEAT);
        if timed {
            self.beat();
        }
        self.find_older();
        let trigger = std::mem::replace(&mut self.stale, Trigger::Time);
        if trigger > Trigger::Time || timed {
            let view = view(&snapshot, &self.shared, &self.resting, &self.links);
            let changes = self.table.plan_again(view, trigger);
            self.tell(changes);
        }
        self.withdraw(&snapshot).await;
        self.read_events(&snapshot);
        if trigger > Trigger::Time {
            self.record_older(&snapshot);
            let denied = self.flows.recheck(&snapshot, &self.judged);
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
        tokio::time::sleep(Duration::from_nanos(YES_LASTS)).await;
        let table = &self.table;
        match self.kernel.withdraw(|flow| may_arrive(table, flow, snapshot)) {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "direct connections that were under way are refused"),
            Err(error) => {
                self.taken_back = true;
                tracing::error!(%error, "direct connections that are under way can't be taken back");
            }
        }
    }

    fn beat(&mut self) {
        if let Err(error) = self.kernel.beat() {
            tracing::error!(%error, "direct connections pause");
        }
        self.look_at_links();
        if let Err(error) = self.kernel.set_over_limit(self.flows.over_limit()) {
            tracing::error!(%error, "who has too many direct connections is not told");
        }
        let (before, now) = (self.resting.len(), Instant::now());
        self.resting.retain(|_, until| *until > now);
        if self.resting.len() < before {
            self.stale = Trigger::Node;
        }
    }

    /// Reads again how pods are connected: their traffic may be shaped by now, or no longer.
    fn look_at_links(&mut self) {
        if self.links.look(self.table.cookies(), |pod| self.node.links.of(pod)) {
            self.stale = Trigger::Node;
        }
    }

    /// Reads the events since the last time, but only as many as there are now: the kernel may write faster.
    fn read_events(&mut self, snapshot: &Snapshot) {
        /// Most events in the ring.
        const MOST: usize = DIRECT_RING as usize / size_of::<mesh_common::direct::DirectEvent>();
        for _ in 0..MOST {
            let Some(event) = self.kernel.next_event() else { break };
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
        let found = self.kernel.open_connections().into_iter().filter(|event| !self.flows.know(event.socket));
        self.older.extend(found.map(|event| (event.socket, event)));
        self.stale = Trigger::Node;
        // Nobody withdrew anything while no proxy ran.
        self.taken_back = true;
    }

    /// Records the older connections whose ends are known by now, so that policy holds for them too.
    fn record_older(&mut self, snapshot: &Snapshot) {
        let (known, unknown): (HashMap<_, _>, _) = std::mem::take(&mut self.older)
            .into_iter()
            .partition(|(_, event)| self.knows_both_ends(event, snapshot));
        self.older = unknown;
        for event in known.values().filter(|event| event.happened.begins()) {
            if !self.flows.know(event.socket) {
                self.record(event, snapshot);
                self.flows.established(event);
            }
        }
    }

    /// Whether enough is known to ask the policy about a connection, or nothing is to be asked. Otherwise it
    /// would never be asked.
    fn knows_both_ends(&self, event: &DirectEvent, snapshot: &Snapshot) -> bool {
        event.probe
            || self.table.pod(event.client_netns).is_some()
                && snapshot.workload_by_address(event.server.ip()).is_some()
    }

    fn record(&mut self, event: &DirectEvent, snapshot: &Snapshot) {
        let begins = event.happened.begins();
        if begins && event.server_netns != NO_SERVER && !self.knows_both_ends(event, snapshot) {
            self.older.insert(event.socket, *event);
            return;
        }
        if event.happened != Happened::Established {
            self.older.remove(&event.socket);
        }
        let plan = self.table.follow(event.client_netns, event.destination, Instant::now());
        let pods = FlowPods {
            client: self.table.pod(event.client_netns),
            server: self.table.pod(event.server_netns),
            plan: plan.as_deref(),
        };
        let to_close = match event.happened {
            Happened::Opening | Happened::Unlisted => self.flows.opening(event, &pods, snapshot),
            Happened::Established => {
                self.flows.established(event);
                self.report(plan.as_deref(), event, None);
                None
            }
            Happened::Closed => {
                self.flows.closed(event, &pods, snapshot);
                None
            }
            Happened::Failed => {
                self.flows.failed(event);
                self.report(plan.as_deref(), event, Some(&"it did not take a direct connection"));
                None
            }
            Happened::Astray => self.flows.astray(event).or_else(|| self.older_like(event)),
        };
        if let Some(ends) = to_close {
            self.close(&ends);
        }
    }

    /// Returns a connection between the same two ends that is not recorded yet.
    fn older_like(&self, event: &DirectEvent) -> Option<Ends> {
        let is_same = |older: &&DirectEvent| older.client == event.client && older.server == event.server;
        self.older.values().find(is_same).map(Ends::from)
    }

    /// Reports the result of a connect to an endpoint of a plan.
    fn report(&mut self, plan: Option<&Plan>, event: &DirectEvent, failure: Option<&dyn Display>) {
        let Some(plan) = plan else { return };
        let Some(key) = plan.way_to(event.server_netns, event.server).map(|way| way.target.key()) else {
            return;
        };
        let now = Instant::now();
        if let Some((_, policy)) = &plan.service {
            self.shared.health.report(&key, &plan.endpoints, policy, failure, now);
        }
        if failure.is_none() {
            plan.keep(&self.shared.affinity, &key, event.destination, now);
            return;
        }
        self.resting.insert(key.clone(), now + REST);
        let snapshot = self.shared.snapshot.load_full();
        let view = view(&snapshot, &self.shared, &self.resting, &self.links);
        let changes = self.table.plan_around(view, &key);
        self.tell(changes);
    }

    /// Has a connection closed: at the client's end, or at the server's if the client's pod is no longer
    /// enrolled or has no such socket. If neither helps, the next sweep tries again.
    fn close(&self, ends: &Ends) {
        let (keeper, ends) = (self.keeper.clone(), *ends);
        tokio::spawn(async move {
            if keeper.destroy(ends.netns, ends.of_client()).await == Ok(true) {
                return;
            }
            if let Err(error) = keeper.destroy(ends.server_netns, ends.of_server()).await {
                let Ends { client, server, .. } = ends;
                tracing::error!(%client, %server, %error, "a connection that is denied could not be closed");
            }
        });
    }

    fn sweep(&mut self) {
        let now = Instant::now();
        let changes = self.table.sweep(now);
        self.tell(changes);
        if let Err(error) = self.kernel.sweep() {
            tracing::error!(%error, "what failed handshakes of direct connections left stays");
        }
        self.kernel.sweep_veths();
        let kernel = &self.kernel;
        self.older.retain(|socket, event| event.happened == Happened::Unlisted || kernel.has_open(*socket));
        let denied = self.flows.sweep(|socket| kernel.has_open(socket));
        denied.iter().for_each(|ends| self.close(ends));
        self.flows.forget_unused(COUNTERS_KEPT);
    }

    fn tell(&mut self, changes: impl IntoIterator<Item = Change>) {
        for change in changes {
            self.taken_back = true;
            let told = match &change {
                Change::Put(key, route) => self.kernel.put(key, route).or_else(|error| {
                    // An older route, which a policy may forbid by now, must not stay.
                    self.table.not_taken(key);
                    self.kernel.remove(key)?;
                    Err(error)
                }),
                Change::Remove(key) => self.kernel.remove(key),
            };
            if let Err(error) = told {
                tracing::error!(%error, "the kernel does not take a change of a route");
            }
        }
    }
}

/// Whether a connection that is under way may arrive: both pods are still here, and the policy allows it.
pub(super) fn may_arrive(table: &Table, flow: &UnderWay, snapshot: &Snapshot) -> bool {
    let pods =
        FlowPods { client: table.pod(flow.client_netns), server: table.pod(flow.server_netns), plan: None };
    let request = pods.request(flow.client.ip(), flow.server, snapshot);
    pods.server.zip(request).is_some_and(|(server, request)| {
        server.is(&request.workload) && matches!(request.decide(snapshot).verdict, Verdict::Allow(_))
    })
}

fn view<'a>(
    snapshot: &'a Snapshot,
    shared: &'a Shared,
    resting: &'a HashMap<EndpointKey, Instant>,
    links: &'a PodLinks,
) -> View<'a> {
    let Shared { health, affinity, .. } = shared;
    View { snapshot, health, affinity, resting, now: Instant::now(), links }
}

async fn changed(updates: &mut watch::Receiver<Arc<Snapshot>>) -> Option<()> {
    updates.changed().await.ok()?;
    updates.mark_unchanged();
    Some(())
}
