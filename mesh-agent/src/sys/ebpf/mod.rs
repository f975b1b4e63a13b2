//! The eBPF programs and maps, seen from user space.
//!
//! The keeper loads, pins and attaches ([`Programs`]) and writes the maps of enrolled pods. The proxy gets
//! the others by descriptor ([`MapsHandedToProxy`]), which needs no privilege: the known addresses, the
//! original destinations and clients of sockets (a [`SocketAddressMap`] for each worker), the routes of
//! direct connections, and the events.
//!
//! Everything is pinned below one directory, so that after a crash enrolled pods stay enrolled (and are
//! refused, not let out in plaintext) and the next agent takes over the same maps.

mod attach;
mod deferred_syns_and_decisions;
mod destination_maps;
mod direct_routes_and_events;
mod egress_map;
mod fault_ring;
mod known_sandboxes;
mod link_update;
mod map_helpers;
mod maps_handed_to_proxy;
mod original_destination_and_client_map;
mod per_pod_program_prologue;
mod pod_link_maps;
mod programs_and_pod_maps;
mod recent_connect_results;
mod trial_load;
mod veth_flow_maps;

pub use attach::unpin_all;
pub use deferred_syns_and_decisions::{DeferredSyns, SynDecisions};
pub use destination_maps::DestinationMaps;
pub use direct_routes_and_events::{ByteTotals, DirectEvent, DirectMaps, PendingDirectConnection};
pub use egress_map::{EgressEntry, EgressMap};
pub use fault_ring::FaultRing;
pub use maps_handed_to_proxy::{MapsHandedToProxy, PROXY_MAP_NAMES};
pub use original_destination_and_client_map::SocketAddressMap;
pub use pod_link_maps::{PodLinkMap, clear_pinned_pod_links};
pub use programs_and_pod_maps::{EbpfLogReader, LoadSettings, Programs, ebpf_log_level, probe_endpoints};
pub use recent_connect_results::RecentConnectResults;
pub use trial_load::TrialLoad;
pub use veth_flow_maps::VethFlows;

pub(crate) const PEER: &str = "PEER";

use std::io;
use std::path::PathBuf;

/// Why the eBPF side can't be set up. Whoever runs the node has to act.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The binary was built without its programs.
    #[error(
        "this mesh-agent was built without its eBPF programs: run `cargo xtask build-ebpf` and build again"
    )]
    NotEmbedded,
    /// The object was refused by the kernel or the loader.
    #[error("loading the eBPF object: {0}")]
    Object(#[from] aya::EbpfError),
    /// A program or map that this agent needs is not in the object.
    #[error("the eBPF object has no {0}: it is of another version")]
    Missing(&'static str),
    /// A program was refused by the verifier or could not be attached.
    #[error("eBPF program {name}: {error}")]
    Program {
        /// Name of the program.
        name: &'static str,
        /// The kernel's error.
        error: aya::programs::ProgramError,
    },
    /// A map could not be read or written.
    #[error("eBPF map {name}: {error}")]
    Map {
        /// Name of the map.
        name: &'static str,
        /// The kernel's error.
        error: aya::maps::MapError,
    },
    /// A file, directory or pin could not be used.
    #[error("{}: {error}", path.display())]
    Path {
        /// The path.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
}

fn map_error(name: &'static str) -> impl Fn(aya::maps::MapError) -> Error {
    move |error| Error::Map { name, error }
}
