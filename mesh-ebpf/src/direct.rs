//! Connections between two pods of this node that go without the proxy: the draw of an endpoint, and what
//! both ends say of a connection while it lives.

use aya_ebpf::bindings::{
    BPF_RB_AVAIL_DATA, BPF_RB_FORCE_WAKEUP, BPF_RB_NO_WAKEUP, BPF_SOCK_OPS_STATE_CB_FLAG, BPF_TCP_CLOSE,
    BPF_TCP_ESTABLISHED, BPF_TCP_SYN_SENT, bpf_sock,
};
use aya_ebpf::helpers::generated::{bpf_get_prandom_u32, bpf_get_socket_cookie, bpf_ktime_get_ns};
use aya_ebpf::programs::SockOpsContext;
use core::ptr;
use mesh_common::address::Address;
use mesh_common::direct::{
    self, AGENT_BEAT_TTL_NS, ArrivalVerdict, CONNECT_YES_TTL_NS, DirectEvent, DirectEventKind,
    DirectFlowEntry, DirectFlowKey, DirectRoute, DirectRouteKey, DirectSocket, NO_SERVER, NOTE_NOT_DIRECT,
    NOTE_PROBE, PROXY_AFTER_RING_FULL_NS, PROXY_AFTER_TABLE_FULL_NS, RouteEndpoint,
};
use mesh_common::fault::Fault;
use mesh_common::maps::AddressPort;
use mesh_common::veth::SameNodePath;

use crate::context::{self, SocketAddress};
use crate::maps::{
    COUNT_UNTOUCHED, DIRECT_EVENTS, DIRECT_FLOWS, DIRECT_OPEN, NO_ROOM, OWNERS, PROBES, PULSE, ROUTES,
};
use crate::{filing, probe, report, sockops};

/// Draws the endpoint of a connection that an enrolled pod opens, and puts it in `address`. That stays as it
/// is if the connection is the proxy's, for which `to` then gets a note. The socket is a direct connection's
/// from now on, or no longer. Not inlined: the programs that connect have little stack left.
#[inline(never)]
pub fn endpoint(client: u64, socket: *mut bpf_sock, to: &mut AddressPort, address: &mut SocketAddress) {
    if let Some((server, endpoint)) = draw(client, to)
        && context::make_direct(socket, remembered(server, *to))
    {
        *address = endpoint;
        return;
    }
    context::forget_direct(socket);
}

/// A connection of an enrolled pod that the mesh leaves alone: counted if the agent wants that.
#[inline(always)]
pub fn untouched(socket: *mut bpf_sock, to: AddressPort) {
    // SAFETY: a byte of read-only data that is there as long as the program; volatile because the agent sets
    // it after compilation.
    let counted = unsafe { ptr::read_volatile(&raw const COUNT_UNTOUCHED) } != 0;
    let alone = DirectSocket { server: NO_SERVER, opened: now(), destination: to, zero: 0 };
    if !counted || !context::make_direct(socket, alone) {
        context::forget_direct(socket);
    }
}

#[inline(always)]
fn draw(client: u64, to: &mut AddressPort) -> Option<(u64, SocketAddress)> {
    let route = ROUTES.get_ptr_mut(DirectRouteKey::new(client, *to))?;
    // SAFETY: the map answers memory that holds an entry for the length of the program. It need not be this
    // one all the time: the memory of an entry that is replaced may be another's at once.
    let route: &'static mut DirectRoute = unsafe { &mut *route };
    if !agent_lives() {
        return None;
    }
    let ticket = ticket(route)?;
    let Some(choice) = direct::endpoint_for_ticket(route, ticket) else {
        to.note = NOTE_NOT_DIRECT;
        return None;
    };
    // What is checked has to be what is used, so it is copied first.
    let (server, endpoint) = copy(choice);
    if !is_still(route, client, to) {
        return None;
    }
    let address = Address::from_be32x4(endpoint.words);
    // SAFETY: the entry is copied at once.
    let owner = unsafe { OWNERS.get(address) }.copied();
    let as_planned = owner == Some(server) && address.is_v4() == to.address.is_v4();
    (as_planned && has_way(client, server)).then_some((server, endpoint))
}

