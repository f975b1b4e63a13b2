//! What the agent reports of its connections: metrics under Istio's names, and an access log.
//!
//! Each worker counts for itself ([`WorkerMetrics`]); the counts are summed when they are read
//! ([`prometheus_metrics`]). A connection has one [`ConnectionRecord`], with one [`ConnectionOutcome`],
//! unless another proxy goes on recording it. A request that is read as HTTP has a [`RequestRecord`].

mod access_log;
mod connection_details;
mod connection_record;
mod encode_request_metrics;
mod open_connections;
pub mod prometheus_metrics;
mod request_limit;
mod request_record;
mod response_flag;
mod traffic_labels;
mod worker_metrics;

pub use access_log::{AccessLog, Format};
pub use connection_details::ConnectionDetails;
pub use connection_record::{ConnectionOutcome, ConnectionRecord, LifetimeExpiry};
pub use open_connections::OpenConnection;
pub use prometheus_metrics::AgentMetrics;
pub use request_limit::RequestLimit;
pub use request_record::{RequestFlag, RequestRecord};
pub use response_flag::ResponseFlag;
pub use traffic_labels::{CarriedBy, Reporter, TrafficLabels};
pub use worker_metrics::{TrafficCounters, WorkerMetrics};
