//! How direct connections that go from veth to veth are filed: from before their SYN leaves until both ends
//! are closed. Run by the hooks of `connect` and `sockops`; packets are looked at in [`crate::veth`].

use aya_ebpf::bindings::{BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_SYN_SENT, bpf_sock};
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_ktime_get_ns, bpf_setsockopt};
use aya_ebpf::programs::SockOpsContext;
use core::ptr;
use mesh_common::direct::DirectFlowKey;
use mesh_common::veth::{
    self, COUNT_OF_ALL_CLIENTS, CROWDED_ALL_CLIENTS, CROWDED_FOR_GOOD, CROWDED_FOR_NOW, DirectPathMode,
    FlowDirection, HARD_MAX_FLOWS_OF_NODE, MAX_FLOWS_OF_CLIENT, MAX_FLOWS_OF_NODE, SameNodePath, VethFlow,
    VethFlowSocket,
};

use crate::context;
use crate::maps::{CROWDED, OWNERS, SAME_NODE, VETH_COUNTS, VETH_FLOWS, VETHS};

/// The way between two pods, when a connection is about to be drawn or opened.
#[inline(always)]
pub fn way(client: u64, server: u64) -> SameNodePath {
    // SAFETY: a byte of read-only data that is there as long as the program; volatile because the keeper sets
    // it after compilation.
    let direct = unsafe { ptr::read_volatile(&raw const SAME_NODE) } == DirectPathMode::Direct as u8;
    let wanted = if direct { DirectPathMode::Direct } else { DirectPathMode::Auto };
    // SAFETY: both entries are copied at once.
    let (client, server) = unsafe { (VETHS.get(client).copied(), VETHS.get(server).copied()) };
    veth::same_node_path(wanted, client, server)
}

/// Whether a client may have another direct connection.
#[inline(always)]
pub fn has_room(client: u64) -> bool {
    // SAFETY: only their presence is looked at.
    unsafe { CROWDED.get(client).is_none() && CROWDED.get(CROWDED_ALL_CLIENTS).is_none() }
}

/// Files a connection whose SYN is about to leave. Returns false, with nothing left of it, if that is not
/// possible.
#[inline(never)]
pub fn file(context: &SockOpsContext, socket: *mut bpf_sock, server: u64, flow: &DirectFlowKey) -> bool {
    let client = context::netns_cookie(context.ops.cast());
    // SAFETY: both entries are copied at once.
    let (from, to) = unsafe { (VETHS.get(client), VETHS.get(server)) };
    let (Some(from), Some(to)) = (from, to) else { return false };
    let (from, to) = (from.ifindex, to.ifindex);
    // SAFETY: as above.
    let is_own = unsafe { OWNERS.get(&flow.client.address) }.is_some_and(|owner| *owner == client);
    // A socket can have any address that its program likes (`IPV6_FREEBIND`); and a pod may have some that
    // the mesh does not know, whose packets nobody would look at.
    if !is_own || !veth::has_veth_flow_ports(&flow.client, &flow.server) {
        keep_off(client, CROWDED_FOR_GOOD);
        return false;
    }
    if count_of(COUNT_OF_ALL_CLIENTS) >= HARD_MAX_FLOWS_OF_NODE as u32 {
        keep_off(CROWDED_ALL_CLIENTS, CROWDED_FOR_NOW);
        return false;
    }
    let direction = FlowDirection { from: flow.client, to: flow.server };
    let cookie = cookie(context);
    let end = VethFlowSocket { flow: direction, socket: cookie, is_server: 0 };
    // What is left of a connection of the same addresses and ports, which is counted already.
    let _gone = VETH_FLOWS.remove(direction.half_closed_key());
    // SAFETY: only its presence is looked at.
    let follows = unsafe { VETH_FLOWS.get(&direction) }.is_some();
    let filed = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && insert(&direction, cookie, [from, to], 1)
        && insert(&direction.reversed(), cookie, [to, from], 0)
        && context::make_veth_end(socket, end);
    if !filed {
        remove(&direction);
        keep_off(client, CROWDED_FOR_NOW);
        return false;
    }
    if follows {
        return true;
    }
    if count_one_more(from) >= MAX_FLOWS_OF_CLIENT as u32 {
        keep_off(client, CROWDED_FOR_NOW);
    }
    if count_one_more(COUNT_OF_ALL_CLIENTS) >= MAX_FLOWS_OF_NODE as u32 {
        keep_off(CROWDED_ALL_CLIENTS, CROWDED_FOR_NOW);
    }
    true
}

