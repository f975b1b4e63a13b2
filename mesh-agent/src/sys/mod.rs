//! System calls beyond a library's reach. Nothing here reads a byte from the network.
//!
//! For the keeper, which is privileged: loading eBPF, entering network namespaces, opening sockets in them,
//! closing connections of others. For the proxy, which is not: the eBPF maps that it was handed, giving up
//! privileges ([`drop_capabilities`]), and how it is scheduled.

mod add_ipv6_loopback_network;
mod cgroup_search;
mod code_and_heap_release;
pub mod drop_capabilities;
pub mod ebpf;
mod host_veth;
mod istio_redirect_check;
mod netns;
mod netns_addresses;
mod open_file_limit;
mod process_signals;
mod rtnetlink;
mod sandbox_netns;
pub mod seccomp;
mod sock_diag;
mod socket_kind;
mod sockets_in_netns;
mod tcp_connection;
mod time_slices;

pub use add_ipv6_loopback_network::add_loopback_network;
pub use cgroup_search::{cgroup_contains_process, cgroup_id_of_self, non_pod_cgroup_ids};
pub use code_and_heap_release::{release_code_pages, release_code_pages_and_heap};
pub use host_veth::{HostVeth, find_host_veth};
pub use istio_redirect_check::{IstioRedirectFoundOrUnknown, check_no_istio_redirects};
pub use netns::Netns;
pub use netns_addresses::{is_ipv6_disabled, node_addresses, pod_addresses_in, primary_addresses_in};
pub use open_file_limit::raise_open_file_limit;
pub use process_signals::{StopSignals, die_with_parent, unblock_all_signals};
pub use sandbox_netns::{NoSandbox, find_sandbox_netns};
pub use sock_diag::{
    MOST_LISTED, PreexistingConnections, destroy_connection, destroy_unbound_connection,
    list_preexisting_connections,
};
pub use socket_kind::SocketKind;
pub use sockets_in_netns::{listen_in_netns, open_unconnected_sockets};
pub use tcp_connection::{ANY_COOKIE, Connection, PreexistingConnection};
pub use time_slices::request_short_time_slices;
