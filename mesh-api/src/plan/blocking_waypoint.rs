//! Whether a waypoint is in the way of a connection.
//!
//! The mesh does not send connections through waypoints yet. Going past one would bypass its policy, so such
//! connections are refused unless [`WaypointHandling::Ignore`] is chosen.

use super::snapshot::Snapshot;
use super::waypoint_reference::Waypoint;
use super::workload::Workload;

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

/// Returns the waypoint between `source` and a destination behind `waypoints`, if there is one.
pub(super) fn blocking_waypoint<'a>(
    snapshot: &Snapshot,
    source: &Workload,
    waypoints: &'a [Waypoint],
) -> Option<&'a Waypoint> {
    let passes = snapshot.waypoints == WaypointHandling::Ignore
        || waypoints.iter().any(|waypoint| is(waypoint, snapshot, source));
    waypoints.first().filter(|_| !passes)
}

/// Whether a workload belongs to a waypoint.
fn is(waypoint: &Waypoint, snapshot: &Snapshot, workload: &Workload) -> bool {
    match waypoint {
        Waypoint::Service(key) => workload.services.contains_key(key),
        Waypoint::Address(ip) => {
            let service = || snapshot.service_by_vip(*ip, &workload.namespace);
            workload.addresses.contains(ip)
                || service().is_some_and(|service| workload.services.contains_key(&service.key))
        }
        Waypoint::Unknown => false,
    }
}
