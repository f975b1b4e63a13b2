//! Decides where a connection goes.
//!
//! A connection is made to the virtual address of a service, the address of a workload, or neither: its
//! original destination. This module makes a [`Destination`] of it. The caller chooses among a service's
//! endpoints, since it knows their load; which ones are eligible is decided here.

use std::collections::BTreeMap;
use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;

use mesh_common::is_mesh_port;

use super::blocking_waypoint::blocking_waypoint;
pub use super::endpoints::IneligibleReason;
use super::endpoints::{self, Endpoint, Endpoints, EndpointsQuery, IpFamily, ServiceEndpoints};
use super::locality_preference::LocalityPreference;
use super::service::Service;
use super::snapshot::Snapshot;
use super::traffic_policy::{ClientTrafficPolicy, LoadBalancer, PortPolicy};
use super::waypoint_reference::Waypoint;
use super::workload::{TunnelProtocol, Workload};

/// The destination of a connection.
#[derive(Clone, Debug)]
pub enum Destination {
    /// The address that the client used: the mesh does not know it, or stays out of the way.
    Passthrough,
    /// A workload, addressed directly.
    Workload(Endpoint),
    /// One of a service's endpoints.
    Service {
        /// The service.
        service: Arc<Service>,
        /// Port of the service.
        port: u16,
        /// The policy for connections to the port.
        policy: Arc<PortPolicy>,
        /// The eligible endpoints, at least one, ordered by their workloads' uids.
        endpoints: Arc<Endpoints>,
    },
    /// Nowhere.
    Reject(Reject),
}

/// Why a connection goes nowhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reject {
    /// The service does not have the port.
    NoSuchPort {
        /// The service.
        service: Arc<Service>,
        /// The port that was asked for.
        port: u16,
    },
    /// No workload of the service is eligible.
    NoEndpoint {
        /// The service.
        service: Arc<Service>,
        /// Port of the service.
        port: u16,
        /// Why its workloads are no endpoints, and how many for each reason.
        ineligible_reasons: BTreeMap<IneligibleReason, usize>,
    },
    /// A route names a host that is no service's.
    NoSuchService {
        /// The host.
        host: Arc<str>,
    },
    /// A route names a subset that no `DestinationRule` for the client has.
    NoSuchSubset {
        /// The service.
        service: Arc<Service>,
        /// Name of the subset.
        subset: Arc<str>,
    },
    /// The destination is behind a waypoint; going past that would bypass its policy.
    Waypoint {
        /// The service or workload.
        of: String,
        /// Its waypoint.
        waypoint: Waypoint,
    },
    /// It is one of the mesh's own ports in a pod, which others reach through the mesh but never ask for.
    MeshPort {
        /// The original destination.
        destination: SocketAddr,
    },
}

impl Reject {
    /// Returns the service that was asked for, if one was.
    pub fn service(&self) -> Option<&Service> {
        match self {
            Self::NoSuchPort { service, .. }
            | Self::NoEndpoint { service, .. }
            | Self::NoSuchSubset { service, .. } => Some(service),
            Self::NoSuchService { .. } | Self::Waypoint { .. } | Self::MeshPort { .. } => None,
        }
    }
}

/// Decides where a connection of the workload `source` to the address `original` goes.
pub fn destination_of(snapshot: &Snapshot, source: &Workload, original: SocketAddr) -> Destination {
    let original = SocketAddr::new(original.ip().to_canonical(), original.port());
    match snapshot.service_by_vip(original.ip(), &source.namespace) {
        Some(service) => to_service(snapshot, source, &service, original),
        None => to_address(snapshot, source, original),
    }
}

fn to_service(
    snapshot: &Snapshot,
    source: &Workload,
    service: &Arc<Service>,
    original: SocketAddr,
) -> Destination {
    let policy = ClientTrafficPolicy::policy_or_default_for(&service.traffic, source, original.port());
    if service.preference == LocalityPreference::Passthrough || policy.lb == LoadBalancer::Passthrough {
        return match blocking_waypoint(snapshot, source, &service.waypoints) {
            Some(waypoint) => behind(format!("service {}", service.key), waypoint),
            None => to_address(snapshot, source, original),
        };
    }
    to_service_subset(snapshot, source, service, original, None)
}

