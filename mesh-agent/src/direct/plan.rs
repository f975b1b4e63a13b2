//! Decides where a pod's connections to a destination may go without the proxy: a pure function.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::kernel;
use mesh_api::plan::outbound::{Destination, destination_of};
use mesh_api::plan::policy::Verdict;
use mesh_api::plan::{EndpointKey, Endpoints, LoadBalancer, PortPolicy, Service, Snapshot, Target, Workload};
use mesh_common::address::Address;
use mesh_common::direct::{Choice, DirectRoute, MAX_CHOICES, RouteKey};
use mesh_common::is_mesh_port;
use mesh_common::maps::Endpoint;
use mesh_proxy::authorization::AccessRequest;
use mesh_proxy::balance::{Affinity, AffinityClient, Health};
use mesh_proxy::pod::LocalPod;

use super::pod_links::PodLinks;

/// An enrolled pod, as plans need it.
#[derive(Clone, Debug)]
pub(super) struct Pod {
    pub uid: Arc<str>,
    pub namespace: Arc<str>,
    pub name: Arc<str>,
    /// Cookie of its network namespace.
    pub cookie: u64,
    pub identity: SpiffeId,
    pub addresses: Vec<IpAddr>,
}

/// The enrolled pods of this node.
#[derive(Debug, Default)]
pub(super) struct Pods {
    by_cookie: HashMap<u64, Arc<Pod>>,
    by_address: HashMap<IpAddr, Arc<Pod>>,
}

/// What a plan depends on besides the pods.
#[derive(Clone, Copy)]
pub(super) struct View<'a> {
    pub snapshot: &'a Snapshot,
    pub health: &'a Health,
    /// Session affinity.
    pub affinity: &'a Affinity,
    /// Endpoints that have just refused a direct connection. The proxy tries others in their place.
    pub resting: &'a HashMap<EndpointKey, Instant>,
    pub now: Instant,
    /// How the pods are connected to the node.
    pub links: &'a PodLinks,
}

/// Where a pod's connections to a destination may go.
#[derive(Debug)]
pub(super) struct Plan {
    /// The client's workload.
    pub source: Arc<Workload>,
    /// The service that was addressed, if one was, and its policy.
    pub service: Option<(Arc<Service>, Arc<PortPolicy>)>,
    /// All endpoints, near and far.
    pub endpoints: Arc<Endpoints>,
    /// The endpoints that take connections directly, at least one.
    pub ways: Vec<Way>,
    /// Sum of the weights of all endpoints that may be drawn.
    tickets: u64,
}

/// An endpoint on this node that takes the client's connections directly.
#[derive(Clone, Debug)]
pub(super) struct Way {
    pub server: Arc<Pod>,
    pub target: Target,
    /// Policy that allowed it, if one had to.
    pub policy: Option<Arc<str>>,
}

impl From<&LocalPod> for Pod {
    fn from(pod: &LocalPod) -> Self {
        Self {
            uid: Arc::clone(&pod.uid),
            namespace: Arc::clone(&pod.namespace),
            name: Arc::clone(&pod.name),
            cookie: pod.netns,
            identity: pod.identity.clone(),
            addresses: pod.addresses.clone(),
        }
    }
}

impl Pod {
    /// Returns the pod's address of the same family as `other`.
    pub fn address_like(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// Whether the pod is this workload.
    pub fn is(&self, workload: &Workload) -> bool {
        workload.identity == self.identity
            && workload.namespace == self.namespace
            && workload.name == self.name
    }
}

impl Pods {
    /// Adds a pod, which owns its addresses from now on.
    pub fn add(&mut self, pod: &Arc<Pod>) {
        self.by_cookie.insert(pod.cookie, Arc::clone(pod));
        self.by_address.extend(pod.addresses.iter().map(|address| (*address, Arc::clone(pod))));
    }

