//! References to waypoints: proxies that connections to a service or workload should go through, where part
//! of its policy is enforced.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use super::field_parsing;
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

impl Waypoint {
    /// Returns the waypoints of a workload, one or none.
    pub(super) fn references_in_wire_workload(from: &wire::Workload) -> Box<[Self]> {
        from.waypoint.iter().map(Self::from).collect()
    }

    /// Returns the waypoints of a service: those with a share of its traffic, or the one that has all.
    pub(super) fn references_in_wire_service(from: &wire::Service) -> Box<[Self]> {
        if from.weighted_waypoints.is_empty() {
            return from.waypoint.iter().map(Self::from).collect();
        }
        let place =
            |share: &wire::WeightedWaypoint| share.destination.as_ref().map_or(Self::Unknown, Self::from);
        from.weighted_waypoints.iter().map(place).collect()
    }
}

impl From<&wire::GatewayAddress> for Waypoint {
    fn from(from: &wire::GatewayAddress) -> Self {
        match &from.destination {
            Some(Destination::Hostname(name)) => {
                Self::Service(format!("{}/{}", name.namespace, name.hostname).into())
            }
            Some(Destination::Address(at)) => {
                field_parsing::parse_address("waypoint", &at.address).map_or(Self::Unknown, Self::Address)
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