#[inline(never)]
fn count_of(client: u32) -> u32 {
    // SAFETY: four bytes that are copied at once.
    unsafe { VETH_COUNTS.get(client) }.copied().unwrap_or(0)
}

/// Counts a connection, and returns how many there are. Where that can't be known they are too many.
#[inline(never)]
fn count_one_more(client: u32) -> u32 {
    match VETH_COUNTS.get_ptr_mut(client) {
        // SAFETY: four aligned bytes of the map that are there as long as the program.
        Some(count) => unsafe {
            let more = ptr::read_volatile(count).saturating_add(1);
            ptr::write_volatile(count, more);
            more
        },
        None if VETH_COUNTS.insert(client, 1, 0).is_ok() => 1,
        None => u32::MAX,
    }
}

#[inline(never)]
fn count_one_less(client: u32) {
    if let Some(count) = VETH_COUNTS.get_ptr_mut(client) {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(count, ptr::read_volatile(count).saturating_sub(1)) };
    }
}

/// The further connections of a client are the proxy's.
#[inline(never)]
pub fn keep_off(client: u64, how_long: u32) {
    let _full = CROWDED.insert(client, how_long, 0);
}

/// A socket connects some other way than before.
#[inline(always)]
pub fn forget(socket: *mut bpf_sock) {
    context::forget_veth_end(socket);
}

#[inline(never)]
fn insert(direction: &FlowDirection, client: u64, [in_if, out_if]: [u32; 2], of_client: u16) -> bool {
    // SAFETY: a helper without arguments; always callable.
    let filed = unsafe { bpf_ktime_get_ns() };
    let flow = VethFlow { client, filed, in_if, out_if, of_client, ..VethFlow::NONE };
    VETH_FLOWS.insert(direction, flow, 0).is_ok()
}

#[inline(never)]
fn remove(direction: &FlowDirection) {
    let _gone = VETH_FLOWS.remove(direction);
    let _gone = VETH_FLOWS.remove(direction.reversed());
    let _gone = VETH_FLOWS.remove(direction.half_closed_key());
}

/// The accepting end of a connection is complete. From here on its socket is guarded by what is remembered
/// with it. Where that fails nothing is sent any more, by either end, and the agent is to close it: answers
/// false.
#[inline(never)]
pub fn accepted(context: &SockOpsContext, flow: &DirectFlowKey) -> bool {
    let direction = FlowDirection { from: flow.client, to: flow.server };
    let Some(entry) = VETH_FLOWS.get_ptr_mut(direction) else { return true };
    let socket = context::socket_of_ops(context.ops);
    let cookie = cookie(context);
    let end = VethFlowSocket { flow: direction, socket: cookie, is_server: 1 };
    // SAFETY: eight aligned bytes of the map that are there as long as the program.
    unsafe { ptr::write_volatile(&raw mut (*entry).server, cookie) };
    let guarded = !socket.is_null()
        && context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && context::make_veth_end(socket, end);
    if !guarded {
        block(&direction);
        block(&direction.reversed());
    }
    guarded
}

#[inline(never)]
fn block(direction: &FlowDirection) {
    if let Some(flow) = VETH_FLOWS.get_ptr_mut(direction) {
        // SAFETY: four aligned bytes of the map that are there as long as the program.
        unsafe { ptr::write_volatile(&raw mut (*flow).out_if, 0) };
    }
}

/// A socket has closed. An entry lives as long as either socket: what one sends last is payload too. One of
/// the same addresses and ports that was filed meanwhile is another connection's.
#[inline(never)]
pub fn closed(socket: *mut bpf_sock, from: u32) {
    let Some(end) = context::veth_end_of(socket).copied() else { return };
    forget(socket);
    let Some(flow) = VETH_FLOWS.get_ptr_mut(end.flow) else { return };
    // SAFETY: aligned words of the map that are there as long as the program.
    let (client, server, interface) = unsafe {
        (
            ptr::read_volatile(&raw const (*flow).client),
            ptr::read_volatile(&raw const (*flow).server),
            ptr::read_volatile(&raw const (*flow).in_if),
        )
    };
    let is_server = end.is_server != 0;
    if end.socket != (if is_server { server } else { client }) {
        return;
    }
    let never_was = !is_server && from == BPF_TCP_SYN_SENT;
    if never_was || !is_first(&end.flow, flow) {
        remove(&end.flow);
        if interface != NOWHERE {
            count_one_less(interface);
        }
        count_one_less(COUNT_OF_ALL_CLIENTS);
    }
}

