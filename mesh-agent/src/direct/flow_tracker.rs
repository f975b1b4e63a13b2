//! The open direct connections, and connections that are only counted: their records, and whether the policy
//! still allows them.

use std::collections::{HashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use mesh_api::plan::Snapshot;
use mesh_api::plan::outbound::{Destination, destination_of};
use mesh_api::plan::policy::Verdict;
use mesh_common::direct::{DirectEventKind, NO_SERVER};
use mesh_common::veth::{CROWDED_ALL_CLIENTS, MAX_FLOWS_OF_CLIENT, MAX_FLOWS_OF_NODE};
use mesh_proxy::authorized_connections::AccessRequest;
use mesh_proxy::telemetry::{
    CarriedBy, ConnectionDetails, ConnectionOutcome, ConnectionRecord, Reporter, ResponseFlag,
    TrafficCounters, WorkerMetrics,
};

use super::Refusal;
use super::route_plan::{DirectEndpoint, Pod, RoutePlan};
use crate::sys::ebpf::{ByteTotals, DirectEvent};
use crate::sys::{ANY_COOKIE, Connection};

/// Direct connections by the cookie of the client's socket.
pub(super) struct FlowTracker {
    open: HashMap<u64, Flow>,
    metrics: Arc<WorkerMetrics>,
}

/// One connection.
struct Flow {
    record: ConnectionRecord,
    /// Counters of its bytes, once its handshake is over.
    traffic: Option<Arc<TrafficCounters>>,
    /// The access request for the server's policy, while it is known.
    request: Option<AccessRequest>,
    ends: ConnectionEnds,
    /// Why it is being closed, if it is.
    revoked: Option<String>,
    listed: Listed,
}

/// Whether the kernel's list of open connections has a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Listed {
    /// There was no room for it, or it is only counted.
    Never,
    Yes,
    /// It was missing at the last look. If its end is not read until the next, that was lost.
    Gone,
}

/// Where a connection's two sockets are found.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct ConnectionEnds {
    /// The kernel's cookie of the client's socket.
    pub socket: u64,
    /// Cookie of the client's network namespace.
    pub netns: u64,
    /// Cookie of the server's network namespace.
    pub server_netns: u64,
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The server's own address and port.
    pub server: SocketAddr,
}

/// The pods of a connection, if they are known.
pub(super) struct FlowPods<'a> {
    pub client: Option<&'a Arc<Pod>>,
    pub server: Option<&'a Arc<Pod>>,
    pub plan: Option<&'a RoutePlan>,
}

impl FlowTracker {
    pub fn new(metrics: Arc<WorkerMetrics>) -> Self {
        Self { open: HashMap::new(), metrics }
    }

    /// Records a connection that is opening. Returns its ends if it may no longer be open, since the policy
    /// changed.
    pub fn record_and_check_opening(
        &mut self,
        event: &DirectEvent,
        pods: &FlowPods<'_>,
        snapshot: &Snapshot,
    ) -> Option<ConnectionEnds> {
        match self.open.get(&event.socket) {
            // A predecessor's connections are found in a list, which may also have this one's own before
            // their event comes.
            Some(flow) if flow.ends == event.into() => return None,
            // The socket connects again.
            Some(_) => self.lose(event.socket),
            None => {}
        }
        let mut flow = self.begin(event, pods, snapshot);
        let revoked = flow.revoke_if_denied(snapshot);
        let ends = flow.ends;
        self.open.insert(event.socket, flow);
        revoked.then_some(ends)
    }

    /// Whether a connection, by the cookie of the client's socket, is recorded.
    pub fn is_recorded(&self, socket: u64) -> bool {
        self.open.contains_key(&socket)
    }

    /// Notes that a connection's handshake is over.
    pub fn record_established(&mut self, event: &DirectEvent) {
        if let Some(flow) = self.open.get_mut(&event.socket).filter(|flow| flow.traffic.is_none()) {
            flow.traffic = Some(flow.record.record_opened());
        }
    }

