//! The endpoints of a service, prepared for load balancing when a connection first asks for them after the
//! service has changed.

use std::collections::BTreeMap;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::ops::Deref;
use std::sync::{Arc, PoisonError, RwLock};

use super::locality_preference::{Locality, LocalityPreference};
use super::service::{Service, ServicePort};
use super::workload::{Health, TunnelProtocol, Workload};
use crate::identity::SpiffeId;

/// An endpoint: an address that a connection can go to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Endpoint {
    /// The workload at the address.
    pub workload: Arc<Workload>,
    /// The workload's own address and port.
    pub address: SocketAddr,
    /// The protocol that it is reached by.
    pub tunnel_protocol: TunnelProtocol,
    /// Identities that its server may have: the workload's own, or another one that the service allows.
    pub expected_identities: Arc<[SpiffeId]>,
    /// Weight among the service's endpoints, above 0.
    pub weight: u32,
}

/// Identifies an endpoint in all snapshots.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointId {
    /// The workload's uid.
    pub workload: Arc<str>,
    /// The workload's own address and port.
    pub address: SocketAddr,
}

impl Endpoint {
    /// Creates the endpoint that a workload is by itself, addressed directly.
    pub(super) fn of_workload(workload: &Arc<Workload>, address: SocketAddr) -> Self {
        Self {
            workload: workload.clone(),
            address,
            tunnel_protocol: workload.tunnel_protocol,
            expected_identities: [workload.identity.clone()].into(),
            weight: 1,
        }
    }

    /// Returns the key for state about the endpoint.
    pub fn key(&self) -> EndpointId {
        EndpointId { workload: self.workload.uid.clone(), address: self.address }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Workload { namespace, name, .. } = &*self.workload;
        write!(f, "{namespace}/{name} at {}", self.address)?;
        match self.tunnel_protocol {
            TunnelProtocol::Plain => f.write_str(" in plaintext"),
            TunnelProtocol::Hbone => {
                f.write_str(" over mutual TLS with ")?;
                for (index, identity) in self.expected_identities.iter().enumerate() {
                    write!(f, "{}{identity}", if index > 0 { " or " } else { "" })?;
                }
                Ok(())
            }
        }
    }
}

/// Endpoints that a connection may go to, prepared for a choice by weight. Made once for all connections that
/// choose among the same.
#[derive(Debug)]
pub struct Endpoints {
    all: Box<[Endpoint]>,
    /// For each endpoint, the sum of the weights up to its own.
    sums: Box<[u64]>,
}

impl FromIterator<Endpoint> for Endpoints {
    fn from_iter<I: IntoIterator<Item = Endpoint>>(all: I) -> Self {
        let all: Box<[_]> = all.into_iter().collect();
        let sum = |sum: &mut u64, endpoint: &Endpoint| {
            *sum += u64::from(endpoint.weight);
            Some(*sum)
        };
        Self { sums: all.iter().scan(0, sum).collect(), all }
    }
}

impl PartialEq for Endpoints {
    fn eq(&self, other: &Self) -> bool {
        self.all == other.all
    }
}

impl Deref for Endpoints {
    type Target = [Endpoint];

    fn deref(&self) -> &[Endpoint] {
        &self.all
    }
}

impl Endpoints {
    /// Returns the sum of all weights.
    pub fn total_weight(&self) -> u64 {
        self.sums.last().copied().unwrap_or(0)
    }

    /// Returns the index of the endpoint that a ticket falls on: each has as many tickets as its weight,
    /// counted from 0. None from [`Endpoints::total_weight`] on.
    pub fn index_for_ticket(&self, ticket: u64) -> Option<usize> {
        let index = self.sums.partition_point(|sum| *sum <= ticket);
        (index < self.sums.len()).then_some(index)
    }

    /// Whether an endpoint is among these.
    pub fn contains_endpoint(&self, key: &EndpointId) -> bool {
        self.all
            .iter()
            .any(|endpoint| endpoint.address == key.address && endpoint.workload.uid == key.workload)
    }
}

