//! Direct connections whose payload goes from veth to veth, past the bridge that pods share: how they are
//! filed, how a packet is parsed, and what happens to it at either end.
//!
//! Handshakes go the ordinary way, so that firewalls and network policies judge them. Everything else is
//! redirected at the sender's veth, and the receiver's socket accepts only redirected packets. A flow is
//! filed before its SYN is sent and as long as one of its two sockets lives. A packet that can't be parsed is
//! dropped where it may be part of a flow.

use crate::address::Address;
use crate::is_mesh_port;
use crate::maps::AddressPort;

/// Most entries of `VETH_FLOWS`: two for each connection, and a third once one of its ends is closed.
pub const MAX_VETH_FLOWS: u32 = 196_608;
/// Most direct connections of the node; further ones go through the proxy. Those that are drawn already find
/// room.
pub const MAX_FLOWS_OF_NODE: usize = MAX_VETH_FLOWS as usize / 3 * 3 / 4;
/// Most direct connections of one client; further ones go through the proxy.
pub const MAX_FLOWS_OF_CLIENT: usize = MAX_FLOWS_OF_NODE / 4;
/// Direct connections of the node from which further ones find no room, however long ago they were drawn:
/// three entries for each fit, and a few thousand that could not be counted.
pub const HARD_MAX_FLOWS_OF_NODE: usize = MAX_FLOWS_OF_NODE + MAX_FLOWS_OF_NODE / 4;
/// Key of `CROWDED` for all clients. No namespace has this cookie.
pub const CROWDED_ALL_CLIENTS: u64 = 0;
/// Key of `VETH_COUNTS` for all clients together. No interface has this index.
pub const COUNT_OF_ALL_CLIENTS: u32 = 0;
/// Value of `CROWDED`: until the proxy removes it.
pub const CROWDED_FOR_NOW: u32 = 1;
/// Value of `CROWDED`: as long as the agent runs.
pub const CROWDED_FOR_GOOD: u32 = 2;
/// Slots of `NEIGHBOURS`, by [`neighbour_slot`]; each of its entries holds 64.
pub const NEIGHBOUR_SLOTS: u32 = 65_536;
/// Mark of a redirected packet. The kernel clears marks where a packet crosses a veth in the ordinary way
/// (`skb_scrub_packet`), so no pod can send one that arrives elsewhere with it.
pub const REDIRECTED_MARK: u32 = 0x6e6d_7668;

/// How connections between two pods of the node should go (`--same-node`).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DirectPathMode {
    /// From veth to veth if possible; else directly if no other pod is on the way; else encrypted by the
    /// proxy.
    Auto = 0,
    /// Directly in any case.
    Direct = 1,
}

/// How a pod's network interface is connected to the node.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodLinkKind {
    /// A veth whose host end has our program, and nothing else that would be bypassed.
    Guarded = 1,
    /// A veth that leads only to the node's routing.
    Routed = 2,
    /// Anything else: a bridge, which other pods are at too, or what the agent does not know.
    Shared = 3,
}

impl PodLinkKind {
    /// Returns the link with a number from the map; an unknown one counts as shared.
    #[inline(always)]
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::Guarded,
            2 => Self::Routed,
            _ => Self::Shared,
        }
    }
}

/// What keeps a pod's link from being guarded.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VethObstacle {
    /// Nothing.
    None = 0,
    /// It is not connected by a veth that the agent sees.
    NoVeth = 1,
    /// There is a qdisc at the node's end.
    Shaped = 2,
    /// Another program is there.
    OtherProgram = 3,
    /// The kernel takes no program there.
    NoProgram = 4,
}

impl VethObstacle {
    /// Returns the obstacle with a number from the map.
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::NoVeth,
            2 => Self::Shaped,
            3 => Self::OtherProgram,
            4 => Self::NoProgram,
            _ => Self::None,
        }
    }

    /// Returns it in words, if there is one.
    pub const fn describe(self) -> Option<&'static str> {
        Some(match self {
            Self::None => return None,
            Self::NoVeth => "it is not connected by a veth that the agent sees",
            Self::Shaped => "its traffic is shaped or classified at its veth",
            Self::OtherProgram => "another program handles its traffic at its veth",
            Self::NoProgram => "the kernel takes no program at its veth (Linux 6.6 and later do)",
        })
    }
}

