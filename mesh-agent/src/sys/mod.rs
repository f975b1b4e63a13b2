//! System calls beyond a library's reach. Nothing here reads a byte from the network.
//!
//! For the keeper, which is privileged: loading eBPF, entering network namespaces, opening sockets in them,
//! closing connections of others. For the proxy, which is not: the eBPF maps that it was handed, giving up
//! privileges ([`confine`]), and how it is scheduled.

mod cgroup;
pub mod confine;
mod diag;
pub mod ebpf;
mod loopback;
mod memory;
mod netns;
mod redirects;
mod rtnetlink;
mod sandbox;
mod scheduling;
pub mod seccomp;
mod signals;
mod socket;
mod types;
mod veth;

pub use cgroup::{cgroup_id_of_self, cgroups_outside_of_pods, is_below};
pub use diag::{MOST_LISTED, PreexistingConnections, destroy, destroy_what_is_left, preexisting_connections};
pub use loopback::widen as widen_loopback;
pub use memory::{give_back_code, give_back_unused};
pub use netns::Netns;
pub use redirects::{Redirected, look_for_redirects};
pub use sandbox::{NoSandbox, find_sandbox};
pub use scheduling::ask_for_short_turns;
pub use signals::Signals;
pub use socket::{
    addresses_in, has_no_ipv6, listen, local_addresses, open_sockets, primary_addresses_in,
    raise_open_file_limit,
};
pub use types::{ANY_COOKIE, Connection, PreexistingConnection, SocketKind};
pub use veth::{HostEnd, host_end};
