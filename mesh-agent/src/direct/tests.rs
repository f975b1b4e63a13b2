//! The verdict cache against the evaluator, under random histories of pods, policies, services and outliers.
//!
//! The kernel is modelled as what the programs look at: the routes that the table told it, and the owners of
//! addresses. Whatever it would send to a server then, for any ticket, has to be what the evaluator allows
//! now; and so has what it lets leave or arrive by a yes that it gave earlier.

mod delayed_syns;
mod flow_tracker;
mod random_mesh;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::outbound;
use mesh_api::plan::policy::{ConnectionAttributes, authorize};
use mesh_api::plan::{Endpoint, EndpointId, Endpoints, PortPolicy, Service, Snapshot, Workload};
use mesh_common::address::Address;
use mesh_common::direct::{DirectRoute, DirectRouteKey, RouteEndpoint, endpoint_for_ticket};
use mesh_common::veth::DirectPathMode;
use mesh_proxy::balance::{OutlierDetector, SessionAffinity};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use random_mesh::{DESTINATIONS, RandomMesh, pick};

use super::planned_routes::{PlannedRoutes, ReplanTrigger, RouteChange};
use super::route_plan::{PlanContext, Pod};
use super::same_node_links::PodLinks;

const HISTORIES: u64 = 1000;
const STEPS: usize = 60;

/// A node: the table under test, the model of the kernel, and the truth.
struct Node {
    mesh: RandomMesh,
    snapshot: Snapshot,
    table: PlannedRoutes,
    outliers: OutlierDetector,
    affinity: SessionAffinity,
    resting: HashMap<EndpointId, Instant>,
    links: PodLinks,
    /// An endpoint has rested enough since plans were last made.
    rested: bool,
    now: Instant,
    /// The pods that are enrolled, the latest last.
    pods: Vec<Arc<Pod>>,
    cookies: u64,
    owners: HashMap<Address, u64>,
    routes: HashMap<DirectRouteKey, DirectRoute>,
    /// A route has changed, or a pod is gone, since connections under way were last looked at.
    taken_back: bool,
    delayed: delayed_syns::DelayedSyns,
    /// Connections that went directly: the test would prove nothing without them.
    direct: usize,
}

#[test]
fn the_kernel_never_says_yes_where_the_evaluator_says_no() {
    let (mut direct, mut used, mut refused) = (0, 0, 0);
    for seed in 0..HISTORIES {
        let mut random = StdRng::seed_from_u64(seed);
        let mut node = Node::new(&mut random);
        for step in 0..STEPS {
            let what = node.step(&mut random);
            let context = format!("seed {seed}, step {step}: {what}");
            node.check(&context);
            node.send_delayed(&context);
        }
        direct += node.direct;
        used += node.delayed.used;
        refused += node.delayed.refused;
    }
    assert!(direct > 5_000, "only {direct} direct connections");
    assert!(used > 2_500 && refused > 500, "only {used} yeses used later, and {refused} that were no more");
}

#[test]
fn a_route_that_the_kernel_did_not_take_is_told_again() {
    let mut random = StdRng::seed_from_u64(0);
    let mut node = Node::new(&mut random);
    while node.routes.is_empty() {
        node.step(&mut random);
    }
    let keys: Vec<_> = node.routes.keys().copied().collect();
    assert!(
        node.with_context(|table, context| table.replan(context, ReplanTrigger::Node)).is_empty(),
        "nothing changed"
    );
    for key in keys {
        node.table.mark_not_in_kernel(&key);
        let changes = node.with_context(|table, context| table.replan(context, ReplanTrigger::Node));
        assert!(matches!(&changes[..], [RouteChange::Put(told, _)] if *told == key), "{changes:?}");
    }
}

impl Node {
    fn new(random: &mut StdRng) -> Self {
        let mut mesh = RandomMesh::new(random);
        let snapshot = mesh.snapshot();
        let mut node = Self {
            mesh,
            snapshot,
            table: PlannedRoutes::default(),
            outliers: OutlierDetector::default(),
            affinity: SessionAffinity::default(),
            resting: HashMap::new(),
            links: PodLinks::new(Some(DirectPathMode::Direct)),
            rested: false,
            now: Instant::now(),
            pods: Vec::new(),
            cookies: 100,
            owners: HashMap::new(),
            routes: HashMap::new(),
            taken_back: false,
            delayed: delayed_syns::DelayedSyns::default(),
            direct: 0,
        };
        for _ in 0..3 {
            node.enrol(random);
        }
        node
    }