/// Whether there is a way to a server that nobody else is on, and room to file what takes it.
#[inline(never)]
fn has_way(client: u64, server: u64) -> bool {
    match filing::way(client, server) {
        SameNodePath::Veth | SameNodePath::Plain => filing::has_room(client),
        SameNodePath::Proxy => false,
    }
}

/// Whether a connection that goes directly can be filed and told of, as far as can be known now: when its SYN
/// leaves it is too late to go another way. Not inlined, and asked before [`endpoint`] is: there is one stack
/// for all.
#[inline(never)]
pub fn is_room(client: u64, to: &AddressPort) -> bool {
    let Some(until) = NO_ROOM.get_ptr_mut(0) else { return false };
    let now = now();
    // SAFETY: a word of an array, which is there as long as the program; volatile, since other cores write
    // it.
    if now < unsafe { ptr::read_volatile(until) } {
        return false;
    }
    if direct::ring_has_room(DIRECT_EVENTS.query(u64::from(BPF_RB_AVAIL_DATA))) {
        return true;
    }
    // SAFETY: as above.
    unsafe { ptr::write_volatile(until, now.wrapping_add(PROXY_AFTER_RING_FULL_NS)) };
    let _the_proxys = report::fault(Fault::DirectFull, client, *to);
    false
}

#[inline(always)]
fn copy(choice: &RouteEndpoint) -> (u64, SocketAddress) {
    // SAFETY: all of it is inside the choice, where the address begins at a multiple of eight bytes; any
    // bytes are valid. Volatile, so that nothing of it is read a second time.
    unsafe {
        let address = (&raw const choice.endpoint.address).cast::<u32>();
        let words = [
            ptr::read_volatile(address),
            ptr::read_volatile(address.add(1)),
            ptr::read_volatile(address.add(2)),
            ptr::read_volatile(address.add(3)),
        ];
        let port = u32::from(ptr::read_volatile(&raw const choice.endpoint.port));
        (ptr::read_volatile(&raw const choice.server), SocketAddress { words, port })
    }
}

/// Whether the memory of a route is that of this one still. A new owner writes the key first.
#[inline(always)]
fn is_still(route: &DirectRoute, client: u64, destination: &AddressPort) -> bool {
    // SAFETY: all of it is inside the route, where the address begins at a multiple of eight bytes; any bytes
    // are valid. Volatile, so that it is read now.
    unsafe {
        let key = &raw const route.key;
        let address = (&raw const (*key).destination.address).cast::<u32>();
        ptr::read_volatile(&raw const (*key).client) == client
            && ptr::read_volatile(&raw const (*key).destination.port) == destination.port
            && ptr::read_volatile(address) == word(destination, 0)
            && ptr::read_volatile(address.add(1)) == word(destination, 1)
            && ptr::read_volatile(address.add(2)) == word(destination, 2)
            && ptr::read_volatile(address.add(3)) == word(destination, 3)
    }
}

/// A word of an address, in network order as it is in memory.
#[inline(always)]
fn word(endpoint: &AddressPort, index: usize) -> u32 {
    let at = 4 * index;
    let octets = &endpoint.address.0;
    u32::from_ne_bytes([octets[at], octets[at + 1], octets[at + 2], octets[at + 3]])
}

