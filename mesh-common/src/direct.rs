//! Direct connections, between two pods of one node without the proxy: the agent's decisions about them, and
//! the programs' events.
//!
//! The agent decides for each (client, destination) with the full policy, and writes its yes as a
//! [`DirectRoute`]; the programs choose among the endpoints of that and never match a rule. Without a route
//! the connection goes to the proxy. A pod is identified by its network namespace's cookie at both ends,
//! never by its address, so that a pod with a reused address inherits nothing.

use crate::maps::AddressPort;

/// Most endpoints of one destination that the kernel chooses among; further ones are the proxy's.
pub const MAX_ROUTE_ENDPOINTS: usize = 16;
/// Most routes of a node.
pub const MAX_ROUTES: u32 = 16_384;
/// Most direct connections between their SYN and the end of their handshake at one time.
pub const MAX_DIRECT_FLOWS: u32 = 65_536;

/// Most direct connections that a proxy finds again after another one has died. Further ones have events
/// while they live, which say that they are not listed ([`DirectEventKind::Unlisted`]).
pub const MAX_DIRECT_OPEN: u32 = 65_536;

/// Bytes of the ring buffer `DIRECT_EVENTS`. The agent maps all of it, so an idle agent takes that memory
/// too.
pub const DIRECT_EVENTS_RING_BYTES: u32 = 512 * 1024;

/// Whether to wake the agent for the ring now, with `waiting` bytes in it: when it is a quarter full, and at
/// each further quarter. The range is a few events long, since several cores write at a time.
pub const fn ring_should_wake_agent(waiting: u64) -> bool {
    const QUARTER: u64 = DIRECT_EVENTS_RING_BYTES as u64 / 4;
    const A_FEW: u64 = 16 * size_of::<DirectEvent>() as u64;
    waiting >= QUARTER && waiting % QUARTER < A_FEW
}

/// Bytes of the ring that are not for new direct connections: for those that other cores open at this moment,
/// and for events of open ones.
const SPARE: u64 = DIRECT_EVENTS_RING_BYTES as u64 / 8;

/// Whether a connection may go directly with `waiting` bytes in the ring: its event comes when its SYN is
/// sent, which is too late for another way.
pub const fn ring_has_room(waiting: u64) -> bool {
    waiting <= DIRECT_EVENTS_RING_BYTES as u64 - SPARE
}

/// How long connections go through the proxy after the ring was full, nanoseconds: until the agent reads it
/// next.
pub const PROXY_AFTER_RING_FULL_NS: u64 = 100_000_000;

/// How long they do after one could not be filed or told of when its SYN was sent, nanoseconds: that one is
/// refused where plaintext is, so there should be few of them.
pub const PROXY_AFTER_TABLE_FULL_NS: u64 = 1_000_000_000;

/// How long routes count after the agent's last beat, nanoseconds. Without an agent nobody notices that a pod
/// is gone and another has its address.
pub const AGENT_BEAT_TTL_NS: u64 = 5_000_000_000;

/// How long after `connect()` its yes counts at the SYN by itself, nanoseconds: as long as one system call
/// takes that the scheduler interrupts once. An older one, which only a program that delays its SYN has
/// (`TCP_FASTOPEN_CONNECT`), has to be found in its route again. Whoever withdraws a yes waits for this long
/// before relying on that.
pub const CONNECT_YES_TTL_NS: u64 = 5_000_000;

/// How long a connection may arrive after its SYN was filed if no agent can withdraw it, nanoseconds: enough
/// for a SYN that is sent again after one second and after three.
pub const DIRECT_FLOW_TTL_WITHOUT_AGENT_NS: u64 = 4_000_000_000;

/// How long it may arrive under a running agent, which withdraws what policy forbids, nanoseconds: as long as
/// a SYN is sent again by default (`net.ipv4.tcp_syn_retries`: 127 s).
pub const DIRECT_FLOW_TTL_NS: u64 = 130_000_000_000;

/// [`AddressPort::note`] of a connection that goes to the proxy because the kernel drew an endpoint without a
/// direct way: the proxy then chooses among those alone, so that weights come out as they should.
pub const NOTE_NOT_DIRECT: u16 = 1;

/// [`AddressPort::note`] of a probe's destination: the node's own processes open it to a port that a pod
/// declares for probes.
pub const NOTE_PROBE: u16 = 2;