    /// Records the end of a connection. `pods` are for one that is not recorded yet: it was opened before
    /// this agent ran, or its ends were not known. (Without an event for its beginning the kernel sends none
    /// for its end.)
    pub fn record_closed(&mut self, event: &DirectEvent, pods: &FlowPods<'_>, snapshot: &Snapshot) {
        let mut flow = self.open.remove(&event.socket).unwrap_or_else(|| self.begin(event, pods, snapshot));
        let traffic = flow.traffic.take().unwrap_or_else(|| flow.record.record_opened());
        let ByteTotals { sent, received } = event.totals;
        traffic.received.fetch_add(sent, Ordering::Relaxed);
        traffic.sent.fetch_add(received, Ordering::Relaxed);
        flow.record.rtt = Some(Duration::from_micros(event.rtt.into()));
        let outcome = match flow.revoked {
            Some(reason) => ConnectionOutcome::Broken(reason),
            None => ConnectionOutcome::Closed,
        };
        flow.record.record_outcome_with_duration(event.lasted, &outcome, (sent, received));
    }

    /// Records that a connection was refused, or not answered.
    pub fn record_failed(&mut self, event: &DirectEvent) {
        if let Some(flow) = self.open.remove(&event.socket) {
            let outcome = match flow.revoked {
                Some(reason) => ConnectionOutcome::Failed(ResponseFlag::Denied, reason),
                None => ConnectionOutcome::Failed(
                    ResponseFlag::ConnectFailed,
                    "the endpoint refused or did not answer".to_owned(),
                ),
            };
            flow.record.record_outcome_with_duration(event.lasted, &outcome, (0, 0));
        }
    }

    /// Records a connection that the kernel refused before it began, since its destination has no endpoint.
    /// It had no port yet.
    pub fn record_refused_without_endpoint(
        &self,
        refusal: &Refusal,
        client: Option<&Arc<Pod>>,
        snapshot: &Snapshot,
    ) {
        let Refusal { destination, why, .. } = *refusal;
        let Some(pod) = client else { return };
        let is_like = |address: &&IpAddr| address.is_ipv4() == destination.is_ipv4();
        let Some(own) = pod.addresses.iter().find(is_like).or(pod.addresses.first()) else { return };
        let ends = ConnectionDetails::new(Reporter::Source, SocketAddr::new(*own, 0), destination);
        let mut record = ConnectionRecord::new(&self.metrics, ends);
        record.details.transport = "none";
        record.details.labels.path = CarriedBy::Direct;
        record.details.labels.source = snapshot.workload_by_address(*own);
        record.details.labels.source_identity = Some(pod.identity.clone());
        record.details.labels.service = snapshot.service_by_vip(destination.ip(), &pod.namespace);
        let goes_to =
            record.details.labels.source.as_ref().map(|source| destination_of(snapshot, source, destination));
        let reason = match goes_to {
            Some(Destination::Reject(reject)) => reject.to_string(),
            _ => why.describe().to_owned(),
        };
        record.record_outcome(&ConnectionOutcome::Failed(ResponseFlag::ConnectFailed, reason), (0, 0));
    }

    /// Marks a connection that arrived at another pod than it was allowed to as revoked. Returns its ends,
    /// for the caller to close.
    pub fn revoke_misdelivered_flow(&mut self, event: &DirectEvent) -> Option<ConnectionEnds> {
        let found = |flow: &&mut Flow| flow.ends.client == event.client && flow.ends.server == event.server;
        let flow = self.open.values_mut().find(found)?;
        flow.revoked = Some("the server's address has another owner".to_owned());
        Some(flow.ends)
    }

    /// Ends all records without an outcome: another proxy records the connections from here on.
    pub fn end_all_without_outcome(&mut self) {
        self.open.drain().for_each(|(_, flow)| flow.record.end_without_outcome());
    }

