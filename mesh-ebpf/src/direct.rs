//! Connections between two pods of this node that go without the proxy: the draw of an endpoint, and what both ends say
//! of a connection while it lives.

use aya_ebpf::bindings::{
    BPF_RB_NO_WAKEUP, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE, BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT,
    bpf_sock,
};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockOpsContext;
use mesh_common::direct::{
    self, Choice, DirectEvent, DirectFlow, DirectSocket, Happened, NO_SERVER, NOTE_NOT_DIRECT, PULSE_LASTS,
    Route, RouteKey,
};
use mesh_common::fault::Fault;
use mesh_common::maps::Endpoint;

use crate::maps::{COUNT_UNTOUCHED, DIRECT_EVENTS, DIRECT_FLOWS, DIRECT_OPEN, OWNERS, PULSE, ROUTES};
use crate::{context, report, sockops};

/// Draws the endpoint of a connection that an enrolled pod opens; none if it is the proxy's, for which `to` then gets a
/// note. The socket is a direct connection's from now on, or no longer. Not inlined: the programs that connect have
/// little stack left.
#[inline(never)]
pub fn endpoint(client: u64, socket: *mut bpf_sock, to: &mut Endpoint) -> Option<&'static Endpoint> {
    if let Some(choice) = draw(client, to)
        && context::make_direct(socket, remembered(choice, *to))
    {
        return Some(&choice.endpoint);
    }
    context::forget_direct(socket);
    None
}

/// A connection of an enrolled pod that the mesh leaves alone: counted if the agent wants that.
#[inline(always)]
pub fn untouched(socket: *mut bpf_sock, to: Endpoint) {
    // SAFETY: a byte of read-only data that is there as long as the program; volatile because the agent sets it after
    // compilation.
    let counted = unsafe { core::ptr::read_volatile(&raw const COUNT_UNTOUCHED) } != 0;
    let alone = DirectSocket { server: NO_SERVER, opened: now(), destination: to, zero: 0 };
    if !counted || !context::make_direct(socket, alone) {
        context::forget_direct(socket);
    }
}

#[inline(always)]
fn draw(client: u64, to: &mut Endpoint) -> Option<&'static Choice> {
    let route = ROUTES.get_ptr_mut(RouteKey::new(client, *to))?;
    // SAFETY: the map answers a valid entry, which stays one for the length of the program, and so for as long as
    // anything of it is used.
    let route: &'static mut Route = unsafe { &mut *route };
    if !agent_lives() {
        return None;
    }
    let ticket = ticket(route)?;
    let Some(choice) = direct::choose(route, ticket) else {
        to.note = NOTE_NOT_DIRECT;
        return None;
    };
    // SAFETY: the entry is copied at once.
    let owner = unsafe { OWNERS.get(choice.endpoint.address) }.copied();
    let as_planned = owner == Some(choice.server) && choice.endpoint.address.is_v4() == to.address.is_v4();
    as_planned.then_some(choice)
}

#[inline(always)]
fn ticket(route: &mut Route) -> Option<u32> {
    let drawn = if route.in_turn == 0 {
        // SAFETY: a helper without arguments; always callable.
        unsafe { bpf_get_prandom_u32() }
    } else {
        let turn = route.turn;
        route.turn = turn.wrapping_add(1);
        turn
    };
    drawn.checked_rem(route.tickets)
}

#[inline(always)]
fn agent_lives() -> bool {
    PULSE.get(0).is_some_and(|beat| now() < beat.wrapping_add(PULSE_LASTS))
}

#[inline(always)]
fn now() -> u64 {
    // SAFETY: a helper without arguments; always callable.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn remembered(choice: &Choice, to: Endpoint) -> DirectSocket {
    DirectSocket { server: choice.server, opened: now(), destination: to, zero: 0 }
}

