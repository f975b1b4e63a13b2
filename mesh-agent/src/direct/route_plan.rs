//! Decides where a pod's connections to a destination may go without the proxy: a pure function.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use mesh_api::identity::SpiffeId;
use mesh_api::plan::http_routes::HttpRoutes;
use mesh_api::plan::kernel_enforceable_traffic_policy;
use mesh_api::plan::outbound::{Destination, destination_of};
use mesh_api::plan::policy::Verdict;
use mesh_api::plan::{
    Endpoint, EndpointId, Endpoints, LoadBalancer, PortPolicy, Service, Snapshot, Workload,
};
use mesh_common::address::Address;
use mesh_common::direct::{DirectRoute, DirectRouteKey, MAX_ROUTE_ENDPOINTS, RouteEndpoint};
use mesh_common::is_mesh_port;
use mesh_common::maps::AddressPort;
use mesh_proxy::authorized_connections::AccessRequest;
use mesh_proxy::balance::{AffinityKey, OutlierDetector, SessionAffinity};
use mesh_proxy::local_pod_identity::LocalPod;

use super::same_node_links::PodLinks;

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
pub(super) struct PodIndex {
    by_cookie: HashMap<u64, Arc<Pod>>,
    by_address: HashMap<IpAddr, Arc<Pod>>,
}

/// What a plan depends on besides the pods.
#[derive(Clone, Copy)]
pub(super) struct PlanContext<'a> {
    pub snapshot: &'a Snapshot,
    pub outliers: &'a OutlierDetector,
    /// Session affinity.
    pub affinity: &'a SessionAffinity,
    /// Endpoints that have just refused a direct connection. The proxy tries others in their place.
    pub resting: &'a HashMap<EndpointId, Instant>,
    pub now: Instant,
    /// How the pods are connected to the node.
    pub links: &'a PodLinks,
}

/// Where a pod's connections to a destination may go.
#[derive(Debug)]
pub(super) struct RoutePlan {
    /// The client's workload.
    pub source: Arc<Workload>,
    /// The service that was addressed, if one was, and its policy.
    pub service: Option<(Arc<Service>, Arc<PortPolicy>)>,
    /// All endpoints, near and far.
    pub endpoints: Arc<Endpoints>,
    /// The endpoints that take connections directly, at least one.
    pub direct_endpoints: Vec<DirectEndpoint>,
    /// Sum of the weights of all endpoints that may be drawn.
    tickets: u64,
}

/// An endpoint on this node that takes the client's connections directly.
#[derive(Clone, Debug)]
pub(super) struct DirectEndpoint {
    pub server: Arc<Pod>,
    pub endpoint: Endpoint,
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
    pub fn address_of_family(&self, other: IpAddr) -> Option<IpAddr> {
        self.addresses.iter().copied().find(|address| address.is_ipv4() == other.is_ipv4())
    }

    /// Whether the pod is this workload.
    pub fn is_workload(&self, workload: &Workload) -> bool {
        workload.identity == self.identity
            && workload.namespace == self.namespace
            && workload.name == self.name
    }
}

impl PodIndex {
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

    pub fn by_cookie(&self, cookie: u64) -> Option<&Arc<Pod>> {
        self.by_cookie.get(&cookie)
    }

    fn by_ip(&self, address: IpAddr) -> Option<&Arc<Pod>> {
        self.by_address.get(&address)
    }
}