/// The workloads of one service, and its ports' endpoints.
#[derive(Debug)]
pub(super) struct ServiceEndpoints {
    /// Kept alive while it is in use.
    _service: Arc<Service>,
    members: Box<[Arc<Workload>]>,
    ports: Box<[PortEndpoints]>,
}

impl ServiceEndpoints {
    pub(super) fn build(service: Arc<Service>, members: Box<[Arc<Workload>]>) -> Self {
        let ports = service.ports.iter().map(|port| PortEndpoints::build(&service, port, &members));
        Self { ports: ports.collect(), members, _service: service }
    }

    pub(super) fn members(&self) -> &[Arc<Workload>] {
        &self.members
    }

    /// Returns the endpoints for a client; none if the service has no such port.
    pub(super) fn endpoints_for_client(
        &self,
        service: &Service,
        client: &EndpointsQuery<'_>,
    ) -> Option<Arc<Endpoints>> {
        let port = self.ports.iter().find(|candidate| candidate.port == client.port)?;
        Some(match service.preference {
            LocalityPreference::None | LocalityPreference::Passthrough if client.labels.is_none() => {
                port.all(client.family).clone()
            }
            _ => port.chosen(service, client),
        })
    }
}

/// For whom a service's endpoints are asked, and which of them.
#[derive(Clone, Copy, Debug)]
pub(super) struct EndpointsQuery<'a> {
    /// Port of the service.
    pub port: u16,
    /// Family of the address that the client used.
    pub family: IpFamily,
    /// Where the client runs.
    pub locality: &'a Locality,
    /// Labels that endpoints must have (those of a subset); none: any endpoint.
    pub labels: Option<&'a Arc<BTreeMap<String, String>>>,
}

/// IP family of the address that a client used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum IpFamily {
    V4,
    V6,
}

impl IpFamily {
    pub(super) fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    /// Returns a workload's address for a service: one of this family if there is one.
    fn choose(self, workload: &Workload, service: &Service) -> Option<IpAddr> {
        let admitted = || workload.addresses.iter().copied().filter(|ip| service.families.allows(*ip));
        admitted().find(|ip| Self::of(*ip) == self).or_else(|| admitted().next())
    }
}

#[derive(Debug)]
struct PortEndpoints {
    port: u16,
    ready: ByFamily,
    /// Endpoints that count only if none is ready.
    terminating: ByFamily,
    /// Endpoints by the client's locality and the subset. An agent's clients share few localities and a
    /// service has few subsets, so this stays short.
    choices: RwLock<Vec<Choice>>,
}

/// Endpoints as clients of either family see them.
#[derive(Debug)]
struct ByFamily {
    v4: Arc<Endpoints>,
    v6: Arc<Endpoints>,
}

#[derive(Debug)]
struct Choice {
    client: Locality,
    family: IpFamily,
    labels: Option<Arc<BTreeMap<String, String>>>,
    endpoints: Arc<Endpoints>,
}

impl PortEndpoints {
    fn build(service: &Service, port: &ServicePort, members: &[Arc<Workload>]) -> Self {
        let (terminating, ready): (Vec<_>, Vec<_>) =
            members.iter().partition(|member| member.health == Health::Terminating && !service.unready_too);
        Self {
            port: port.port,
            ready: ByFamily::build(service, port, &ready),
            terminating: ByFamily::build(service, port, &terminating),
            choices: RwLock::default(),
        }
    }

    fn all(&self, family: IpFamily) -> &Arc<Endpoints> {
        let ready = self.ready.of(family);
        if ready.is_empty() { self.terminating.of(family) } else { ready }
    }

