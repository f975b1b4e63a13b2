//! The explanation: the route and, for each endpoint, the identity and the policy's answer.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use anyhow::Result;
use mesh_api::admin::StrictEgressStatus;
use mesh_api::identity::SpiffeId;
use mesh_api::plan::http_routes::HttpRoutes;
use mesh_api::plan::kernel_enforceable_traffic_policy::{self, ProxyRequiredReason};
use mesh_api::plan::outbound::{self, destination_of};
use mesh_api::plan::policy::{ConnectionAttributes, Decision, authorize};
use mesh_api::plan::{self, Snapshot, TunnelProtocol, Workload};
use mesh_api::resource::egress::Allowed;
use serde::Serialize;

use super::destination::Destination;
use super::request::{self, Request, RequestAnswer};
use super::same_node::{self, SameNode};
use crate::standing::NotEnrolled;

/// What would become of a connection.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Explanation {
    /// `namespace/name` of the pod that connects.
    pub from: String,
    /// Its node.
    pub node: String,
    /// Its identity, if it is in the mesh.
    pub identity: Option<String>,
    /// Where to, as asked.
    pub to: String,
    /// Pods that the connection depends on and that are not in the mesh, or not anywhere, though they should
    /// be.
    pub not_enrolled: Vec<NotEnrolled>,
    /// What the name stands for, and what would become of a connection there.
    pub routes: Vec<Way>,
}

/// What would become of a connection to one address.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Way {
    /// The address.
    pub address: SocketAddr,
    /// `namespace/hostname` of the service that has it.
    pub service: Option<String>,
    /// How one of the endpoints is chosen.
    pub balancing: Option<String>,
    /// Why it leads past the mesh or nowhere, if it does.
    pub note: Option<String>,
    /// Whether the mesh knows nothing of the address.
    #[serde(skip)]
    pub is_outside: bool,
    /// Whether a connection is made if there is no endpoint of the mesh.
    #[serde(skip)]
    passes: bool,
    /// What would become of the request, if one is asked about and routes are for it.
    pub request: Option<RequestAnswer>,
    /// Where it would end.
    pub endpoints: Vec<Endpoint>,
}

/// What would become of a connection at one endpoint.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Endpoint {
    /// `namespace/name` of the workload.
    pub workload: String,
    /// Its node.
    pub node: String,
    /// Its own address.
    pub address: SocketAddr,
    /// `hbone`, `local` or `plain`, as in `meshctl connections`.
    pub transport: &'static str,
    /// Which way on the node, or why not directly.
    pub note: Option<String>,
    /// Identity that the endpoint would see.
    pub client_identity: Option<String>,
    /// Identities of which the endpoint must prove one.
    pub server_identities: Vec<String>,
    /// Whether it is to be in the mesh.
    #[serde(skip)]
    pub is_meshed: bool,
    /// Whether it would take the connection.
    pub allowed: bool,
    /// Why, in the words of the agent's log.
    pub reason: String,
    /// `namespace/name` of the policy that decides, if one does; with its kind before, if that is no
    /// `AuthorizationPolicy`.
    pub policy: Option<String>,
    /// What of the policies for the endpoint is not in force as written, as far as the control plane says so.
    pub not_in_force: Vec<String>,
}

impl Explanation {
    /// Whether the connection would be made, whichever endpoint were chosen.
    pub fn is_taken(&self) -> bool {
        let are_there = self.not_enrolled.is_empty();
        are_there
            && self.routes.iter().all(|way| {
                if way.endpoints.is_empty() { way.passes } else { way.endpoints.iter().all(|it| it.allowed) }
            })
    }

    /// Of a pod that can't connect anywhere yet.
    pub fn of_none(pod: NotEnrolled, to: &Destination) -> Self {
        Self {
            from: pod.pod.clone(),
            node: pod.node.clone().unwrap_or_default(),
            identity: None,
            to: to.to_string(),
            not_enrolled: vec![pod],
            routes: Vec::new(),
        }
    }

