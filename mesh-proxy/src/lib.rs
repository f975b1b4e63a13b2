//! The data path of nodemesh: carries connections between pods over mutual TLS, under the mesh's policy.
//!
//! # A connection, step by step
//!
//! 1. [`worker`]: a thread that serves pods, and what it knows ([`worker::Worker`]). [`worker::run`] has it
//!    listen for them.
//! 2. [`accept`]: connections are taken; those of pods once their way is open ([`deferred_accept`]).
//! 3. [`outbound`]: one that a pod opened. Where does it go?
//! 4. [`upstream`]: the way to one endpoint, through [`pool`], [`tunnel`] ([`mux`] or [`hbone`]) and [`tls`].
//! 5. [`inbound`]: one that arrives at a pod. Has it a place for its [handshake](handshakes), who is it, has
//!    that one a place for its [session](sessions), [`authorization`], and [`deliver`].
//! 6. [`stream`] is what carries the bytes, however they are framed; [`relay`] moves them between a stream and a
//!    socket, for as long as a [`lifetime`] allows it.
//!
//! # What it needs
//!
//! - [`surroundings`]: where it runs, by one trait. On a node, sockets in pods and what eBPF tells; in a test
//!   or a gateway, plain sockets. Nothing here assumes that it serves all pods of its node.
//! - [`xds`] and [`certs`]: what the control plane tells, and who the pods are; [`inheritance`], what of it a
//!   next proxy gets.
//! - [`balance`] remembers what choosing an endpoint needs; [`addresses`] are types for a connection's.
//! - [`telemetry`]: metrics and the access log; [`liveness`], whether the workers turn.
#![deny(unsafe_code)]

pub mod accept;
pub mod addresses;
pub mod authorization;
pub mod balance;
pub mod certs;
pub mod deferred_accept;
pub mod deliver;
pub mod file_version;
#[cfg(test)]
mod fixture;
pub mod handshakes;
pub mod hbone;
pub mod inbound;
pub mod inheritance;
pub mod lifetime;
pub mod liveness;
pub mod mux;
pub mod outbound;
pub mod pause;
pub mod pod;
pub mod pool;
pub mod relay;
pub mod sessions;
pub mod stream;
pub mod surroundings;
pub mod sys;
pub mod telemetry;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;
pub mod xds;
