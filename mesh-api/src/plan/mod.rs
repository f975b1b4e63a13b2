//! The configuration that the agent and `meshctl` hold, and the decisions made with it. No I/O, no clock, no
//! randomness.
//!
//! Reading order follows a resource. [`Store`] takes what the control plane sent and keeps the good part of
//! it: [`Workload`]s, [`Service`]s and policies, each checked when it arrives, and held small (`compact`)
//! until it is asked for. A [`Snapshot`] is one immutable state of all that, shared between threads. With it
//! [`outbound::destination_of`] decides where a connection goes, [`kernel::may_carry`] whether it needs the
//! proxy, and [`policy::authorize`] whether a workload accepts it.
//!
//! IPv4-mapped IPv6 addresses are treated as the IPv4 addresses that they stand for, everywhere.

pub mod kernel;
pub mod outbound;
pub mod policy;

mod compact;
mod directory;
mod discovery_type;
mod endpoints;
mod intern;
mod locality_preference;
mod reachable_ports;
mod resource_version;
mod service;
mod snapshot;
mod store;
mod traffic_policy;
mod validate;
mod vips;
mod waypoint;
mod workload;

pub use discovery_type::DiscoveryType;
pub use endpoints::{Endpoint, EndpointKey, Endpoints};
pub use locality_preference::{Locality, LocalityPreference};
pub use reachable_ports::ReachablePorts;
pub use service::{AppProtocol, Families, Service, ServicePort, Visibility};
pub use snapshot::{DestinationInputs, Snapshot};
pub use store::{RejectedResource, Store, StoreContents};
pub(crate) use traffic_policy::MAX_DURATION;
pub use traffic_policy::{
    ConnectionPool, LoadBalancer, OutlierDetection, PortPolicy, TcpKeepalive, TrafficRule,
};
pub use validate::Invalid;
pub use waypoint::{Waypoint, WaypointHandling};
pub use workload::{Health, NetworkMode, PortMapping, TunnelProtocol, Workload};

#[cfg(test)]
mod fixture;