/// Most probes under way at one time.
pub const MAX_PROBES: u32 = 8192;

/// [`DirectSocket::server`] of a connection past the mesh that is only counted, or of one that should be
/// direct and is refused. No namespace has this cookie (kernel: `__net_gen_cookie` counts from 1).
pub const NO_SERVER: u64 = 0;

/// Key of `ROUTES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectRouteKey {
    /// Cookie of the client's network namespace.
    pub client: u64,
    /// Address and port that it asks for.
    pub destination: AddressPort,
    /// Padding, zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<DirectRouteKey>() == 32);

impl DirectRouteKey {
    /// Creates a key with its padding cleared.
    #[inline(always)]
    pub const fn new(client: u64, destination: AddressPort) -> Self {
        Self { client, destination, zero: 0 }
    }
}

/// An endpoint of a route, which takes the client's connections.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RouteEndpoint {
    /// Cookie of the server's network namespace.
    pub server: u64,
    /// The server's own address and port.
    pub endpoint: AddressPort,
    /// End of its tickets: those below this and not below that of the choice before.
    pub below: u32,
}
const _: () = assert!(size_of::<RouteEndpoint>() == 32);

impl RouteEndpoint {
    /// Fills the places behind the last choice.
    pub const NONE: Self =
        Self { server: 0, endpoint: AddressPort::new(crate::address::Address::UNSPECIFIED, 0), below: 0 };
}

/// Value of `ROUTES`: where a client's connections to a destination may go directly.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectRoute {
    /// Its own key. The memory of an entry that is replaced may be reused at once; a reader that still has it
    /// finds another key here.
    pub key: DirectRouteKey,
    /// Tickets are drawn below this; those that are no choice's go to the proxy, for another endpoint.
    pub tickets: u32,
    /// Not 0 if tickets are drawn in turn and not at random.
    pub in_turn: u32,
    /// The next turn. Two cores may take the same one, which does no harm.
    pub turn: u32,
    /// Number of choices.
    pub count: u32,
    /// The choices, in ascending order of their tickets.
    pub choices: [RouteEndpoint; MAX_ROUTE_ENDPOINTS],
}
const _: () = assert!(size_of::<DirectRoute>() == 48 + 32 * MAX_ROUTE_ENDPOINTS);

/// Returns the choice that a ticket falls on; none if it is the proxy's.
#[inline(always)]
pub fn endpoint_for_ticket(route: &DirectRoute, ticket: u32) -> Option<&RouteEndpoint> {
    let mut index = 0_u32;
    while (index as usize) < MAX_ROUTE_ENDPOINTS {
        let choice = &route.choices[index as usize];
        if index >= route.count {
            return None;
        }
        if ticket < choice.below {
            return Some(choice);
        }
        index += 1;
    }
    None
}

/// Whether a route leads to a server at an endpoint, so that an earlier yes for it still counts.
#[inline(always)]
pub fn route_has_endpoint(route: &DirectRoute, server: u64, endpoint: &AddressPort) -> bool {
    let mut index = 0_u32;
    while (index as usize) < MAX_ROUTE_ENDPOINTS {
        let choice = &route.choices[index as usize];
        if index >= route.count {
            return false;
        }
        if choice.server == server
            && choice.endpoint.port == endpoint.port
            && choice.endpoint.address == endpoint.address
        {
            return true;
        }
        index += 1;
    }
    false
}

/// Key of `DIRECT_FLOWS`: a direct connection before its handshake is over, as both ends see it.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct DirectFlowKey {
    /// The end that connects.
    pub client: AddressPort,
    /// The end that accepts.
    pub server: AddressPort,
}
const _: () = assert!(size_of::<DirectFlowKey>() == 40);

/// Value of `DIRECT_FLOWS`: where the connection may arrive.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectFlowEntry {
    /// Cookie of the server's network namespace, or [`NO_SERVER`]: nowhere, it is refused.
    pub server: u64,
    /// Cookie of the client's network namespace.
    pub client: u64,
    /// When its SYN was sent, nanoseconds of `CLOCK_MONOTONIC`.
    pub at: u64,
}
const _: () = assert!(size_of::<DirectFlowEntry>() == 24);

/// What happens to a connection that arrives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ArrivalVerdict {
    /// It is direct, and allowed.
    Direct,
    /// It should have been direct, and was withdrawn.
    Refused,
    /// It is treated like any other.
    Other,
}

