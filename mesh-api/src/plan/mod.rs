//! The configuration that the agent and `meshctl` hold, and the decisions made with it. No I/O, no clock, no
//! randomness.
//!
//! Reading order follows a resource. [`Store`] takes what the control plane sent and keeps the good part of
//! it: [`Workload`]s, [`Service`]s and policies, each checked when it arrives, and held small
//! (`compact_encoding`) until it is asked for. A [`Snapshot`] is one immutable state of all that, shared
//! between threads. With it [`outbound::destination_of`] decides where a connection goes,
//! [`kernel_enforceable_traffic_policy::check_traffic_policy_kernel_enforceable`] whether it needs the proxy,
//! [`http_routes`] where the HTTP requests on it go, and [`policy::authorize`] whether a workload accepts it.
//!
//! IPv4-mapped IPv6 addresses are treated as the IPv4 addresses that they stand for, everywhere.

pub mod http_routes;
pub mod kernel_enforceable_traffic_policy;
pub mod outbound;
pub mod policy;

mod blocking_waypoint;
mod compact_workloads_and_services;
mod consistent_hash;
mod endpoints;
mod field_parsing;
mod http_pool;
mod intern;
mod locality_preference;
mod mesh_index;
mod resource_version;
mod service;
mod snapshot;
mod store;
mod traffic_policy;
mod vip_ports_with_endpoints;
mod vips;
mod waypoint_reference;
mod workload;
mod xds_resource_type;

pub use blocking_waypoint::WaypointHandling;
pub use consistent_hash::{HashCookie, HashKey};
pub use endpoints::{Endpoint, EndpointId, Endpoints};
pub use field_parsing::Invalid;
pub use http_pool::{HttpPool, RetryBudget};
pub use locality_preference::{Locality, LocalityPreference};
pub use service::{AppProtocol, IpFamilies, Service, ServicePort, Visibility};
pub use snapshot::{DestinationDependencies, Snapshot};
pub use store::{RejectedResource, Store, StoredResources};
pub(crate) use traffic_policy::MAX_DURATION;
pub use traffic_policy::{
    ClientTrafficPolicy, ConnectionPool, LoadBalancer, OutlierDetection, PortPolicy, TcpKeepalive,
};
pub use vip_ports_with_endpoints::KnownServedPorts;
pub use waypoint_reference::Waypoint;
pub use workload::{Health, NetworkMode, PortMapping, TunnelProtocol, Workload};
pub use xds_resource_type::XdsResourceType;

#[cfg(test)]
mod fixture;