#[inline(always)]
fn ticket(route: &mut DirectRoute) -> Option<u32> {
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
pub fn agent_lives() -> bool {
    PULSE.get(0).is_some_and(|beat| now() < beat.wrapping_add(AGENT_BEAT_TTL_NS))
}

/// The time, in nanoseconds of `CLOCK_MONOTONIC`.
#[inline(always)]
pub fn now() -> u64 {
    // SAFETY: a helper without arguments; always callable.
    unsafe { bpf_ktime_get_ns() }
}

#[inline(always)]
fn remembered(server: u64, to: AddressPort) -> DirectSocket {
    DirectSocket { server, opened: now(), destination: to, zero: 0 }
}

/// A SYN is about to leave: the other end is told where it may arrive, and the agent that it comes. Where
/// that fails it arrives like any other, at the proxy, and nothing more is told of it. (One that is only
/// counted is then not counted.) Where the yes of `connect` is no more, it is refused. Returns whether the
/// socket was a direct connection's.
#[inline(never)]
pub fn opening(context: &SockOpsContext, socket: *mut bpf_sock) -> bool {
    let Some(direct) = context::direct_of(socket) else { return false };
    if direct.destination.note == NOTE_PROBE {
        probe::opening(context, socket, direct);
        return true;
    }
    let flow = DirectFlowKey { client: sockops::local(context), server: sockops::remote(context) };
    let goes = direct.server == NO_SERVER
        || take_way(context, socket, direct.server, &flow) && file(context, socket, direct, &flow);
    if !goes {
        return true;
    }
    let told = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && tell(context, DirectEventKind::Opening, direct, &flow, 0);
    if !told {
        not_announced(context, socket, &flow);
    }
    true
}

/// Files where a connection may arrive, and then looks whether it still may: whoever takes the yes back
/// meanwhile either finds what is filed, or has taken it back before this looks.
#[inline(never)]
fn file(
    context: &SockOpsContext,
    socket: *mut bpf_sock,
    direct: &DirectSocket,
    flow: &DirectFlowKey,
) -> bool {
    let client = context::netns_cookie(context.ops.cast());
    let mut filed = DirectFlowEntry { server: direct.server, client, at: now() };
    if DIRECT_FLOWS.insert(flow, filed, 0).is_err() {
        not_announced(context, socket, flow);
        return false;
    }
    if still_holds(client, direct, &flow.server) {
        return true;
    }
    filed.server = NO_SERVER;
    // It replaces the entry, for which there is room. The socket's end takes it away.
    let refused = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32).is_ok()
        && DIRECT_FLOWS.insert(flow, filed, 0).is_ok()
        && context::make_direct(socket, DirectSocket { server: NO_SERVER, ..*direct });
    if !refused {
        let _gone = DIRECT_FLOWS.remove(flow);
        context::forget_direct(socket);
    }
    let _refused = report::fault(Fault::Withdrawn, client, flow.server);
    false
}

#[inline(never)]
fn not_announced(context: &SockOpsContext, socket: *mut bpf_sock, flow: &DirectFlowKey) {
    let _gone = DIRECT_FLOWS.remove(flow);
    context::forget_direct(socket);
    if let Some(until) = NO_ROOM.get_ptr_mut(0) {
        // SAFETY: as in `is_room`.
        unsafe { ptr::write_volatile(until, now().wrapping_add(PROXY_AFTER_TABLE_FULL_NS)) };
    }
    let netns = context::netns_cookie(context.ops.cast());
    let _goes_on = report::fault(Fault::DirectFull, netns, flow.server);
}

/// Whether the yes that `connect` drew may be used now: a program can put time between the two
/// (`TCP_FASTOPEN_CONNECT`).
#[inline(never)]
fn still_holds(client: u64, direct: &DirectSocket, server: &AddressPort) -> bool {
    // SAFETY: the entry is copied at once.
    let owner = unsafe { OWNERS.get(server.address) }.copied();
    if owner != Some(direct.server) {
        return false;
    }
    if now() < direct.opened.wrapping_add(CONNECT_YES_TTL_NS) {
        return true;
    }
    // SAFETY: any bytes are valid, and what was read is used only if the memory is this route's afterwards.
    let route = unsafe { ROUTES.get(DirectRouteKey::new(client, direct.destination)) };
    agent_lives()
        && route.is_some_and(|route| {
            direct::route_has_endpoint(route, direct.server, server)
                && is_still(route, client, &direct.destination)
        })
}

/// Files the connection if it goes from veth to veth. One that was to and can't fails: it would be seen on
/// the way.
#[inline(never)]
fn take_way(context: &SockOpsContext, socket: *mut bpf_sock, server: u64, flow: &DirectFlowKey) -> bool {
    let client = context::netns_cookie(context.ops.cast());
    filing::forget(socket);
    let taken = match filing::way(client, server) {
        SameNodePath::Veth => filing::file(context, socket, server, flow),
        SameNodePath::Plain => true,
        SameNodePath::Proxy => false,
    };
    if !taken {
        context::forget_direct(socket);
        let _unbound_never = context.set_cb_flags(BPF_SOCK_OPS_STATE_CB_FLAG as i32);
        filing::refuse(context, socket, flow);
        let _refused = report::fault(Fault::NoWay, client, flow.server);
    }
    taken
}