    /// Something happens; afterwards the table knows of it, as after a tick of the task.
    fn step(&mut self, random: &mut StdRng) -> &'static str {
        let what = match random.random_range(0..100) {
            0..10 => self.enrol(random),
            10..17 => self.dismiss(random),
            17..20 => self.make_again(random),
            20..21 => self.restart(random),
            21..45 => self.ask(random),
            45..60 => self.mesh.change_policy(random),
            60..75 => self.mesh.change_workload(random),
            75..82 => self.mesh.change_service(random),
            82..92 => self.fail(random),
            92..97 => self.pass_time(random),
            _ => self.sweep(),
        };
        self.snapshot = self.mesh.snapshot();
        // As the task does it.
        let enrols = ["a pod is enrolled", "a sandbox is made again", "a proxy is followed by another"];
        let node_changed = enrols.contains(&what) || self.rested;
        self.rested = false;
        let trigger = if node_changed { ReplanTrigger::Node } else { ReplanTrigger::Configuration };
        let changes = self.with_context(|table, context| table.replan(context, trigger));
        self.tell(changes);
        what
    }

    /// A pod is enrolled, maybe with the addresses of one that is not gone yet. The kernel hears of it first.
    fn enrol(&mut self, random: &mut StdRng) -> &'static str {
        self.cookies += 1;
        let pod = self.mesh.random_pod(random, self.cookies);
        self.take_in(pod);
        "a pod is enrolled"
    }

    fn take_in(&mut self, pod: Pod) {
        let pod = Arc::new(pod);
        for address in &pod.addresses {
            self.owners.insert(Address::from(*address), pod.cookie);
        }
        self.table.add_pod(&pod);
        self.pods.push(pod);
    }

    fn dismiss(&mut self, random: &mut StdRng) -> &'static str {
        match self.let_go(random) {
            Some(_) => "a pod is dismissed",
            None => "nothing",
        }
    }

    /// The runtime makes a pod's network namespace anew: the same pod, with its addresses.
    fn make_again(&mut self, random: &mut StdRng) -> &'static str {
        let Some(pod) = self.let_go(random) else { return "nothing" };
        self.cookies += 1;
        self.take_in(Pod { cookie: self.cookies, ..Pod::clone(&pod) });
        "a sandbox is made again"
    }

    fn let_go(&mut self, random: &mut StdRng) -> Option<Arc<Pod>> {
        if self.pods.is_empty() {
            return None;
        }
        let pod = self.pods.remove(random.random_range(0..self.pods.len()));
        self.owners.retain(|_, owner| *owner != pod.cookie);
        self.taken_back = true;
        let changes = self.table.remove_pod(&pod.uid);
        self.tell(changes);
        for (key, route) in &self.routes {
            let leads_there = route.choices.iter().any(|choice| choice.server == pod.cookie);
            assert!(key.client != pod.cookie && !leads_there, "a route of a pod that is gone: {route:?}");
        }
        Some(pod)
    }

    /// A proxy ends, much changes, and another one finds what the kernel holds: all but the routes, and of
    /// its pods those that are still there.
    fn restart(&mut self, random: &mut StdRng) -> &'static str {
        self.table = PlannedRoutes::default();
        self.routes.clear();
        self.outliers = OutlierDetector::default();
        self.resting.clear();
        for _ in 0..random.random_range(0..4) {
            self.mesh.change_policy(random);
            self.mesh.change_workload(random);
        }
        if random.random_bool(0.5) {
            self.make_again(random);
        }
        // As `DirectTask::find_older` does.
        self.taken_back = true;
        self.table = PlannedRoutes::default();
        self.pods.iter().for_each(|pod| self.table.add_pod(pod));
        "a proxy is followed by another"
    }

    fn ask(&mut self, random: &mut StdRng) -> &'static str {
        for _ in 0..4 {
            // Also for pods that are not there.
            let client = 100 + random.random_range(0..=self.cookies - 99);
            let destination = destination(random);
            let change =
                self.with_context(|table, context| table.plan_route_if_new(context, client, destination));
            self.tell(change);
        }
        "a pod asks"
    }

    /// Endpoints fail until they are ejected, and rest a while.
    fn fail(&mut self, random: &mut StdRng) -> &'static str {
        let mut services: Vec<_> = self.snapshot.services().collect();
        services.sort_unstable_by(|a, b| a.key.cmp(&b.key));
        let Some(service) = services.get(random.random_range(0..2)) else { return "nothing" };
        let endpoints = endpoints(&self.snapshot, service);
        if endpoints.is_empty() {
            return "nothing";
        }
        let failing = endpoints[random.random_range(0..endpoints.len())].key();
        let policy = PortPolicy { outlier: Some(random_mesh::OUTLIER_LIMITS), ..PortPolicy::default() };
        for _ in 0..3 {
            self.outliers.report_result(&failing, &endpoints, &policy, Some(&"refused"), self.now);
        }
        self.resting.insert(failing.clone(), self.now + Duration::from_secs(5));
        let changes =
            self.with_context(|table, context| table.replan_for_refused_endpoint(context, &failing));
        self.tell(changes);
        "an endpoint fails"
    }

    /// What changes with time alone is planned again.
    fn pass_time(&mut self, random: &mut StdRng) -> &'static str {
        self.now += Duration::from_secs(random.random_range(1..40));
        let now = self.now;
        let before = self.resting.len();
        self.resting.retain(|_, until| *until > now);
        self.rested = self.resting.len() < before;
        let changes = self.with_context(|table, context| table.replan(context, ReplanTrigger::Time));
        self.tell(changes);
        "time passes"
    }

    fn sweep(&mut self) -> &'static str {
        self.now += Duration::from_secs(400);
        let changes = self.table.remove_unused(self.now);
        self.tell(changes);
        "what is not used is forgotten"
    }

    fn with_context<T>(&mut self, work: impl FnOnce(&mut PlannedRoutes, PlanContext<'_>) -> T) -> T {
        let context = PlanContext {
            snapshot: &self.snapshot,
            outliers: &self.outliers,
            affinity: &self.affinity,
            resting: &self.resting,
            now: self.now,
            links: &self.links,
        };
        work(&mut self.table, context)
    }

    fn tell(&mut self, changes: impl IntoIterator<Item = RouteChange>) {
        for change in changes {
            self.taken_back = true;
            match change {
                RouteChange::Put(key, route) => self.routes.insert(key, *route),
                RouteChange::Remove(key) => self.routes.remove(&key),
            };
        }
    }

    /// Every connection that the kernel would send to a server is looked at.
    fn check(&mut self, context: &str) {
        for (key, route) in &self.routes {
            assert!(route.tickets > 0, "{context}: a route without tickets");
            for ticket in (0..route.tickets.min(40)).chain([route.tickets - 1]) {
                let Some(choice) = endpoint_for_ticket(route, ticket) else { continue };
                let owned = self.owners.get(&choice.endpoint.address) == Some(&choice.server);
                let same_family = choice.endpoint.address.is_v4() == key.destination.address.is_v4();
                if owned && same_family {
                    self.direct += 1;
                    let problem = self.objection(key, choice).or_else(|| self.unfaithful(key, route));
                    assert_eq!(problem, None, "{context}: {key:?} goes to {choice:?}");
                }
            }
        }
    }

    /// What is wrong with a connection that goes directly.
    fn objection(&self, key: &DirectRouteKey, choice: &RouteEndpoint) -> Option<&'static str> {
        let pod = |cookie: u64| self.pods.iter().find(|pod| pod.cookie == cookie);
        let (Some(client), Some(server)) = (pod(key.client), pod(choice.server)) else {
            return Some("one of the pods is not there");
        };
        let (ip, port) = (IpAddr::from(choice.endpoint.address), choice.endpoint.port);
        if !server.addresses.contains(&ip) {
            return Some("the address is not the server's");
        }
        let Some(workload) = self.snapshot.workload_by_address(ip).filter(|known| is(server, known)) else {
            return Some("the mesh does not know the server at this address");
        };
        let Some(source_ip) = client.addresses.iter().copied().find(|own| own.is_ipv4() == ip.is_ipv4())
        else {
            return Some("the client has no address to connect from");
        };
        let known = client
            .addresses
            .iter()
            .any(|own| self.snapshot.workload_by_address(*own).is_some_and(|workload| is(client, &workload)));
        if !known {
            return Some("the mesh does not know the client");
        }
        let identity = Some(&client.identity);
        let peer = ConnectionAttributes { identity, source_ip, destination_ip: ip, destination_port: port };
        let decision = authorize(&self.snapshot, &workload, &peer);
        let noted = !decision.audited.is_empty() || !decision.dry_run.is_empty();
        match (decision.is_allowed(), noted) {
            (false, _) => Some("the evaluator says no"),
            (true, true) => Some("there is something to be noted, which only the proxy does"),
            (true, false) => self.unfit(key, &workload, ip, port),
        }
    }

    /// A client that has an endpoint of its own goes to that one alone.
    fn unfaithful(&self, key: &DirectRouteKey, route: &DirectRoute) -> Option<&'static str> {
        let client = self.pods.iter().find(|pod| pod.cookie == key.client)?;
        let asked = IpAddr::from(key.destination.address);
        let service = self.snapshot.service_by_vip(asked, &client.namespace)?;
        let is_own = route.count == 1 && route.choices[0].below == route.tickets;
        let of = |ip: &IpAddr| self.snapshot.workload_by_address(*ip).filter(|known| is(client, known));
        let source = client.addresses.iter().find_map(of)?;
        let outbound::Destination::Service { policy, .. } =
            outbound::destination_of(&self.snapshot, &source, (asked, key.destination.port).into())
        else {
            return None;
        };
        (service.affinity_timeout(&policy).is_some() && !is_own)
            .then_some("the client has an endpoint of its own")
    }

    /// Whether a service that was asked for has this endpoint, and it is not left out.
    fn unfit(
        &self,
        key: &DirectRouteKey,
        workload: &Workload,
        ip: IpAddr,
        port: u16,
    ) -> Option<&'static str> {
        let asked = IpAddr::from(key.destination.address);
        let client = self.pods.iter().find(|pod| pod.cookie == key.client)?;
        let Some(service) = self.snapshot.service_by_vip(asked, &client.namespace) else {
            if !workload.waypoints.is_empty() {
                return Some("the server is behind a waypoint");
            }
            return (asked != ip || key.destination.port != port)
                .then_some("another destination was asked for");
        };
        let of = |ip: &IpAddr| self.snapshot.workload_by_address(*ip).filter(|known| is(client, known));
        let source = client.addresses.iter().find_map(of)?;
        let outbound::Destination::Service { policy, .. } =
            outbound::destination_of(&self.snapshot, &source, (asked, key.destination.port).into())
        else {
            return Some("the service is not to be reached, or not as a service");
        };
        if policy.pool.idle_timeout.is_some() || policy.pool.max_connection_duration.is_some() {
            return Some("its time is limited, which only the proxy sees to");
        }
        let endpoint = EndpointId { workload: workload.uid.clone(), address: (ip, port).into() };
        if !service.waypoints.is_empty() {
            return Some("the service is behind a waypoint");
        }
        if !workload.services.contains_key(&service.key) || workload.capacity == 0 {
            return Some("the server is not of the service");
        }
        self.resting
            .get(&endpoint)
            .filter(|until| **until > self.now)
            .map(|_| "the endpoint refused a moment ago")
    }
}

fn is(pod: &Pod, workload: &Workload) -> bool {
    workload.identity == pod.identity && workload.name == pod.name && workload.namespace == pod.namespace
}

fn endpoints(snapshot: &Snapshot, service: &Service) -> Endpoints {
    let endpoint = |workload: Arc<Workload>| {
        let address = (*workload.addresses.first()?, random_mesh::TARGET_PORT).into();
        let (tunnel_protocol, weight) = (workload.tunnel_protocol, workload.capacity);
        Some(Endpoint { workload, address, tunnel_protocol, expected_identities: [].into(), weight })
    };
    snapshot.workloads_of_service(service).into_iter().filter_map(endpoint).collect()
}

fn destination(random: &mut StdRng) -> SocketAddr {
    pick(random, &DESTINATIONS).parse().unwrap()
}