/// Plans a client's connections to a destination; none if all of them need the proxy.
pub(super) fn plan_route(
    context: PlanContext<'_>,
    pods: &PodIndex,
    client: &Pod,
    destination: SocketAddr,
) -> Option<RoutePlan> {
    let source = workload_of(context.snapshot, client)?;
    if HttpRoutes::find(context.snapshot, &source, destination).is_some() {
        // Each request has a way of its own.
        return None;
    }
    let (service, endpoints) = match destination_of(context.snapshot, &source, destination) {
        Destination::Workload(endpoint) => (None, Arc::new(Endpoints::from_iter([endpoint]))),
        Destination::Service { service, policy, endpoints, .. }
            if kernel_enforceable_traffic_policy::check_traffic_policy_kernel_enforceable(
                &policy,
                endpoints.len(),
            )
            .is_ok() =>
        {
            (Some((service, policy)), endpoints)
        }
        _ => return None,
    };
    let in_question = in_question(context, &source, service.as_ref(), destination.port(), &endpoints);
    let tickets = in_question.iter().map(|endpoint| u64::from(endpoint.weight)).sum();
    // When a draw falls on no endpoint of this node the proxy leaves out all of them: so either all have a
    // direct way, or none may.
    let is_near = |endpoint: &&Endpoint| pods.by_ip(endpoint.address.ip()).is_some();
    let near: Vec<_> = in_question.into_iter().filter(is_near).collect();
    if near.len() > MAX_ROUTE_ENDPOINTS {
        return None;
    }
    let direct_endpoints: Option<Vec<_>> = near
        .into_iter()
        .filter(|endpoint| service.is_none() || !context.rests(&endpoint.key()))
        .map(|endpoint| direct_endpoint(context, pods, client, endpoint, destination))
        .collect();
    let direct_endpoints = direct_endpoints?;
    (!direct_endpoints.is_empty()).then_some(RoutePlan {
        source,
        service,
        endpoints,
        direct_endpoints,
        tickets,
    })
}

/// Returns a pod's workload.
fn workload_of(snapshot: &Snapshot, pod: &Pod) -> Option<Arc<Workload>> {
    let mut found = pod.addresses.iter().filter_map(|address| snapshot.workload_by_address(*address));
    found.find(|workload| pod.is_workload(workload))
}

/// Returns the endpoints that the client's next connection may go to: all that are not ejected, or with
/// session affinity its own alone.
fn in_question<'a>(
    context: PlanContext<'_>,
    source: &Workload,
    service: Option<&(Arc<Service>, Arc<PortPolicy>)>,
    port: u16,
    endpoints: &'a Endpoints,
) -> Vec<&'a Endpoint> {
    let Some((service, policy)) = service else { return endpoints.iter().collect() };
    let excluded = context.outliers.ejected_endpoints(endpoints, policy, context.now);
    if let Some((client, _)) = AffinityKey::key_and_timeout_if_enabled(source, service, policy, port) {
        let own = context.affinity.choose_endpoint_index(&client, endpoints, &excluded, context.now);
        return own.map(|index| &endpoints[index]).into_iter().collect();
    }
    let all = endpoints.iter().enumerate();
    all.filter(|(index, _)| !excluded.contains(*index)).map(|(_, endpoint)| endpoint).collect()
}

/// Returns the direct way to an endpoint, if there is one: its workload is a pod of this node, and the policy
/// allows the client with nothing to record about it.
fn direct_endpoint(
    context: PlanContext<'_>,
    pods: &PodIndex,
    client: &Pod,
    endpoint: &Endpoint,
    destination: SocketAddr,
) -> Option<DirectEndpoint> {
    let server = pods.by_ip(endpoint.address.ip())?;
    let same_family = endpoint.address.is_ipv4() == destination.is_ipv4();
    if server.cookie == client.cookie
        || !context.links.may_be_direct(client.cookie, server.cookie)
        || !server.is_workload(&endpoint.workload)
        || !owns(context.snapshot, endpoint)
        || !same_family
        || is_mesh_port(endpoint.address.port())
    {
        return None;
    }
    let decision = access_request(client, endpoint)?.decide(context.snapshot);
    match decision.verdict {
        Verdict::Allow(permit) if decision.audited.is_empty() && decision.dry_run.is_empty() => {
            Some(DirectEndpoint {
                server: Arc::clone(server),
                endpoint: endpoint.clone(),
                policy: permit.policy_name().cloned(),
            })
        }
        // Audits and dry runs are recorded by the proxy.
        Verdict::Allow(_) | Verdict::Deny(_) => None,
    }
}

