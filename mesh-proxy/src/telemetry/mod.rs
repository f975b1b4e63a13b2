//! What the agent reports of its connections: metrics under Istio's names, and an access log.
//!
//! Each worker counts for itself ([`WorkerMetrics`]); the counts are summed when they are read
//! ([`agent_metrics`]). A connection has one [`ConnectionRecord`], with one [`ConnectionOutcome`], unless
//! another proxy goes on recording it.

mod access_log;
pub mod agent_metrics;
mod connection_details;
mod connection_record;
mod open_connections;
mod response_flag;
mod traffic_labels;
mod worker_metrics;

pub use access_log::{AccessLog, Format};
pub use agent_metrics::AgentMetrics;
pub use connection_details::ConnectionDetails;
pub use connection_record::{ConnectionOutcome, ConnectionRecord, LifetimeExpiry};
pub use open_connections::OpenConnection;
pub use response_flag::ResponseFlag;
pub use traffic_labels::{Reporter, TrafficLabels, TrafficPath};
pub use worker_metrics::{TrafficCounters, WorkerMetrics};
