//! `getsockname4` and `getsockname6`: an application asks for its own address. That of a connection to the
//! proxy is on loopback; whoever tells others where to call back (FTP's active mode, say) must not tell them
//! that.

use aya_ebpf::macros::cgroup_sock_addr;
use aya_ebpf::programs::SockAddrContext;
use mesh_common::address::Address;

use crate::context;
use crate::maps::PODS;

/// IPv4 sockets.
#[cgroup_sock_addr(getsockname4)]
pub fn getsockname4(context: SockAddrContext) -> i32 {
    let own = context::user_endpoint_v4(&context);
    if let Some(address) = replaced(&context, own.address) {
        context::set_user_endpoint_v4(&context, address, own.port);
    }
    1
}

/// IPv6 sockets, IPv4-mapped addresses included.
#[cgroup_sock_addr(getsockname6)]
pub fn getsockname6(context: SockAddrContext) -> i32 {
    let own = context::user_endpoint_v6(&context);
    if let Some(address) = replaced(&context, own.address) {
        context::set_user_endpoint_v6(&context, address, own.port);
    }
    1
}

/// The pod's address of the same family, for a socket that was redirected.
#[inline(always)]
fn replaced(context: &SockAddrContext, own: Address) -> Option<Address> {
    if !own.is_loopback() || context::is_proxy() {
        return None;
    }
    let _redirected = context::shown_peer(context::socket_of(context))?;
    let netns = context::netns_cookie(context::raw(context));
    // SAFETY: the entry is read in this call alone; the keeper replaces entries whole.
    let pod = unsafe { PODS.get(netns) }?;
    let address = if own.is_v4() { pod.address_v4 } else { pod.address_v6 };
    (address != Address::UNSPECIFIED).then_some(address)
}
