//! What the agent tells of its connections: metrics under Istio's names, and an access log.
//!
//! Each worker counts for itself ([`WorkerMetrics`]); the counts are summed when somebody reads them
//! ([`exposition`]). A connection is one [`ConnectionRecord`], which has exactly one outcome.

mod access;
pub mod exposition;
mod labels;
mod open;
mod parties;
mod record;
mod response_flag;
mod worker;

pub use access::{AccessLog, Format};
pub use exposition::AgentMetrics;
pub use labels::{Labels, Reporter, Via};
pub use open::OpenConnection;
pub use parties::Parties;
pub use record::{ConnectionRecord, Expiry, Outcome};
pub use response_flag::ResponseFlag;
pub use worker::{Traffic, WorkerMetrics};