    /// All endpoints.
    pub fn endpoints(&self) -> impl Iterator<Item = &Endpoint> {
        self.routes.iter().flat_map(|way| &way.endpoints)
    }
}

/// What counts of the client's agent, and the request.
#[derive(Default)]
pub struct Agent {
    /// What it says of its node.
    pub same_node: SameNode,
    /// The client's egress, if it is strict.
    pub strict_egress: Option<StrictEgressStatus>,
    /// The request that is asked about; none: a mere connection is.
    pub request: Option<Request>,
}

/// Explains a connection of `client`.
pub fn explain(
    snapshot: &Snapshot,
    client: &Arc<Workload>,
    to: &Destination,
    agent: &Agent,
) -> Result<Explanation> {
    let addresses = to.addresses(snapshot, &client.namespace)?;
    let way = |address| way(snapshot, client, address, agent);
    Ok(Explanation {
        from: name(client),
        node: client.node.to_string(),
        identity: is_meshed(client).then(|| client.identity.to_string()),
        to: to.to_string(),
        not_enrolled: Vec::new(),
        routes: addresses.into_iter().map(way).collect(),
    })
}

fn way(snapshot: &Snapshot, client: &Workload, address: SocketAddr, agent: &Agent) -> Way {
    let mut way = Way {
        address,
        service: None,
        balancing: None,
        note: None,
        is_outside: !snapshot.contains_address(address.ip()),
        passes: false,
        request: None,
        endpoints: Vec::new(),
    };
    let end = |target: &plan::Endpoint, kept| {
        let (transport, note) = transport(client, target, &agent.same_node, kept);
        Endpoint { note, ..endpoint(snapshot, client, target, transport) }
    };
    let read = HttpRoutes::find(snapshot, client, address);
    let reason = |routes: &HttpRoutes| match routes.table {
        Some(_) => ProxyRequiredReason::HttpRoutes,
        None => ProxyRequiredReason::HttpPolicy,
    };
    let read_for = read.as_ref().map(reason);
    let routed = read.and_then(|routes| Some((routes.service, routes.table?)));
    if let (Some((service, table)), Some(request)) = (&routed, &agent.request) {
        let answer = request::explain(snapshot, client, address, table, request);
        way.service = Some(service.key.to_string());
        way.passes = answer.is_answered_here;
        let kept = Some(ProxyRequiredReason::HttpRoutes);
        way.endpoints = answer.endpoints.iter().map(|target| end(target, kept)).collect();
        way.request = Some(answer);
        return way;
    }
    let goes_to = destination_of(snapshot, client, address);
    match &goes_to {
        outbound::Destination::Passthrough => {
            let strict = agent.strict_egress.as_ref().filter(|_| !snapshot.contains_address(address.ip()));
            let (passes, note) =
                strict.map_or((true, String::new()), |strict| outside(strict, client, address));
            way.passes = passes;
            way.note = Some(if passes { format!("{goes_to}{note}") } else { note });
        }
        outbound::Destination::Reject(reject) => {
            way.note = Some(reject.to_string());
            way.service = reject.service().map(|service| service.key.to_string());
        }
        outbound::Destination::Workload(target) => way.endpoints.push(end(target, None)),
        outbound::Destination::Service { service, policy, endpoints, .. } => {
            way.service = Some(service.key.to_string());
            way.balancing = Some(policy.balancing());
            way.note = routed.as_ref().map(|(_, table)| {
                format!("HTTP/1 requests go where {} says; what follows is for other bytes", table.source)
            });
            let kept = read_for.or_else(|| {
                kernel_enforceable_traffic_policy::check_traffic_policy_kernel_enforceable(
                    policy,
                    endpoints.len(),
                )
                .err()
            });
            way.endpoints = endpoints.iter().map(|target| end(target, kept)).collect();
        }
    }
    way
}