    fn chosen(&self, service: &Service, client: &EndpointsQuery<'_>) -> Arc<Endpoints> {
        let known = self.choices.read().unwrap_or_else(PoisonError::into_inner);
        let matches = |choice: &&Choice| {
            choice.family == client.family
                && choice.client == *client.locality
                && choice.labels.as_ref() == client.labels
        };
        if let Some(choice) = known.iter().find(matches) {
            return choice.endpoints.clone();
        }
        drop(known);
        let is_of_subset = |endpoint: &Endpoint| {
            let labels = client.labels.into_iter().flat_map(|labels| labels.iter());
            labels.into_iter().all(|(key, value)| endpoint.workload.labels.get(key) == Some(value))
        };
        let select = |among: &ByFamily| {
            let all = among.of(client.family).iter().filter(|endpoint| is_of_subset(endpoint)).cloned();
            service
                .preference
                .filter_preferred(client.locality, all.collect(), |endpoint| &endpoint.workload.locality)
        };
        let ready = select(&self.ready);
        let chosen = if ready.is_empty() { select(&self.terminating) } else { ready };
        let endpoints: Arc<Endpoints> = Arc::new(chosen.into_iter().collect());
        let choice = Choice {
            client: client.locality.clone(),
            family: client.family,
            labels: client.labels.cloned(),
            endpoints: endpoints.clone(),
        };
        self.choices.write().unwrap_or_else(PoisonError::into_inner).push(choice);
        endpoints
    }
}

impl ByFamily {
    fn build(service: &Service, port: &ServicePort, members: &[&Arc<Workload>]) -> Self {
        let endpoints = |family: IpFamily| -> Arc<Endpoints> {
            let candidates = members.iter().filter_map(|workload| candidate(service, port, workload, family));
            Arc::new(candidates.collect())
        };
        let v4 = endpoints(IpFamily::V4);
        let v6 = Some(endpoints(IpFamily::V6)).filter(|v6| *v6 != v4).unwrap_or_else(|| v4.clone());
        Self { v4, v6 }
    }

    fn of(&self, family: IpFamily) -> &Arc<Endpoints> {
        match family {
            IpFamily::V4 => &self.v4,
            IpFamily::V6 => &self.v6,
        }
    }
}

/// Returns the endpoint that a workload is for a service's port, if it can be one.
fn candidate(
    service: &Service,
    port: &ServicePort,
    workload: &Arc<Workload>,
    family: IpFamily,
) -> Option<Endpoint> {
    if ineligible_reason(service, port.port, workload).is_some() {
        return None;
    }
    let address = family.choose(workload, service)?;
    let identities = std::iter::once(&workload.identity).chain(&service.identities);
    Some(Endpoint {
        workload: workload.clone(),
        address: (address, target_port(service, port.port, workload)?).into(),
        tunnel_protocol: workload.tunnel_protocol,
        expected_identities: identities.cloned().collect(),
        weight: workload.capacity,
    })
}

fn target_port(service: &Service, port: u16, workload: &Workload) -> Option<u16> {
    workload.port_mapping(&service.key, port)?.target.or(service.port(port)?.target)
}

/// Why a workload can't be an endpoint of a service's port.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum IneligibleReason {
    /// It is not ready.
    Unready,
    /// It does not have the port.
    Port,
    /// It has no address, or none of a family that the service is served on.
    Address,
    /// Its capacity is 0.
    Capacity,
    /// It does not run where the service wants endpoints for this client.
    Locality,
}

impl fmt::Display for IneligibleReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unready => "not ready",
            Self::Port => "without that port",
            Self::Address => "without a usable address",
            Self::Capacity => "with capacity 0",
            Self::Locality => "not where this service admits endpoints for this client",
        })
    }
}

pub(super) fn ineligible_reason(
    service: &Service,
    port: u16,
    workload: &Workload,
) -> Option<IneligibleReason> {
    if workload.health == Health::Unhealthy && !service.unready_too {
        Some(IneligibleReason::Unready)
    } else if target_port(service, port, workload).is_none() {
        Some(IneligibleReason::Port)
    } else if !workload.addresses.iter().any(|ip| service.families.allows(*ip)) {
        Some(IneligibleReason::Address)
    } else if workload.capacity == 0 {
        Some(IneligibleReason::Capacity)
    } else {
        None
    }
}