/// Whether it is the first of the two ends that says so: of two at the same time one is, unless there is no
/// room to note it.
#[inline(never)]
fn is_first(direction: &FlowDirection, flow: *mut VethFlow) -> bool {
    /// `BPF_NOEXIST` of `linux/bpf.h`, and `-EEXIST` of `asm-generic/errno-base.h`.
    const NOEXIST: u64 = 1;
    const EXISTS: i32 = -17;
    // As a number: the verifier refuses to compare what a success has none of.
    let failed = VETH_FLOWS.insert(direction.half_closed_key(), VethFlow::NONE, NOEXIST).err().unwrap_or(0);
    // SAFETY: two aligned bytes of the map that are there as long as the program.
    let before = unsafe { ptr::read_volatile(&raw const (*flow).of_client) };
    if failed != 0 && failed != EXISTS {
        // SAFETY: as above.
        unsafe { ptr::write_volatile(&raw mut (*flow).of_client, VethFlow::HALF_CLOSED) };
    }
    failed != EXISTS && before != VethFlow::HALF_CLOSED
}

/// Has a connection fail whose SYN is about to leave: it was to be direct, and must not go in plaintext over
/// what is between the two. The socket is bound to an interface that does not exist, so that it finds no
/// route (kernel: `tcp_connect`, `rebuild_header`); [`unbind`] takes that back.
///
/// A program that has bound its socket to an interface by itself, and has no `CAP_NET_RAW`, would have to be
/// asked (kernel: `sock_bindtoindex_locked`): there a flow is filed that leads nowhere, and what is sent is
/// dropped at the pod's veth.
#[inline(never)]
pub fn refuse(context: &SockOpsContext, socket: *mut bpf_sock, flow: &DirectFlowKey) {
    if bind(context, NO_INTERFACE) {
        return;
    }
    let direction = FlowDirection { from: flow.client, to: flow.server };
    let cookie = cookie(context);
    let end = VethFlowSocket { flow: direction, socket: cookie, is_server: 0 };
    let dropped = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && context::make_veth_end(socket, end)
        && insert(&direction, cookie, [NOWHERE; 2], 1)
        && insert(&direction.reversed(), cookie, [NOWHERE; 2], 0);
    if dropped {
        let _counted = count_one_more(COUNT_OF_ALL_CLIENTS);
    }
}

/// Takes back what [`refuse`] did, when the connection has failed.
#[inline(never)]
pub fn unbind(context: &SockOpsContext, socket: *mut bpf_sock) {
    // SAFETY: not null by the caller's check; the verifier checks the load.
    if unsafe { (*socket).bound_dev_if } == NO_INTERFACE as u32 {
        let _stays_bound = bind(context, 0);
    }
}

/// Indices of no interface: they are counted up from 1.
const NO_INTERFACE: i32 = i32::MAX;
const NOWHERE: u32 = 0;

#[inline(always)]
fn bind(context: &SockOpsContext, mut interface: i32) -> bool {
    /// `SOL_SOCKET` and `SO_BINDTOIFINDEX` of `asm-generic/socket.h`.
    const SOL_SOCKET: i32 = 1;
    const SO_BINDTOIFINDEX: i32 = 62;
    // SAFETY: the context is the program's own, and the value lives until the call is over.
    let result = unsafe {
        bpf_setsockopt(
            context.ops.cast(),
            SOL_SOCKET,
            SO_BINDTOIFINDEX,
            (&raw mut interface).cast(),
            size_of::<i32>() as i32,
        )
    };
    result == 0
}

#[inline(always)]
fn cookie(context: &SockOpsContext) -> u64 {
    // SAFETY: the context is the program's own, which this helper asks for.
    unsafe { bpf_get_socket_cookie(context.ops.cast()) }
}
