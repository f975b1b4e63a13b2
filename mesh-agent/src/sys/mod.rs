//! What needs privilege: loading eBPF, entering network namespaces, opening sockets in them. It never reads a byte
//! from the network.
//!
//! This is the seam along which the agent splits into a privileged keeper and an unprivileged proxy: everything else
//! in the agent works with the descriptors that come from here.

mod cgroup;
mod diag;
pub mod ebpf;
mod memory;
mod netns;
mod socket;

pub use cgroup::{cgroup_id_of_self, find_pod_process};
pub use diag::{Connection, destroy};
pub use memory::give_back_unused;
pub use netns::Netns;
pub use socket::{
    addresses_in, delivery_socket, listen, local_addresses, raise_open_file_limit, stream_socket,
};