impl DirectFlowEntry {
    /// Returns what happens to the connection if it arrives at a pod, by the cookie of its network namespace.
    #[inline(always)]
    pub fn arrival_verdict(&self, pod: u64, now: u64, agent_lives: bool) -> ArrivalVerdict {
        if self.server == NO_SERVER {
            return ArrivalVerdict::Refused;
        }
        let lasts = if agent_lives { DIRECT_FLOW_TTL_NS } else { DIRECT_FLOW_TTL_WITHOUT_AGENT_NS };
        if pod == self.server && now < self.at.wrapping_add(lasts) {
            ArrivalVerdict::Direct
        } else {
            ArrivalVerdict::Other
        }
    }
}

/// Value of `DIRECT`, kept with the client's socket.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectSocket {
    /// Cookie of the server's network namespace, or [`NO_SERVER`].
    pub server: u64,
    /// When it was opened, nanoseconds of `CLOCK_MONOTONIC`.
    pub opened: u64,
    /// Address and port that the application asked for.
    pub destination: AddressPort,
    /// Padding, zero.
    pub zero: u32,
}
const _: () = assert!(size_of::<DirectSocket>() == 40);

/// Kind of an event of a direct connection.
#[repr(u32)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectEventKind {
    /// Its SYN is about to be sent.
    Opening = 1,
    /// Its handshake is over.
    Established = 2,
    /// It is over; bytes and round-trip time are known.
    Closed = 3,
    /// It was refused, or nobody answered.
    Failed = 4,
    /// It arrived elsewhere than it was allowed to: its address has another owner. Sent by the accepting end.
    Astray = 5,
    /// Its SYN is about to be sent, and `DIRECT_OPEN` has no room for it.
    Unlisted = 6,
}

impl DirectEventKind {
    /// Returns the kind with a number from the ring buffer.
    pub const fn from_number(number: u32) -> Option<Self> {
        Some(match number {
            1 => Self::Opening,
            2 => Self::Established,
            3 => Self::Closed,
            4 => Self::Failed,
            5 => Self::Astray,
            6 => Self::Unlisted,
            _ => return None,
        })
    }

    /// Whether the connection begins with it.
    pub const fn opens_connection(self) -> bool {
        matches!(self, Self::Opening | Self::Unlisted)
    }
}

/// A record of the ring buffer `DIRECT_EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectEvent {
    /// A [`DirectEventKind`] as its number.
    pub kind: u32,
    /// Smoothed round-trip time, microseconds, once it is over.
    pub rtt: u32,
    /// The kernel's cookie of the client's socket.
    pub socket: u64,
    /// Cookie of the client's network namespace.
    pub client_netns: u64,
    /// Cookie of the server's network namespace, or [`NO_SERVER`].
    pub server_netns: u64,
    /// When it was opened, nanoseconds of `CLOCK_MONOTONIC`.
    pub opened: u64,
    /// Time of the event, on the same clock.
    pub now: u64,
    /// Sequence numbers of the client that were acknowledged, with SYN and FIN, once it is over.
    pub sent: u64,
    /// Sequence numbers that the client received, with FIN, once it is over.
    pub received: u64,
    /// The client's address and port.
    pub client: AddressPort,
    /// The server's own address and port.
    pub server: AddressPort,
    /// Address and port that the application asked for.
    pub destination: AddressPort,
    /// Its last TCP state before it was over (`include/net/tcp_states.h`).
    pub ended_in: u32,
}
const _: () = assert!(size_of::<DirectEvent>() == 128);

#[cfg(test)]
#[allow(clippy::cast_possible_truncation, reason = "all numbers are small")]
mod tests {
    use super::*;
    use crate::address::Address;

    #[test]
    fn a_ring_that_fills_up_is_urgent_at_each_quarter_and_not_between() {
        let quarter = u64::from(DIRECT_EVENTS_RING_BYTES) / 4;
        let urgent = [quarter, quarter + 500, 2 * quarter, 3 * quarter];
        assert!(urgent.into_iter().all(ring_should_wake_agent));
        let between = [0, 500, quarter - 1, quarter + 10_000, 2 * quarter - 1, 4 * quarter - 1];
        assert!(!between.into_iter().any(ring_should_wake_agent));
    }