/// Whether the endpoint's workload is the one that the mesh knows at its address, where several claim it: the
/// proxy asks that one's policy.
fn owns(snapshot: &Snapshot, endpoint: &Endpoint) -> bool {
    snapshot
        .workload_by_address(endpoint.address.ip())
        .is_some_and(|owner| owner.uid == endpoint.workload.uid)
}

/// Returns the access request for the server's policy.
pub(super) fn access_request(client: &Pod, endpoint: &Endpoint) -> Option<AccessRequest> {
    Some(AccessRequest {
        identity: Some(client.identity.clone()),
        source: client.address_of_family(endpoint.address.ip())?,
        destination: endpoint.address,
        workload: Arc::clone(&endpoint.workload),
    })
}

impl PlanContext<'_> {
    fn rests(&self, key: &EndpointId) -> bool {
        self.resting.get(key).is_some_and(|until| *until > self.now)
    }
}

impl RoutePlan {
    /// Converts the plan to the kernel's form.
    pub fn to_kernel_route(&self, key: DirectRouteKey) -> DirectRoute {
        // Weights keep their proportions if their sum is more than the kernel counts to.
        let shift = (u64::BITS - self.tickets.leading_zeros()).saturating_sub(u32::BITS);
        let ticket = |sum: u64| u32::try_from(sum >> shift).unwrap_or(u32::MAX);
        let mut choices = [RouteEndpoint::NONE; MAX_ROUTE_ENDPOINTS];
        let mut below = 0;
        for (choice, direct) in choices.iter_mut().zip(&self.direct_endpoints) {
            below += u64::from(direct.endpoint.weight);
            *choice = RouteEndpoint {
                server: direct.server.cookie,
                endpoint: to_address_port(direct.endpoint.address),
                below: ticket(below),
            };
        }
        let in_turn = self.service.as_ref().is_some_and(|(_, policy)| policy.lb == LoadBalancer::RoundRobin);
        DirectRoute {
            key,
            tickets: ticket(self.tickets),
            in_turn: u32::from(in_turn),
            turn: 0,
            count: u32::try_from(self.direct_endpoints.len()).unwrap_or(0),
            choices,
        }
    }

    /// Returns the way to a server's port.
    pub fn direct_endpoint_at(&self, server: u64, address: SocketAddr) -> Option<&DirectEndpoint> {
        self.direct_endpoints
            .iter()
            .find(|direct| direct.server.cookie == server && direct.endpoint.address == address)
    }

    /// Has the client keep an endpoint that it has connected to, if the service has session affinity.
    pub fn remember_affinity_endpoint(
        &self,
        affinity: &SessionAffinity,
        endpoint: &EndpointId,
        destination: SocketAddr,
        now: Instant,
    ) {
        let own = self.service.as_ref().and_then(|(service, policy)| {
            AffinityKey::key_and_timeout_if_enabled(&self.source, service, policy, destination.port())
        });
        if let Some((client, timeout)) = own {
            affinity.remember_endpoint(client, endpoint, timeout, now);
        }
    }

    /// Whether the plan's addresses still belong to its workloads. Looked at by itself, since a workload that
    /// takes one of them over may change nothing that the plan was made with.
    pub fn are_addresses_still_owned(&self, snapshot: &Snapshot) -> bool {
        self.direct_endpoints.iter().all(|direct| owns(snapshot, &direct.endpoint))
    }

    /// Whether the plan changes with time alone: when an ejection or a rest is over.
    pub fn changes_with_time(&self) -> bool {
        self.service.as_ref().is_some_and(|(_, policy)| policy.outlier.is_some())
    }
}

/// Converts an address to the form of the kernel's maps.
pub(super) fn to_address_port(address: SocketAddr) -> AddressPort {
    AddressPort::new(Address::from(address.ip()), address.port())
}