    /// Asks the policy again for each connection that a change since an earlier snapshot may concern. Returns
    /// the ends of those that it now denies.
    pub fn recheck_policy(&mut self, snapshot: &Snapshot, since: &Snapshot) -> Vec<ConnectionEnds> {
        let same_policies = snapshot.has_same_policies(since);
        let mut same = HashMap::new();
        let mut is_same = |uid: &Arc<str>| {
            same_policies
                && *same.entry(Arc::clone(uid)).or_insert_with(|| snapshot.has_same_workload(since, uid))
        };
        let denied: Vec<_> = self
            .open
            .values_mut()
            .filter(|flow| flow.request.as_ref().is_some_and(|request| !is_same(&request.workload.uid)))
            .filter_map(|flow| flow.revoke_if_denied(snapshot).then_some(flow.ends))
            .collect();
        self.metrics.count_revoked(denied.len());
        denied
    }

    /// Returns the network namespaces of clients that have as many direct connections as they may; if the
    /// node has, the one value that stands for all clients.
    pub fn clients_to_send_through_proxy(&self) -> HashSet<u64> {
        let direct = self.open.values().filter(|flow| flow.ends.server_netns != NO_SERVER);
        let mut of_client: HashMap<u64, usize> = HashMap::new();
        direct.for_each(|flow| *of_client.entry(flow.ends.netns).or_default() += 1);
        if of_client.values().sum::<usize>() >= MAX_FLOWS_OF_NODE {
            return HashSet::from([CROWDED_ALL_CLIENTS]);
        }
        of_client
            .into_iter()
            .filter(|(_, count)| *count >= MAX_FLOWS_OF_CLIENT)
            .map(|(client, _)| client)
            .collect()
    }

    /// Forgets label sets that nothing used for `idle`.
    pub fn forget_unused_metrics(&self, idle: Duration) {
        self.metrics.remove_unused_labels(idle);
    }

    /// Makes up for events that were lost because the kernel wrote faster than they were read: ends the
    /// connections that its list did not have at the last look either. Returns the ends of those that are
    /// still open though denied.
    pub fn end_lost_and_list_denied(&mut self, is_open: impl Fn(u64) -> bool) -> Vec<ConnectionEnds> {
        let (mut lost, mut denied) = (Vec::new(), Vec::new());
        for (socket, flow) in &mut self.open {
            let now = match flow.listed {
                Listed::Never => Listed::Never,
                _ if is_open(*socket) => Listed::Yes,
                _ => Listed::Gone,
            };
            match (std::mem::replace(&mut flow.listed, now), now) {
                (Listed::Gone, Listed::Gone) => lost.push(*socket),
                (_, Listed::Yes | Listed::Never) if flow.revoked.is_some() => denied.push(flow.ends),
                _ => {}
            }
        }
        lost.into_iter().for_each(|socket| self.lose(socket));
        denied
    }

    /// Ends a connection whose end was not told.
    fn lose(&mut self, socket: u64) {
        if let Some(flow) = self.open.remove(&socket) {
            let outcome = ConnectionOutcome::Broken("its end was not heard of".to_owned());
            flow.record.record_outcome(&outcome, (0, 0));
        }
    }

    fn begin(&self, event: &DirectEvent, pods: &FlowPods<'_>, snapshot: &Snapshot) -> Flow {
        let reporter = if event.probe { Reporter::Destination } else { Reporter::Source };
        let ends = ConnectionDetails::new(reporter, event.client, event.destination);
        let mut record = ConnectionRecord::new(&self.metrics, ends);
        record.details.transport = "local";
        record.details.upstream = Some(event.server);
        record.details.labels.path = CarriedBy::Direct;
        if event.probe {
            return probe(record, event, pods, snapshot);
        }
        if event.server_netns == NO_SERVER {
            return untouched(record, event, snapshot);
        }
        let direct = pods.plan.and_then(|plan| plan.direct_endpoint_at(event.server_netns, event.server));
        fill_in(&mut record, pods, direct, event, snapshot);
        let request = pods
            .client
            .zip(direct)
            .and_then(|(client, direct)| super::route_plan::access_request(client, &direct.endpoint));
        let request = request.or_else(|| pods.access_request(event.client.ip(), event.server, snapshot));
        let listed = Listed::of(event);
        Flow { record, traffic: None, request, ends: event.into(), revoked: None, listed }
    }
}