/// Value of `VETHS`, keyed by the cookie of a pod's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PodVeth {
    /// Index of the host's end of the pod's veth.
    pub ifindex: u32,
    /// A [`PodLinkKind`] as its number.
    pub link: u16,
    /// A [`VethObstacle`] as its number.
    pub obstacle: u16,
}
const _: () = assert!(size_of::<PodVeth>() == 8);

/// How connections between two pods of the node go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SameNodePath {
    /// From veth to veth.
    Veth,
    /// Directly, over whatever is between the two.
    Plain,
    /// Through the proxy.
    Proxy,
}

/// Returns the way between two pods, of which one may not be known (yet).
#[inline(always)]
pub fn same_node_path(
    wanted: DirectPathMode,
    client: Option<PodVeth>,
    server: Option<PodVeth>,
) -> SameNodePath {
    let link =
        |veth: Option<PodVeth>| veth.map_or(PodLinkKind::Shared, |veth| PodLinkKind::from_number(veth.link));
    match (link(client), link(server)) {
        (PodLinkKind::Guarded, PodLinkKind::Guarded) => SameNodePath::Veth,
        (PodLinkKind::Routed, PodLinkKind::Routed) => SameNodePath::Plain,
        _ if wanted as u8 == DirectPathMode::Direct as u8 => SameNodePath::Plain,
        _ => SameNodePath::Proxy,
    }
}

/// Key of `VETH_FLOWS`: one direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct FlowDirection {
    /// The end that sends.
    pub from: AddressPort,
    /// The end that receives.
    pub to: AddressPort,
}
const _: () = assert!(size_of::<FlowDirection>() == 40);

impl FlowDirection {
    /// No direction.
    pub const NONE: Self = Self {
        from: AddressPort::new(Address::UNSPECIFIED, 0),
        to: AddressPort::new(Address::UNSPECIFIED, 0),
    };

    /// Returns the opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

impl FlowDirection {
    /// Returns the key, made of the client's direction, of the note that one of the two sockets is closed.
    #[inline(always)]
    #[must_use]
    pub const fn half_closed_key(&self) -> Self {
        Self { from: AddressPort { note: 1, ..self.from }, to: self.to }
    }

    /// Whether it is the key of such a note, and no direction.
    pub const fn is_half_closed_key(&self) -> bool {
        self.from.note != 0
    }
}

/// Value of `VETH_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethFlow {
    /// The kernel's cookie of the client's socket.
    pub client: u64,
    /// The kernel's cookie of the server's socket, once its handshake is over; 0 before.
    pub server: u64,
    /// When it was filed, nanoseconds of `CLOCK_MONOTONIC`.
    pub filed: u64,
    /// Index of the host's end of the sender's veth; 0 if nothing may be sent.
    pub in_if: u32,
    /// Index of the host's end of the receiver's veth; 0 if nothing may be sent any more.
    pub out_if: u32,
    /// Sequence number of the sender's SYN, if that was seen.
    pub isn: u32,
    /// Not 0 if the sender's SYN was seen.
    pub seen: u16,
    /// Not 0 if the sender is the client. [`Self::HALF_CLOSED`] if one of the two sockets is closed and there
    /// was no room to note it elsewhere.
    pub of_client: u16,
}
const _: () = assert!(size_of::<VethFlow>() == 40);

impl VethFlow {
    /// Longest handshake, nanoseconds: until then a flow that seems stale may be only late
    /// (`net.ipv4.tcp_syn_retries`, `tcp_synack_retries`).
    pub const HANDSHAKE: u64 = 180_000_000_000;

    /// See [`Self::of_client`].
    pub const HALF_CLOSED: u16 = 2;

    /// An empty entry.
    pub const NONE: Self =
        Self { client: 0, server: 0, filed: 0, in_if: 0, out_if: 0, isn: 0, seen: 0, of_client: 0 };

