//! Waypoints: proxies that connections to a service or workload should go through, where part of its policy
//! is enforced.
//!
//! The mesh does not send connections through them yet. Going past one would bypass its policy, so such
//! connections are refused unless [`WaypointHandling::Ignore`] is chosen.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::snapshot::Snapshot;
use super::validate;
use super::workload::Workload;
use crate::wire::workload as wire;
use crate::wire::workload::gateway_address::Destination;

/// Where a waypoint is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waypoint {
    /// Behind a service, whose key is `namespace/hostname`.
    Service(Arc<str>),
    /// At an address: its own, or a virtual one of its service.
    Address(IpAddr),
    /// At a place that this version can't read. It is in the way all the same.
    Unknown,
}

/// How connections to a destination behind a waypoint are treated. (Those of a waypoint itself are like any
/// others.)
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WaypointHandling {
    /// Refused.
    #[default]
    Refuse,
    /// Sent past it.
    Ignore,
}

impl Waypoint {
    /// Returns the waypoints of a workload, one or none.
    pub(super) fn of_workload(from: &wire::Workload) -> Box<[Self]> {
        from.waypoint.iter().map(Self::from).collect()
    }

    /// Returns the waypoints of a service: those with a share of its traffic, or the one that has all.
    pub(super) fn of_service(from: &wire::Service) -> Box<[Self]> {
        if from.weighted_waypoints.is_empty() {
            return from.waypoint.iter().map(Self::from).collect();
        }
        let place =
            |share: &wire::WeightedWaypoint| share.destination.as_ref().map_or(Self::Unknown, Self::from);
        from.weighted_waypoints.iter().map(place).collect()
    }

    fn is(&self, snapshot: &Snapshot, workload: &Workload) -> bool {
        match self {
            Self::Service(key) => workload.services.contains_key(key),
            Self::Address(ip) => {
                let service = || snapshot.service_by_vip(*ip, &workload.namespace);
                workload.addresses.contains(ip)
                    || service().is_some_and(|service| workload.services.contains_key(&service.key))
            }
            Self::Unknown => false,
        }
    }
}

/// Returns the waypoint between `source` and a destination behind `waypoints`, if there is one.
pub(super) fn blocking_waypoint<'a>(
    snapshot: &Snapshot,
    source: &Workload,
    waypoints: &'a [Waypoint],
) -> Option<&'a Waypoint> {
    let passes = snapshot.waypoints == WaypointHandling::Ignore
        || waypoints.iter().any(|waypoint| waypoint.is(snapshot, source));
    waypoints.first().filter(|_| !passes)
}

impl From<&wire::GatewayAddress> for Waypoint {
    fn from(from: &wire::GatewayAddress) -> Self {
        match &from.destination {
            Some(Destination::Hostname(name)) => {
                Self::Service(format!("{}/{}", name.namespace, name.hostname).into())
            }
            Some(Destination::Address(at)) => {
                validate::parse_address("waypoint", &at.address).map_or(Self::Unknown, Self::Address)
            }
            None => Self::Unknown,
        }
    }
}

impl fmt::Display for Waypoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Service(key) => f.write_str(key),
            Self::Address(ip) => write!(f, "{ip}"),
            Self::Unknown => f.write_str("of an unknown kind"),
        }
    }
}