    /// Removes a pod. Another pod that took over one of its addresses meanwhile keeps it.
    pub fn remove(&mut self, uid: &str) -> Option<Arc<Pod>> {
        let cookie = self.by_cookie.values().find(|pod| *pod.uid == *uid)?.cookie;
        self.by_address.retain(|_, pod| pod.cookie != cookie);
        self.by_cookie.remove(&cookie)
    }

    /// Iterates over the pods' cookies.
    pub fn cookies(&self) -> impl Iterator<Item = u64> {
        self.by_cookie.keys().copied()
    }

    pub fn get(&self, cookie: u64) -> Option<&Arc<Pod>> {
        self.by_cookie.get(&cookie)
    }

    fn at(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.by_address.get(&address)
    }
}

/// Plans a client's connections to a destination; none if all of them need the proxy.
pub(super) fn plan(view: View<'_>, pods: &Pods, client: &Pod, destination: SocketAddr) -> Option<Plan> {
    let source = workload_of(view.snapshot, client)?;
    let (service, endpoints) = match destination_of(view.snapshot, &source, destination) {
        Destination::Workload(target) => (None, Arc::new(Endpoints::from_iter([target]))),
        Destination::Service { service, policy, endpoints, .. }
            if kernel::may_carry(&policy, endpoints.len()).is_ok() =>
        {
            (Some((service, policy)), endpoints)
        }
        _ => return None,
    };
    let in_question = in_question(view, &source, service.as_ref(), destination.port(), &endpoints);
    let tickets = in_question.iter().map(|target| u64::from(target.weight)).sum();
    // When a draw falls on no endpoint of this node the proxy leaves out all of them: so either all have a
    // direct way, or none may.
    let is_near = |target: &&Target| pods.at(target.address.ip()).is_some();
    let near: Vec<_> = in_question.into_iter().filter(is_near).collect();
    if near.len() > MAX_CHOICES {
        return None;
    }
    let ways: Option<Vec<_>> = near
        .into_iter()
        .filter(|target| service.is_none() || !view.rests(&target.key()))
        .map(|target| way(view, pods, client, target, destination))
        .collect();
    let ways = ways?;
    (!ways.is_empty()).then_some(Plan { source, service, endpoints, ways, tickets })
}

/// Returns a pod's workload.
fn workload_of(snapshot: &Snapshot, pod: &Pod) -> Option<Arc<Workload>> {
    let mut found = pod.addresses.iter().filter_map(|address| snapshot.workload_by_address(*address));
    found.find(|workload| pod.is(workload))
}

/// Returns the endpoints that the client's next connection may go to: all that are not ejected, or with
/// session affinity its own alone.
fn in_question<'a>(
    view: View<'_>,
    source: &Workload,
    service: Option<&(Arc<Service>, Arc<PortPolicy>)>,
    port: u16,
    endpoints: &'a Endpoints,
) -> Vec<&'a Target> {
    let Some((service, policy)) = service else { return endpoints.iter().collect() };
    let left_out = view.health.ejected(endpoints, policy, view.now);
    if let Some((client, _)) = AffinityClient::of(source, service, policy, port) {
        let own = view.affinity.choose(&client, endpoints, &left_out, view.now);
        return own.map(|index| &endpoints[index]).into_iter().collect();
    }
    let all = endpoints.iter().enumerate();
    all.filter(|(index, _)| !left_out.contains(*index)).map(|(_, target)| target).collect()
}

/// Returns the direct way to an endpoint, if there is one: its workload is a pod of this node, and the policy
/// allows the client with nothing to record about it.
fn way(view: View<'_>, pods: &Pods, client: &Pod, target: &Target, destination: SocketAddr) -> Option<Way> {
    let server = pods.at(target.address.ip())?;
    let same_family = target.address.is_ipv4() == destination.is_ipv4();
    if server.cookie == client.cookie
        || !view.links.may_be_direct(client.cookie, server.cookie)
        || !server.is(&target.workload)
        || !owns(view.snapshot, target)
        || !same_family
        || is_mesh_port(target.address.port())
    {
        return None;
    }
    let decision = request(client, target)?.decide(view.snapshot);
    match decision.verdict {
        Verdict::Allow(permit) if decision.audited.is_empty() && decision.dry_run.is_empty() => {
            Some(Way { server: Arc::clone(server), target: target.clone(), policy: permit.policy().cloned() })
        }
        // Audits and dry runs are recorded by the proxy.
        Verdict::Allow(_) | Verdict::Deny(_) => None,
    }
}