    /// Whether the entry is stale at a time of the same clock, so that nothing can be sent any more: the
    /// client's socket is closed, and the server's never existed.
    pub const fn is_stale(&self, half_closed: bool, now: u64) -> bool {
        half_closed && self.server == 0 && now.saturating_sub(self.filed) > Self::HANDSHAKE
    }
}

/// Value stored with either socket of a filed flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethFlowSocket {
    /// The client's direction.
    pub flow: FlowDirection,
    /// The kernel's cookie of this socket.
    pub socket: u64,
    /// Not 0 if this is the server's.
    pub is_server: u64,
}
const _: () = assert!(size_of::<VethFlowSocket>() == 56);

/// Returns the slot of an address among [`NEIGHBOUR_SLOTS`]: addresses that share a slot only cost a further
/// look-up.
#[inline(always)]
pub const fn neighbour_slot(address: &Address) -> u32 {
    let w = address.to_be32x4();
    let word = w[0] ^ w[1] ^ w[2] ^ w[3];
    (word ^ (word >> 16)) & (NEIGHBOUR_SLOTS - 1)
}

/// Whether a flow between these ports can be filed: packets of the mesh's own ports are left alone unseen.
#[inline(always)]
pub const fn has_veth_flow_ports(client: &AddressPort, server: &AddressPort) -> bool {
    !is_mesh_port(client.port) && !is_mesh_port(server.port)
}

/// A packet's bytes.
pub trait PacketBytes {
    /// Copies `N` bytes from offset `at`. Returns whether all of them are there.
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool;
}

/// A parsed packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ParsedPacket {
    /// Part of no TCP connection.
    Other,
    /// A TCP segment.
    Tcp(TcpSegment),
    /// It may be part of a TCP connection, and can't be parsed: a fragment, or headers beyond those that are
    /// followed. Only the addresses of its direction are known.
    Unreadable,
}

/// The fields of a TCP header that are needed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TcpSegment {
    /// Sequence number of its first byte.
    pub seq: u32,
    /// FIN, SYN, RST, PSH, ACK, URG, ECE and CWR, from the lowest bit.
    pub flags: u8,
    /// Whether it has payload; true if that is not certain.
    pub payload: bool,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

impl TcpSegment {
    /// Whether it is part of a handshake, which goes the ordinary way: SYN or SYN-ACK.
    #[inline(always)]
    pub const fn is_handshake(self) -> bool {
        self.flags & (FIN | SYN | RST) == SYN
    }

    /// Whether it is a plain reset.
    #[inline(always)]
    pub const fn is_reset(self) -> bool {
        self.flags & (FIN | SYN | RST) == RST
    }
}

/// What happens to a packet that left a pod, at the host's end of its veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DepartureAction {
    /// It goes the ordinary way.
    Ordinary,
    /// It goes the ordinary way, and its sequence number is noted.
    Noted,
    /// To the receiver's veth.
    Redirected,
    /// It is dropped.
    Dropped,
}

/// Judges a segment of a filed flow that came in by an interface, tagged for a VLAN or not.
#[inline(always)]
pub const fn departure_action(
    flow: &VethFlow,
    segment: TcpSegment,
    ifindex: u32,
    tagged: bool,
) -> DepartureAction {
    if flow.in_if != ifindex || flow.out_if == 0 || tagged {
        // It is from another pod than it claims, or from one that may send nothing.
        return DepartureAction::Dropped;
    }
    if !segment.is_handshake() {
        return DepartureAction::Redirected;
    }
    // Data in a SYN (TCP Fast Open) would be seen on the way. The kernel sends it again, later.
    if segment.payload { DepartureAction::Dropped } else { DepartureAction::Noted }
}

/// Whether a socket accepts a segment of a filed flow that was not redirected: only the handshake as its
/// sender began it. Somebody on the way who shifts its sequence number would cut off the first bytes of what
/// follows. A socket that is `connecting` accepts a reset as well: that is how a firewall refuses, and
/// whoever is on the way can keep it from connecting anyhow.
#[inline(always)]
pub const fn accepts_unredirected(flow: &VethFlow, segment: TcpSegment, connecting: bool) -> bool {
    let begins = segment.is_handshake() && !segment.payload && flow.seen != 0 && flow.isn == segment.seq;
    begins || (connecting && segment.is_reset())
}

