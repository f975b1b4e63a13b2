//! Shared by the eBPF programs and the agent: map keys and values, events, and the pure rules that both
//! follow. No allocation, no state.
//!
//! Reading order: [`address`], [`maps`], [`redirect_rules`], [`deferred_accept`], [`direct`], [`veth`],
//! [`fault`], and [`ring_records`], which user space reads with.
#![cfg_attr(target_arch = "bpf", no_std)]

pub mod address;
pub mod deferred_accept;
pub mod direct;
pub mod fault;
pub mod maps;
pub mod redirect_rules;
#[cfg(not(target_arch = "bpf"))]
pub mod ring_records;
pub mod strict_egress;
pub mod veth;

/// Port of the outbound listener inside a pod's network namespace.
pub const OUTBOUND_PORT: u16 = 15001;
/// Port of the inbound plaintext listener inside a pod's network namespace.
pub const INBOUND_PORT: u16 = 15006;
/// Port of the HBONE listener inside a pod's network namespace.
pub const HBONE_PORT: u16 = 15008;

/// Whether a port is one of the mesh's own inside a pod: the mesh takes no connection there (a loop).
pub const fn is_mesh_port(port: u16) -> bool {
    matches!(port, OUTBOUND_PORT | INBOUND_PORT | HBONE_PORT)
}
