//! What the agent reports of its connections: metrics under Istio's names, and an access log.
//!
//! Each worker counts for itself ([`WorkerMetrics`]); the counts are summed when they are read
//! ([`exposition`]). A connection has one [`ConnectionRecord`], with exactly one [`Outcome`].

mod access;
pub mod exposition;
mod labels;
mod open_connections;
mod parties;
mod record;
mod response_flag;
mod worker;

pub use access::{AccessLog, Format};
pub use exposition::AgentMetrics;
pub use labels::{Labels, Reporter, Via};
pub use open_connections::OpenConnection;
pub use parties::Parties;
pub use record::{ConnectionRecord, Expiry, Outcome};
pub use response_flag::ResponseFlag;
pub use worker::{Traffic, WorkerMetrics};