/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// IPv6 extension headers that are followed.
const MOST_EXTENSIONS: u32 = 6;

/// Parses the packet whose IP header begins at an offset, and its direction. (That is not part of the result,
/// since the programs have little stack.)
#[inline(always)]
pub fn parse_packet(packet: &impl PacketBytes, at: u32, direction: &mut FlowDirection) -> ParsedPacket {
    let mut first = [0; 1];
    if !packet.load(at, &mut first) {
        return ParsedPacket::Other;
    }
    match first[0] >> 4 {
        4 => read_v4(packet, at, direction),
        6 => read_v6(packet, at, direction),
        _ => ParsedPacket::Other,
    }
}

#[inline(always)]
fn read_v4(packet: &impl PacketBytes, at: u32, direction: &mut FlowDirection) -> ParsedPacket {
    let mut ip = [0; 20];
    if !packet.load(at, &mut ip) || ip[9] != TCP {
        return ParsedPacket::Other;
    }
    direction.from = AddressPort::new(Address::v4([ip[12], ip[13], ip[14], ip[15]]), 0);
    direction.to = AddressPort::new(Address::v4([ip[16], ip[17], ip[18], ip[19]]), 0);
    let header = u32::from(ip[0] & 0xf) * 4;
    // More fragments, or not the first.
    let fragment = ip[6] & 0x3f != 0 || ip[7] != 0;
    if fragment || header < 20 {
        return ParsedPacket::Unreadable;
    }
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    tcp(packet, at + header, total.wrapping_sub(header), direction)
}

#[inline(always)]
fn read_v6(packet: &impl PacketBytes, at: u32, direction: &mut FlowDirection) -> ParsedPacket {
    let mut ip = [0; 8];
    let read = packet.load(at, &mut ip)
        && packet.load(at + 8, &mut direction.from.address.0)
        && packet.load(at + 24, &mut direction.to.address.0);
    if !read {
        return ParsedPacket::Other;
    }
    let (mut next, mut length) = (ip[6], u32::from(u16::from_be_bytes([ip[4], ip[5]])));
    let mut at = at + 40;
    let mut followed = 0;
    while followed < MOST_EXTENSIONS {
        let mut header = [0; 2];
        match next {
            TCP => return tcp(packet, at, length, direction),
            // Hop-by-hop options, routing, destination options.
            0 | 43 | 60 => {}
            // A fragment, which tells what it is a fragment of.
            44 => {
                let readable = packet.load(at, &mut header) && !may_lead_to_tcp(header[0]);
                return if readable { ParsedPacket::Other } else { ParsedPacket::Unreadable };
            }
            other if may_lead_to_tcp(other) => return ParsedPacket::Unreadable,
            _ => return ParsedPacket::Other,
        }
        if !packet.load(at, &mut header) {
            return ParsedPacket::Unreadable;
        }
        let bytes = (u32::from(header[1]) + 1) * 8;
        (next, length) = (header[0], length.wrapping_sub(bytes));
        at += bytes;
        followed += 1;
    }
    ParsedPacket::Unreadable
}

/// Whether a header is TCP or may come before TCP: options, routing, fragment, authentication, mobility, HIP,
/// shim6.
#[inline(always)]
const fn may_lead_to_tcp(next: u8) -> bool {
    matches!(next, TCP | 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// Parses a TCP header. `length` is that of the segment by the IP header. A very long one (`BIG TCP`) has
/// none there, and has payload.
#[inline(always)]
fn tcp(packet: &impl PacketBytes, at: u32, length: u32, direction: &mut FlowDirection) -> ParsedPacket {
    let mut tcp = [0; 14];
    if !packet.load(at, &mut tcp) {
        return ParsedPacket::Unreadable;
    }
    let header = u32::from(tcp[12] >> 4) * 4;
    if header < 20 {
        return ParsedPacket::Unreadable;
    }
    direction.from.port = u16::from_be_bytes([tcp[0], tcp[1]]);
    direction.to.port = u16::from_be_bytes([tcp[2], tcp[3]]);
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    ParsedPacket::Tcp(TcpSegment { seq, flags: tcp[13], payload: length != header })
}

#[cfg(test)]
mod tests;
