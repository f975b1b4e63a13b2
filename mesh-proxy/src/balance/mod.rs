//! Choosing an endpoint of a service: session affinity, ejected endpoints, connection limits, and the
//! [`Picker`]. Candidates and policy come with the plan; this module keeps what changes from one connection
//! to the next.

mod client_ip_affinity;
mod consistent_hash;
mod excluded_endpoints;
#[cfg(test)]
mod fixture;
mod outlier_detection;
mod picker;
mod service_slots;

pub use client_ip_affinity::{AffinityKey, SessionAffinity};
pub use consistent_hash::KeyHash;
pub use excluded_endpoints::EndpointsToSkip;
pub use outlier_detection::OutlierDetector;
pub use picker::{ActiveConnection, EndpointPick, EndpointPicks, PickBy, Picker};
pub use service_slots::{
    PlaceInQueue, ServiceLimits, ServicePortKey, ServiceSlot, ServiceSlots, SlotOrPlace,
};