/// Records a connection past the mesh, which no policy is asked about.
fn untouched(mut record: ConnectionRecord, event: &DirectEvent, snapshot: &Snapshot) -> Flow {
    record.details.transport = "plain";
    record.details.labels.path = CarriedBy::Untouched;
    record.details.labels.source = snapshot.workload_by_address(event.client.ip());
    Flow { record, traffic: None, request: None, ends: event.into(), revoked: None, listed: Listed::Never }
}

/// Records a probe of the node, which no policy is asked about: the kubelet's probes keep a pod alive.
fn probe(
    mut record: ConnectionRecord,
    event: &DirectEvent,
    pods: &FlowPods<'_>,
    snapshot: &Snapshot,
) -> Flow {
    record.details.labels.path = CarriedBy::Probe;
    record.details.labels.destination =
        pods.server.and_then(|_| snapshot.workload_by_address(event.server.ip()));
    let listed = Listed::of(event);
    Flow { record, traffic: None, request: None, ends: event.into(), revoked: None, listed }
}

impl Listed {
    fn of(event: &DirectEvent) -> Self {
        if event.kind == DirectEventKind::Opening { Self::Yes } else { Self::Never }
    }
}

impl From<&DirectEvent> for ConnectionEnds {
    fn from(event: &DirectEvent) -> Self {
        Self {
            socket: event.socket,
            netns: event.client_netns,
            server_netns: event.server_netns,
            client: event.client,
            server: event.server,
        }
    }
}

impl ConnectionEnds {
    /// Returns the client's socket.
    pub fn client_socket(&self) -> Connection {
        Connection { cookie: self.socket, local: self.client, remote: self.server }
    }

    /// Returns the server's socket, whose cookie is not known.
    pub fn server_socket(&self) -> Connection {
        Connection { cookie: ANY_COOKIE, local: self.server, remote: self.client }
    }
}

impl FlowPods<'_> {
    /// Returns the access request for the server's policy where there is no plan any more.
    pub fn access_request(
        &self,
        source: IpAddr,
        destination: SocketAddr,
        snapshot: &Snapshot,
    ) -> Option<AccessRequest> {
        Some(AccessRequest {
            identity: Some(self.client?.identity.clone()),
            source,
            destination,
            workload: snapshot.workload_by_address(destination.ip())?,
        })
    }
}

impl Flow {
    /// Whether the policy denies the connection, for the first time.
    fn revoke_if_denied(&mut self, snapshot: &Snapshot) -> bool {
        let Some(request) = self.request.as_ref().filter(|_| self.revoked.is_none()) else { return false };
        match request.decide(snapshot).verdict {
            Verdict::Allow(_) => false,
            Verdict::Deny(denial) => {
                self.revoked = Some(format!("policy changed: {denial}"));
                true
            }
        }
    }
}

fn fill_in(
    record: &mut ConnectionRecord,
    pods: &FlowPods<'_>,
    direct: Option<&DirectEndpoint>,
    event: &DirectEvent,
    snapshot: &Snapshot,
) {
    let by_address = |address: SocketAddr| snapshot.workload_by_address(address.ip());
    let labels = &mut record.details.labels;
    labels.source = pods.plan.map(|plan| Arc::clone(&plan.source)).or_else(|| by_address(event.client));
    labels.destination =
        direct.map(|direct| Arc::clone(&direct.endpoint.workload)).or_else(|| by_address(event.server));
    labels.service = pods.plan.and_then(|plan| plan.service.as_ref()).map(|(service, _)| Arc::clone(service));
    labels.source_identity = pods.client.map(|pod| pod.identity.clone());
    labels.destination_identity = pods.server.map(|pod| pod.identity.clone());
    record.details.policy = direct.and_then(|direct| direct.policy.clone());
}