    fn route(below: &[u32], tickets: u32) -> DirectRoute {
        let mut choices = [RouteEndpoint::NONE; MAX_ROUTE_ENDPOINTS];
        for (index, &below) in below.iter().enumerate() {
            let endpoint = AddressPort::new(Address::v4([10, 0, 0, index as u8]), 80);
            choices[index] = RouteEndpoint { server: index as u64 + 1, endpoint, below };
        }
        let key = DirectRouteKey::new(7, AddressPort::new(Address::v4([10, 96, 0, 1]), 80));
        DirectRoute { key, tickets, in_turn: 0, turn: 0, count: below.len() as u32, choices }
    }

    #[test]
    fn tickets_are_shared_out_by_weight_and_the_rest_is_the_proxys() {
        let route = route(&[1, 4], 6);
        let servers: Vec<_> =
            (0..6).map(|ticket| endpoint_for_ticket(&route, ticket).map(|choice| choice.server)).collect();
        assert_eq!(servers, [Some(1), Some(2), Some(2), Some(2), None, None]);
    }

    #[test]
    fn what_does_not_count_is_never_chosen() {
        let mut stale = route(&[1, 2, 3], 3);
        stale.count = 1;
        assert_eq!(endpoint_for_ticket(&stale, 2), None);
        stale.count = 100;
        assert_eq!(endpoint_for_ticket(&stale, 3), None, "a count that is too large");
        let full: Vec<u32> = (1..=MAX_ROUTE_ENDPOINTS as u32).collect();
        let full = route(&full, MAX_ROUTE_ENDPOINTS as u32);
        assert!(
            (0..MAX_ROUTE_ENDPOINTS as u32)
                .all(|ticket| endpoint_for_ticket(&full, ticket).unwrap().server == u64::from(ticket) + 1)
        );
    }

    #[test]
    fn a_yes_counts_as_long_as_its_route_leads_there() {
        let mut route = route(&[1, 1, 4], 6);
        let at = |last| AddressPort::new(Address::v4([10, 0, 0, last]), 80);
        assert!(
            route_has_endpoint(&route, 3, &at(2)) && route_has_endpoint(&route, 2, &at(1)),
            "drawn or not"
        );
        assert!(!route_has_endpoint(&route, 2, &at(2)), "another pod has the address");
        assert!(!route_has_endpoint(&route, 3, &AddressPort::new(at(2).address, 81)));
        assert!(!route_has_endpoint(&route, 0, &RouteEndpoint::NONE.endpoint), "what does not count");
        route.count = 2;
        assert!(!route_has_endpoint(&route, 3, &at(2)));
    }

    #[test]
    fn what_was_filed_has_an_age_and_a_pod() {
        let filed = DirectFlowEntry { server: 8, client: 7, at: 1_000 };
        let arrives = |pod, age, lives| filed.arrival_verdict(pod, filed.at + age, lives);
        assert_eq!(arrives(8, 0, false), ArrivalVerdict::Direct);
        assert_eq!(arrives(8, DIRECT_FLOW_TTL_WITHOUT_AGENT_NS - 1, false), ArrivalVerdict::Direct);
        assert_eq!(arrives(8, DIRECT_FLOW_TTL_WITHOUT_AGENT_NS, false), ArrivalVerdict::Other);
        assert_eq!(arrives(8, DIRECT_FLOW_TTL_NS - 1, true), ArrivalVerdict::Direct);
        assert_eq!(arrives(8, DIRECT_FLOW_TTL_NS, true), ArrivalVerdict::Other);
        for pod in [7, NO_SERVER] {
            assert_eq!(arrives(pod, 0, true), ArrivalVerdict::Other);
        }
        let refused = DirectFlowEntry { server: NO_SERVER, ..filed };
        for pod in [8, NO_SERVER] {
            assert_eq!(
                refused.arrival_verdict(pod, filed.at + 10 * DIRECT_FLOW_TTL_NS, false),
                ArrivalVerdict::Refused
            );
        }
    }

    #[test]
    fn numbers_and_what_happened_agree() {
        let all: Vec<DirectEventKind> = (0..100).filter_map(DirectEventKind::from_number).collect();
        assert_eq!(all.len(), 6);
        assert!(all.into_iter().all(|it| DirectEventKind::from_number(it as u32) == Some(it)));
    }
}
