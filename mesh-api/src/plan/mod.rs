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
mod decode;
mod directory;
mod discovery;
mod endpoints;
mod intern;
mod preference;
mod reachability;
mod service;
mod snapshot;
mod store;
mod traffic;
mod version;
mod vips;
mod waypoint;
mod workload;

pub use decode::Invalid;
pub use discovery::DiscoveryType;
pub use endpoints::{EndpointKey, Endpoints, Target};
pub use preference::{Locality, Preference};
pub use reachability::Reachability;
pub use service::{AppProtocol, Families, Service, ServicePort, Visibility};
pub use snapshot::{DestinationInputs, Snapshot};
pub use store::{Contents, Rejected, Store};
pub(crate) use traffic::LONGEST_SPAN;
pub use traffic::{ConnectionPool, LoadBalancer, OutlierDetection, PortPolicy, TcpKeepalive, TrafficRule};
pub use waypoint::{Waypoint, Waypoints};
pub use workload::{Health, NetworkMode, PortMapping, TunnelProtocol, Workload};

#[cfg(test)]
mod fixture;