/// Whether the endpoint's workload is the one that the mesh knows at its address, where several claim it: the
/// proxy asks that one's policy.
fn owns(snapshot: &Snapshot, target: &Target) -> bool {
    snapshot.workload_by_address(target.address.ip()).is_some_and(|owner| owner.uid == target.workload.uid)
}

/// Returns the access request for the server's policy.
pub(super) fn request(client: &Pod, target: &Target) -> Option<AccessRequest> {
    Some(AccessRequest {
        identity: Some(client.identity.clone()),
        source: client.address_like(target.address.ip())?,
        destination: target.address,
        workload: Arc::clone(&target.workload),
    })
}

impl View<'_> {
    fn rests(&self, key: &EndpointKey) -> bool {
        self.resting.get(key).is_some_and(|until| *until > self.now)
    }
}

impl Plan {
    /// Converts the plan to the kernel's form.
    pub fn to_route(&self, key: RouteKey) -> DirectRoute {
        // Weights keep their proportions if their sum is more than the kernel counts to.
        let shift = (u64::BITS - self.tickets.leading_zeros()).saturating_sub(u32::BITS);
        let ticket = |sum: u64| u32::try_from(sum >> shift).unwrap_or(u32::MAX);
        let mut choices = [Choice::NONE; MAX_CHOICES];
        let mut below = 0;
        for (choice, way) in choices.iter_mut().zip(&self.ways) {
            below += u64::from(way.target.weight);
            *choice = Choice {
                server: way.server.cookie,
                endpoint: endpoint(way.target.address),
                below: ticket(below),
            };
        }
        let in_turn = self.service.as_ref().is_some_and(|(_, policy)| policy.lb == LoadBalancer::RoundRobin);
        DirectRoute {
            key,
            tickets: ticket(self.tickets),
            in_turn: u32::from(in_turn),
            turn: 0,
            count: u32::try_from(self.ways.len()).unwrap_or(0),
            choices,
        }
    }

    /// Returns the way to a server's port.
    pub fn way_to(&self, server: u64, address: SocketAddr) -> Option<&Way> {
        self.ways.iter().find(|way| way.server.cookie == server && way.target.address == address)
    }

    /// Has the client keep an endpoint that it has connected to, if the service has session affinity.
    pub fn keep(&self, affinity: &Affinity, endpoint: &EndpointKey, destination: SocketAddr, now: Instant) {
        let own = self.service.as_ref().and_then(|(service, policy)| {
            AffinityClient::of(&self.source, service, policy, destination.port())
        });
        if let Some((client, timeout)) = own {
            affinity.keep(client, endpoint, timeout, now);
        }
    }

    /// Whether the plan's addresses still belong to its workloads. Looked at by itself, since a workload that
    /// takes one of them over may change nothing that the plan was made with.
    pub fn leads_to_owners(&self, snapshot: &Snapshot) -> bool {
        self.ways.iter().all(|way| owns(snapshot, &way.target))
    }

    /// Whether the plan changes with time alone: when an ejection or a rest is over.
    pub fn watches_health(&self) -> bool {
        self.service.as_ref().is_some_and(|(_, policy)| policy.outlier.is_some())
    }
}

/// Converts an address to the form of the kernel's maps.
pub(super) fn endpoint(address: SocketAddr) -> Endpoint {
    Endpoint::new(Address::from(address.ip()), address.port())
}