/// A socket changes its state.
#[inline(never)]
pub fn changed(context: &SockOpsContext, socket: *mut bpf_sock) {
    let (from, to) = (context.arg(0), context.arg(1));
    if to == BPF_TCP_CLOSE {
        filing::closed(socket, from);
        filing::unbind(context, socket);
    }
    let Some(direct) = context::direct_of(socket) else { return };
    let flow = DirectFlowKey { client: sockops::local(context), server: sockops::remote(context) };
    if to == BPF_TCP_ESTABLISHED {
        tell(context, DirectEventKind::Established, direct, &flow, 0);
    } else if to == BPF_TCP_CLOSE {
        // Usually the accepting end has taken it. Where nobody accepted, though the handshake was over for
        // this end, it would go on letting a connection in when the policy has long changed.
        let _gone = if direct.destination.note == NOTE_PROBE {
            PROBES.remove(flow)
        } else {
            DIRECT_FLOWS.remove(flow)
        };
        let kind = if from == BPF_TCP_SYN_SENT { DirectEventKind::Failed } else { DirectEventKind::Closed };
        tell(context, kind, direct, &flow, from);
    }
}

/// The accepting end of a connection is complete.
#[inline(never)]
pub fn accepted(context: &SockOpsContext) {
    let flow = DirectFlowKey { client: sockops::remote(context), server: sockops::local(context) };
    let guarded = filing::accepted(context, &flow);
    // SAFETY: the entry is copied at once.
    let Some(filed) = (unsafe { DIRECT_FLOWS.get(flow) }).copied() else { return };
    let _gone = DIRECT_FLOWS.remove(flow);
    if !guarded || filed.server != context::netns_cookie(context.ops.cast()) {
        let direct = DirectSocket { server: filed.server, opened: 0, destination: flow.server, zero: 0 };
        tell(context, DirectEventKind::Astray, &direct, &flow, 0);
    }
}

/// What becomes of a connection that arrives at a pod, if it was to be a direct one.
#[inline(always)]
pub fn arrival(pod: u64, client: AddressPort, server: AddressPort) -> ArrivalVerdict {
    // SAFETY: the entry is copied at once.
    match unsafe { DIRECT_FLOWS.get(DirectFlowKey { client, server }) }.copied() {
        Some(filed) => filed.arrival_verdict(pod, now(), agent_lives()),
        None => ArrivalVerdict::Other,
    }
}

/// Tells the agent; false if it reads too slowly. Not inlined: an event is large, and there is one stack for
/// all.
#[inline(never)]
pub fn tell(
    context: &SockOpsContext,
    kind: DirectEventKind,
    remembered: &DirectSocket,
    flow: &DirectFlowKey,
    ended_in: u32,
) -> bool {
    let ops = context.ops;
    // SAFETY: the kernel passes a valid context for the length of the program; the verifier checks each load.
    let socket = unsafe { bpf_get_socket_cookie(ops.cast()) };
    if matches!(kind, DirectEventKind::Closed | DirectEventKind::Failed) {
        let _unknown = DIRECT_OPEN.remove(socket);
    }
    let Some(mut record) = DIRECT_EVENTS.reserve::<DirectEvent>(0) else { return false };
    // SAFETY: as above.
    let (rtt, sent, received) = unsafe { ((*ops).srtt_us >> 3, (*ops).bytes_acked, (*ops).bytes_received) };
    // Written where it is read from: the stack has no room for it.
    let event = record.write(DirectEvent {
        kind: kind as u32,
        rtt,
        socket,
        client_netns: context::netns_cookie(ops.cast()),
        server_netns: remembered.server,
        opened: remembered.opened,
        now: now(),
        sent,
        received,
        client: flow.client,
        server: flow.server,
        destination: remembered.destination,
        ended_in,
    });
    // One that is only counted is none of the next proxy's business.
    if kind == DirectEventKind::Opening
        && remembered.server != NO_SERVER
        && DIRECT_OPEN.insert(socket, &*event, 0).is_err()
    {
        event.kind = DirectEventKind::Unlisted as u32;
        let _goes_on = report::fault(Fault::OpenFull, event.client_netns, flow.server);
    }
    // A ring that is full has connections go through the proxy.
    let urgent = direct::ring_should_wake_agent(DIRECT_EVENTS.query(u64::from(BPF_RB_AVAIL_DATA)));
    record.submit(u64::from(if urgent { BPF_RB_FORCE_WAKEUP } else { BPF_RB_NO_WAKEUP }));
    true
}
