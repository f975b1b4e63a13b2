//! Delta discovery: every agent is told what changed since it was last told.
//!
//! Reading order: `service` authenticates a stream and starts a `stream` task for it, which holds one
//! `subscription` per resource type. [`agents`] knows who is connected.
//!
//! There is no queue per agent. A task keeps the names and versions that its agent was sent, and computes
//! what to send next from the configuration in force at the moment when the agent's connection takes more. A
//! slow agent skips the states in between, and costs the others nothing.

pub mod agents;
mod service;
mod stream;
mod subscription;

pub use service::DiscoveryService;
