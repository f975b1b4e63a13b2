//! `getpeername4` and `getpeername6`: an application asks who it talks to. They run for `accept()`'s address too.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::maps::Endpoint;

use crate::context;

/// IPv4 sockets: clients see the address that they asked for, servers the real client's.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    if let Some(peer) = peer_for_application(&context) {
        context::set_user_endpoint_v4(&context, peer.address, peer.port);
    }
    1
}

/// IPv6 sockets, IPv4-mapped peers included.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    if let Some(peer) = peer_for_application(&context) {
        context::set_user_endpoint_v6(&context, peer.address, peer.port);
    }
    1
}

/// The agent itself sees its true peers, and reads what is remembered with a socket from the map.
#[inline(always)]
fn peer_for_application(context: &SockAddrContext) -> Option<Endpoint> {
    if context::is_agent() == Some(true) {
        return None;
    }
    context::shown_peer(context::socket_of(context))
}
