//! Type URLs of what travels in an `Any`.

/// A [`Workload`](super::workload::Workload) or [`Service`](super::workload::Service): what an address leads
/// to.
pub const ADDRESS: &str = "type.googleapis.com/istio.workload.Address";
/// A bare [`Workload`](super::workload::Workload).
pub const WORKLOAD: &str = "type.googleapis.com/istio.workload.Workload";
/// A policy of layer 4, [`Authorization`](super::security::Authorization).
pub const AUTHORIZATION: &str = "type.googleapis.com/istio.security.Authorization";
/// Our [`TrafficPolicies`](super::ext::TrafficPolicies).
pub const TRAFFIC_POLICIES: &str = "type.googleapis.com/nodemesh.v1.TrafficPolicies";
/// Our [`HttpRoutes`](super::ext::HttpRoutes).
pub const HTTP_ROUTES: &str = "type.googleapis.com/nodemesh.v1.HttpRoutes";
/// Our [`SessionAffinity`](super::ext::SessionAffinity).
pub const SESSION_AFFINITY: &str = "type.googleapis.com/nodemesh.v1.SessionAffinity";
/// Our [`Labels`](super::ext::Labels).
pub const LABELS: &str = "type.googleapis.com/nodemesh.v1.Labels";
