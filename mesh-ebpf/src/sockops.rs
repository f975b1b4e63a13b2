//! `sockops`: the moments in a connection's life when its ports are known.

use aya_ebpf::bindings::{
    BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, BPF_SOCK_OPS_STATE_CB, BPF_SOCK_OPS_TCP_CONNECT_CB, BPF_TCP_CLOSE,
    BPF_TCP_ESTABLISHED, bpf_sock_ops,
};
use aya_ebpf::macros::sock_ops;
use aya_ebpf::programs::SockOpsContext;
use aya_log_ebpf::debug;
use core::ptr;
use mesh_common::address::Address;
use mesh_common::fault::Fault;
use mesh_common::maps::{AddressPort, NetnsConnection};

use crate::maps::HANDOFFS;
use crate::{context, direct, report};

/// `AF_INET6`.
const INET6: u32 = 10;

/// Runs for every TCP socket below the cgroup; most have nothing filed and leave after one look-up. What it
/// calls is not inlined, since a function and all that it calls share a stack of 512 bytes.
#[sock_ops]
pub fn socket_ops(context: SockOpsContext) -> u32 {
    match context.op() {
        BPF_SOCK_OPS_TCP_CONNECT_CB => opening(&context),
        BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB => accepted(&context),
        BPF_SOCK_OPS_STATE_CB => changed(&context),
        _ => {}
    }
    0
}

/// A SYN is about to leave and the client's port is known. What is remembered with the socket (by `connect`
/// for an application's, by the agent for its own) is filed for the other end, before that can accept.
#[inline(always)]
fn opening(context: &SockOpsContext) {
    let socket = context::socket_of_ops(context.ops);
    if socket.is_null() {
        return;
    }
    if direct::opening(context, socket) {
        return;
    }
    if let Some(peer) = context::shown_peer(socket) {
        file(context, peer);
    }
}

#[inline(never)]
fn file(context: &SockOpsContext, peer: AddressPort) {
    let netns = context::netns_cookie(context.ops.cast());
    let handoff = NetnsConnection { netns, client: local(context), server: remote(context) };
    log_filed(context, netns, peer.port);
    if HANDOFFS.insert(handoff, peer, 0).is_err() {
        // The verdict can't be given here, but the proxy refuses a connection that comes without a
        // destination.
        let _refused = report::fault(Fault::HandoffFull, netns, peer);
    }
}

/// Not inlined, and not in the programs that connect: what a line is put together in takes a third of the
/// stack.
#[inline(never)]
fn log_filed(context: &SockOpsContext, netns: u64, port: u16) {
    debug!(context, "netns {} to port {}: filed for the accepting end", netns, port);
}

/// The accepting end of a connection is complete, and `accept()` waits on the socket's lock until this is
/// done (kernel: `tcp_child_process`). What the connecting end filed is kept with the new socket from now on.
#[inline(always)]
fn accepted(context: &SockOpsContext) {
    direct::accepted(context);
    take(context);
}

#[inline(never)]
fn take(context: &SockOpsContext) {
    let netns = context::netns_cookie(context.ops.cast());
    let handoff = NetnsConnection { netns, client: remote(context), server: local(context) };
    // SAFETY: the entry is copied at once; nobody changes an entry in place.
    let Some(peer) = (unsafe { HANDOFFS.get(handoff) }).copied() else { return };
    // It may have been evicted meanwhile, which is all the same.
    let _gone = HANDOFFS.remove(handoff);
    let socket = context::socket_of_ops(context.ops);
    if socket.is_null() || !context::show_peer(socket, peer) {
        let _goes_on = report::fault(Fault::ClientStorage, netns, peer);
    }
}

/// Only sockets that asked for it come here: those of direct connections. Of their states two matter, and
/// most changes are to others.
#[inline(always)]
fn changed(context: &SockOpsContext) {
    if !matches!(context.arg(1), BPF_TCP_ESTABLISHED | BPF_TCP_CLOSE) {
        return;
    }
    let socket = context::socket_of_ops(context.ops);
    if socket.is_null() {
        return;
    }
    direct::changed(context, socket);
}

/// The socket's own end.
#[inline(never)]
pub fn local(context: &SockOpsContext) -> AddressPort {
    // An IPv6 socket that is connected to an IPv4-mapped address has its local address in the IPv4 field for
    // sure.
    let address = if is_v6(context) {
        Address::from_be32x4(words(context, |ops| {
            // SAFETY: the kernel passes a valid context for the length of the program.
            unsafe { ptr::addr_of!((*ops).local_ip6).cast::<u32>() }
        }))
    } else {
        Address::from_be32(context.local_ip4())
    };
    AddressPort::new(address, context.local_port() as u16)
}

/// The other end.
#[inline(never)]
pub fn remote(context: &SockOpsContext) -> AddressPort {
    let address = if is_v6(context) { remote_v6(context) } else { Address::from_be32(context.remote_ip4()) };
    AddressPort::new(address, remote_port(context))
}

/// The context holds it in network order in the first half of a 32-bit word (kernel:
/// `sock_ops_convert_ctx_access`).
#[inline(always)]
fn remote_port(context: &SockOpsContext) -> u16 {
    u32::from_be(context.remote_port()) as u16
}

/// Whether the connection itself, not only the socket, is IPv6.
#[inline(always)]
fn is_v6(context: &SockOpsContext) -> bool {
    context.family() == INET6 && !remote_v6(context).is_v4()
}

#[inline(always)]
fn remote_v6(context: &SockOpsContext) -> Address {
    Address::from_be32x4(words(context, |ops| {
        // SAFETY: the kernel passes a valid context for the length of the program.
        unsafe { ptr::addr_of!((*ops).remote_ip6).cast::<u32>() }
    }))
}

#[inline(always)]
fn words(context: &SockOpsContext, field: impl Fn(*mut bpf_sock_ops) -> *const u32) -> [u32; 4] {
    let at = field(context.ops);
    // SAFETY: four words inside the context; volatile because the verifier refuses merged loads.
    unsafe {
        [
            ptr::read_volatile(at),
            ptr::read_volatile(at.add(1)),
            ptr::read_volatile(at.add(2)),
            ptr::read_volatile(at.add(3)),
        ]
    }
}