/// A SYN is about to leave: the other end is told where it may arrive, and the agent that it comes. Where that fails it
/// arrives like any other, at the proxy. (One that is only counted is then not counted.) Answers whether the socket is a
/// direct connection's.
#[inline(never)]
pub fn opening(context: &SockOpsContext, socket: *mut bpf_sock) -> bool {
    let Some(direct) = context::direct_of(socket) else { return false };
    let flow = DirectFlow { client: sockops::local(context), server: sockops::remote(context) };
    let told = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && tell(context, Happened::Opening, direct, &flow, 0)
        && (direct.server == NO_SERVER || DIRECT_FLOWS.insert(flow, direct.server, 0).is_ok());
    if !told {
        let netns = context::netns_cookie(context.ops.cast());
        let _goes_on = report::fault(Fault::DirectFull, netns, flow.server);
    }
    true
}

/// A socket changes its state.
#[inline(never)]
pub fn changed(context: &SockOpsContext, socket: *mut bpf_sock) {
    let Some(direct) = context::direct_of(socket) else { return };
    let flow = DirectFlow { client: sockops::local(context), server: sockops::remote(context) };
    let (from, to) = (context.arg(0), context.arg(1));
    if to == BPF_TCP_ESTABLISHED {
        tell(context, Happened::Established, direct, &flow, 0);
    } else if to == BPF_TCP_CLOSE && from == BPF_TCP_SYN_SENT {
        // Nobody took it; it may have been evicted meanwhile, which is all the same.
        let _gone = DIRECT_FLOWS.remove(flow);
        tell(context, Happened::Failed, direct, &flow, from);
    } else if to == BPF_TCP_CLOSE {
        tell(context, Happened::Closed, direct, &flow, from);
    }
}

/// The accepting end of a connection is complete.
#[inline(never)]
pub fn accepted(context: &SockOpsContext) {
    let flow = DirectFlow { client: sockops::remote(context), server: sockops::local(context) };
    // SAFETY: the entry is copied at once; nobody changes an entry in place.
    let Some(server) = (unsafe { DIRECT_FLOWS.get(flow) }).copied() else { return };
    let _gone = DIRECT_FLOWS.remove(flow);
    if server != context::netns_cookie(context.ops.cast()) {
        let direct = DirectSocket { server, opened: 0, destination: flow.server, zero: 0 };
        tell(context, Happened::Astray, &direct, &flow, 0);
    }
}

/// Whether a connection that arrives is a direct one that may arrive here.
#[inline(always)]
pub fn may_arrive(client: Endpoint, server: Endpoint) -> bool {
    // SAFETY: both entries are copied at once.
    let (expected, owner) =
        unsafe { (DIRECT_FLOWS.get(DirectFlow { client, server }), OWNERS.get(server.address)) };
    match (expected, owner) {
        (Some(expected), Some(owner)) => *expected == *owner,
        _ => false,
    }
}

/// Tells the agent; false if it reads too slowly. Not inlined: an event is large, and there is one stack for all.
#[inline(never)]
fn tell(
    context: &SockOpsContext,
    happened: Happened,
    direct: &DirectSocket,
    flow: &DirectFlow,
    ended_in: u32,
) -> bool {
    let ops = context.ops;
    // SAFETY: the kernel passes a valid context for the length of the program; the verifier checks each load.
    let socket = unsafe { bpf_get_socket_cookie(ops.cast()) };
    if matches!(happened, Happened::Closed | Happened::Failed) {
        let _unknown = DIRECT_OPEN.remove(socket);
    }
    let Some(mut record) = DIRECT_EVENTS.reserve::<DirectEvent>(0) else { return false };
    // SAFETY: as above.
    let (rtt, sent, received) = unsafe { ((*ops).srtt_us >> 3, (*ops).bytes_acked, (*ops).bytes_received) };
    // Written where it is read from: the stack has no room for it.
    let event = record.write(DirectEvent {
        happened: happened as u32,
        rtt,
        socket,
        client_netns: context::netns_cookie(ops.cast()),
        server_netns: direct.server,
        opened: direct.opened,
        now: now(),
        sent,
        received,
        client: flow.client,
        server: flow.server,
        destination: direct.destination,
        ended_in,
    });
    if happened == Happened::Opening {
        // Where there is no room for it the next proxy does not know of it, if there is to be one before its end.
        let _unknown = DIRECT_OPEN.insert(socket, &*event, 0);
    }
    record.submit(u64::from(BPF_RB_NO_WAKEUP));
    true
}
