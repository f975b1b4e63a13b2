//! The data path, in reading order:
//!
//! 1. [`worker`]: a thread that runs a [`core`](mod@core), with its pods' listeners.
//! 2. [`accept`]: connections are taken; those of pods once their way is open ([`deferred_accept`]).
//! 3. [`outbound`]: one that a pod opened. Where does it go?
//! 4. [`upstream`]: the way to one endpoint, through [`pool`], [`tunnel`] ([`mux`] or [`hbone`]) and [`tls`].
//! 5. [`inbound`]: one that arrives at a pod. Has it a place for its [handshake](handshakes), who is it, has
//!    that one a place for its [session](sessions), [`admission`], and [`deliver`].
//!
//! Where it runs it knows by its [`surroundings`] alone: on a node, sockets in pods and what eBPF tells.
//!
//! [`relay`] then moves the bytes, for as long as a [`lifetime`] allows it; [`balance`] remembers what
//! choosing needs; [`flow`] names the addresses.

pub mod accept;
pub mod admission;
pub mod balance;
pub mod core;
pub mod deferred_accept;
pub mod deliver;
#[cfg(test)]
mod fixture;
pub mod flow;
pub mod handshakes;
pub mod hbone;
pub mod inbound;
pub mod lifetime;
pub mod mux;
pub mod outbound;
pub mod pool;
pub mod relay;
pub mod sessions;
pub mod surroundings;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod worker;