/// Decides which endpoints of a service, or of a subset of it, a request or connection may go to that was
/// made to a port and in the family of `original`.
pub(super) fn to_service_subset(
    snapshot: &Snapshot,
    source: &Workload,
    service: &Arc<Service>,
    original: SocketAddr,
    subset: Option<&str>,
) -> Destination {
    if let Some(waypoint) = blocking_waypoint(snapshot, source, &service.waypoints) {
        return behind(format!("service {}", service.key), waypoint);
    }
    let port = original.port();
    let named = subset.map(|name| (name, ClientTrafficPolicy::subset_for(&service.traffic, source, name)));
    let subset = match named {
        None => None,
        Some((_, Some(subset))) => Some(subset),
        Some((name, None)) => {
            let (service, subset) = (service.clone(), name.into());
            return Destination::Reject(Reject::NoSuchSubset { service, subset });
        }
    };
    let policy = match subset {
        Some(subset) => subset.policy_for_port(port),
        None => ClientTrafficPolicy::policy_or_default_for(&service.traffic, source, port),
    };
    let client = EndpointsQuery {
        port,
        family: IpFamily::of(original.ip()),
        locality: &source.locality,
        labels: subset.map(|subset| &subset.labels),
    };
    let endpoints = snapshot.service_with_workloads(service).and_then(|entry| entry.endpoints());
    let endpoints = endpoints.and_then(|all| all.endpoints_for_client(service, &client));
    let service = service.clone();
    match endpoints {
        None => Destination::Reject(Reject::NoSuchPort { service, port }),
        Some(none) if none.is_empty() => {
            let ineligible_reasons = ineligible_reasons(snapshot, &service, port);
            Destination::Reject(Reject::NoEndpoint { service, port, ineligible_reasons })
        }
        Some(endpoints) => Destination::Service { service, port, policy: policy.clone(), endpoints },
    }
}

fn to_address(snapshot: &Snapshot, source: &Workload, original: SocketAddr) -> Destination {
    let Some(workload) = snapshot.workload_by_address(original.ip()) else { return Destination::Passthrough };
    if let Some(waypoint) = blocking_waypoint(snapshot, source, &workload.waypoints) {
        return behind(format!("workload {}/{}", workload.namespace, workload.name), waypoint);
    }
    if workload.tunnel_protocol == TunnelProtocol::Hbone && is_mesh_port(original.port()) {
        return Destination::Reject(Reject::MeshPort { destination: original });
    }
    Destination::Workload(Endpoint::of_workload(&workload, original))
}

fn behind(of: String, waypoint: &Waypoint) -> Destination {
    Destination::Reject(Reject::Waypoint { of, waypoint: waypoint.clone() })
}

fn ineligible_reasons(
    snapshot: &Snapshot,
    service: &Service,
    port: u16,
) -> BTreeMap<IneligibleReason, usize> {
    let mut counts = BTreeMap::new();
    let members = snapshot
        .service_with_workloads(service)
        .and_then(|entry| entry.endpoints())
        .map(ServiceEndpoints::members);
    for workload in members.into_iter().flatten() {
        // An eligible workload that was not chosen was left out for its locality.
        let ineligible_reason =
            endpoints::ineligible_reason(service, port, workload).unwrap_or(IneligibleReason::Locality);
        *counts.entry(ineligible_reason).or_default() += 1;
    }
    counts
}

impl fmt::Display for Destination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Passthrough => f.write_str("past the mesh, to the address that the client used"),
            Self::Workload(endpoint) => write!(f, "to workload {endpoint}"),
            Self::Service { service, port, policy, endpoints } => {
                let count = endpoints.len();
                let noun = if count == 1 { "endpoint" } else { "endpoints" };
                write!(f, "to service {}:{port}, ", service.key)?;
                match service.affinity_timeout(policy) {
                    None => write!(f, "{} over {count} {noun}: ", policy.lb)?,
                    Some(_) => write!(f, "always one (sessionAffinity) of {count} {noun}: ")?,
                }
                for (index, endpoint) in endpoints.iter().enumerate() {
                    write!(f, "{}{endpoint}", if index > 0 { "; " } else { "" })?;
                }
                Ok(())
            }
            Self::Reject(reject) => write!(f, "nowhere: {reject}"),
        }
    }
}

impl fmt::Display for Reject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoSuchPort { service, port } => write!(f, "service {} has no port {port}", service.key),
            Self::NoEndpoint { service, port, ineligible_reasons } if ineligible_reasons.is_empty() => {
                write!(f, "service {}:{port} has no workload", service.key)
            }
            Self::NoEndpoint { service, port, ineligible_reasons } => {
                write!(f, "service {}:{port} has no endpoint: of its workloads, ", service.key)?;
                for (index, (ineligible_reason, count)) in ineligible_reasons.iter().enumerate() {
                    write!(f, "{}{count} {ineligible_reason}", if index > 0 { ", " } else { "" })?;
                }
                Ok(())
            }
            Self::NoSuchService { host } => write!(f, "{host} is no service of the mesh"),
            Self::NoSuchSubset { service, subset } => {
                write!(f, "service {} has no subset {subset} for this client", service.key)
            }
            Self::Waypoint { of, waypoint } => write!(
                f,
                "{of} is behind waypoint {waypoint}, whose policy would not count: the mesh leads no connection through \
                 waypoints yet, and past them only with --waypoints ignore"
            ),
            Self::MeshPort { destination } => write!(f, "{destination} is a port of the mesh itself"),
        }
    }
}

#[cfg(test)]
mod tests;