/// Whether a pod whose egress is strict may go to an address that the mesh does not know, and what is to be
/// said of it.
fn outside(strict: &StrictEgressStatus, client: &Workload, address: SocketAddr) -> (bool, String) {
    let ip = address.ip().to_canonical();
    let names = |text: &&String| {
        let allowed = text.parse::<Allowed>();
        allowed.is_ok_and(|it| it.net.contains(&ip) && it.port.is_none_or(|port| port == address.port()))
    };
    let whose = if strict.by == "pod" { name(client) } else { client.namespace.to_string() };
    let who = format!("strict egress of {} {whose}", strict.by);
    if let Some(rule) = strict.allowed.iter().find(names) {
        return (true, format!("; excepted from {who} by {rule}"));
    }
    let problem = strict.problem.as_ref().or(strict.not_in_force.as_ref());
    let problem = problem.map(|problem| format!(" ({problem})")).unwrap_or_default();
    (false, format!("refused: {who}, no rule names {address}{problem}"))
}

fn endpoint(
    snapshot: &Snapshot,
    client: &Workload,
    target: &plan::Endpoint,
    transport: &'static str,
) -> Endpoint {
    let identity = (transport != "plain").then_some(&client.identity);
    let server = &target.workload;
    let (allowed, reason, policy) = if is_meshed(server) {
        let decision = ask(snapshot, client, target, identity);
        (decision.is_allowed(), decision.to_string(), decision.policy_name().map(ToString::to_string))
    } else {
        (true, "allowed: the workload is not in the mesh, so no policy is asked".to_owned(), None)
    };
    Endpoint {
        workload: name(server),
        node: server.node.to_string(),
        address: target.address,
        transport,
        note: None,
        client_identity: identity.map(ToString::to_string),
        server_identities: if identity.is_some() { strings(&target.expected_identities) } else { Vec::new() },
        is_meshed: is_meshed(server),
        allowed,
        reason,
        policy,
        not_in_force: Vec::new(),
    }
}

fn ask(
    snapshot: &Snapshot,
    client: &Workload,
    target: &plan::Endpoint,
    identity: Option<&SpiffeId>,
) -> Decision {
    let peer = ConnectionAttributes {
        identity,
        source_ip: source_ip(client, target.address.ip()),
        destination_ip: target.address.ip(),
        destination_port: target.address.port(),
    };
    authorize(snapshot, &target.workload, &peer)
}

/// The client's address of the destination's family: the one that its connection would come from.
fn source_ip(client: &Workload, destination: IpAddr) -> IpAddr {
    let same_family = client.addresses.iter().find(|ip| ip.is_ipv4() == destination.is_ipv4());
    same_family.or(client.addresses.first()).copied().unwrap_or(destination)
}

/// How the connection goes, and what there is to say about that. `kept`: why it is the proxy's in any case.
fn transport(
    client: &Workload,
    target: &plan::Endpoint,
    same_node: &SameNode,
    kept: Option<ProxyRequiredReason>,
) -> (&'static str, Option<String>) {
    if !is_meshed(client) || target.tunnel_protocol != TunnelProtocol::Hbone {
        return ("plain", None);
    }
    if client.node != target.workload.node {
        return ("hbone", None);
    }
    match (same_node.way(client, &target.workload), kept) {
        (same_node::Way::Mtls(why), _) => ("hbone", why),
        (_, Some(kept)) => ("local", Some(format!("through the proxy, for {kept}"))),
        (same_node::Way::Veth, None) => ("local", Some("from veth to veth".to_owned())),
        (same_node::Way::Direct, None) => ("local", Some("directly".to_owned())),
    }
}

fn is_meshed(workload: &Workload) -> bool {
    workload.tunnel_protocol == TunnelProtocol::Hbone
}

fn name(workload: &Workload) -> String {
    format!("{}/{}", workload.namespace, workload.name)
}

fn strings(identities: &[SpiffeId]) -> Vec<String> {
    identities.iter().map(ToString::to_string).collect()
}

#[cfg(test)]
mod tests;
