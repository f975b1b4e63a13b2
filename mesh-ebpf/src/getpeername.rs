//! `getpeername4` and `getpeername6`: an application asks who it talks to. They run for `accept()`'s address
//! too.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::address::Address;
use mesh_common::maps::AddressPort;
use mesh_common::redirect_rules;

use crate::context;
use crate::maps::PODS;

/// IPv4 sockets: clients see the address that they asked for, servers the real client's.
#[cgroup_sock_addr(getpeername4)]
pub fn getpeername4(context: SockAddrContext) -> i32 {
    if let Some(peer) =
        replaced(&context, context::user_endpoint_v4(&context), context::own_address_v4(&context))
    {
        context::set_user_endpoint_v4(&context, peer.address, peer.port);
    }
    1
}

/// IPv6 sockets, IPv4-mapped peers included.
#[cgroup_sock_addr(getpeername6)]
pub fn getpeername6(context: SockAddrContext) -> i32 {
    let true_peer = context::user_endpoint_v6(&context);
    let own = if true_peer.address.is_v4() {
        context::own_address_v4(&context)
    } else {
        context::own_address_v6(&context)
    };
    if let Some(peer) = replaced(&context, true_peer, own) {
        context::set_user_endpoint_v6(&context, peer.address, peer.port);
    }
    1
}

/// What to show instead of the true peer; nothing for the proxy itself, which reads what is remembered with a
/// socket from the map.
#[inline(always)]
fn replaced(context: &SockAddrContext, peer: AddressPort, own: Address) -> Option<AddressPort> {
    if context::is_proxy() {
        return None;
    }
    if let Some(shown) = context::shown_peer(context::socket_of(context)) {
        return Some(shown);
    }
    // Only the proxy's deliveries can be mistaken, and they are made to enrolled pods alone.
    let netns = context::netns_cookie(context::raw(context));
    // SAFETY: only its presence is looked at.
    if unsafe { PODS.get(netns) }.is_none() {
        return None;
    }
    let address = redirect_rules::visible_peer_address(own, peer.address);
    if address == peer.address { None } else { Some(AddressPort::new(address, peer.port)) }
}
