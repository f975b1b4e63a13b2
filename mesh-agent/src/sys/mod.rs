//! System calls beyond a library's reach. Nothing here reads a byte from the network.
//!
//! For the keeper, which is privileged: loading eBPF, entering network namespaces, opening sockets in them,
//! closing connections of others. For the proxy, which is not: the eBPF maps that it was handed, giving up
//! privileges ([`privileges`]), and how it is scheduled.

mod cgroup;
pub mod ebpf;
mod host_veth;
mod ipv6_loopback;
mod istio_redirect_check;
mod memory_release;
mod netns;
mod netns_addresses;
mod open_file_limit;
mod pod_sockets;
pub mod privileges;
mod rtnetlink;
mod sandbox_netns;
pub mod seccomp;
mod sock_diag;
mod socket_types;
mod stop_signals;
mod time_slices;

pub use cgroup::{cgroup_contains_process, cgroup_id_of_self, non_pod_cgroup_ids};
pub use host_veth::{HostVeth, find_host_veth};
pub use ipv6_loopback::add_loopback_network;
pub use istio_redirect_check::{IstioRedirectCheckError, check_no_istio_redirects};
pub use memory_release::{release_code_pages, release_unused_memory};
pub use netns::Netns;
pub use netns_addresses::{addresses_in, ipv6_disabled, node_addresses, primary_addresses_in};
pub use open_file_limit::raise_open_file_limit;
pub use pod_sockets::{listen_in_netns, open_sockets};
pub use sandbox_netns::{NoSandbox, find_sandbox_netns};
pub use sock_diag::{
    MOST_LISTED, PreexistingConnections, destroy_connection, destroy_unbound_connection,
    preexisting_connections,
};
pub use socket_types::{ANY_COOKIE, Connection, PreexistingConnection, SocketKind};
pub use stop_signals::StopSignals;
pub use time_slices::request_short_time_slices;
