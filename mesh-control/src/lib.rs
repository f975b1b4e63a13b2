//! The control plane of nodemesh.
//!
//! Reading order follows a change of configuration: [`watch`] notices it in a directory and [`kubernetes`] in
//! a cluster, [`source`] reads and compiles it ([`findings`]: what is wrong), [`config`] is the immutable
//! result, [`xds`] tells each agent what it lacks. Certificates are [`ca`]'s, and [`nodes`] says which node
//! is calling. [`tls`] and [`server`] hold the port, [`admin`] and [`metrics`] show what is going on.
#![forbid(unsafe_code)]

pub mod admin;
pub mod ca;
pub mod config;
mod durable;
pub mod findings;
pub mod kubernetes;
mod listeners;
pub mod metrics;
pub mod nodes;
pub mod options;
mod parts;
pub mod server;
pub mod source;
pub mod tls;
pub mod watch;
pub mod xds;
