//! Direct connections whose payload goes from veth to veth, past the bridge that pods share: what is filed of
//! them, how a packet is read, and what becomes of it at either end.
//!
//! Handshakes go the ordinary way, so that firewalls and network policies judge them. All else is redirected
//! at the sender's veth, and the receiver's socket takes nothing that was not. A flow is filed before its SYN
//! leaves and as long as one of its two sockets lives. What can't be read is dropped where it may be part of
//! one.

use crate::address::Address;
use crate::is_mesh_port;
use crate::maps::Endpoint;

/// Most entries of `VETH_FLOWS`: for each connection two, and a third once one of its ends is closed.
pub const MAX_VETH_FLOWS: u32 = 196_608;
/// With so many direct connections on the node, or of one client, further ones are the proxy's: those that
/// are drawn already find room.
pub const MOST_OF_NODE: usize = MAX_VETH_FLOWS as usize / 3 * 3 / 4;
/// See [`MOST_OF_NODE`].
pub const MOST_OF_CLIENT: usize = MOST_OF_NODE / 4;
/// So many direct connections find no room, however long ago they were drawn: three entries of each and a few
/// thousand more that could not be counted fit.
pub const NO_MORE_OF_NODE: usize = MOST_OF_NODE + MOST_OF_NODE / 4;
/// Key of `CROWDED` for all clients. No namespace has this cookie.
pub const EVERYBODY: u64 = 0;
/// Key of `VETH_COUNTS` for all clients together. No interface has this index.
pub const ALL_CLIENTS: u32 = 0;
/// Value of `CROWDED`: until the proxy says otherwise.
pub const FOR_NOW: u32 = 1;
/// Value of `CROWDED`: as long as the agent runs.
pub const FOR_GOOD: u32 = 2;
/// Slots of `NEIGHBOURS`, by [`slot_of`], of which each of its entries holds 64.
pub const NEIGHBOUR_SLOTS: u32 = 65_536;
/// The mark of a packet that was redirected. The kernel clears marks where a packet crosses a veth in the
/// ordinary way (`skb_scrub_packet`), so that no pod can send one that arrives with it elsewhere.
pub const MARK: u32 = 0x6e6d_7668;

/// How a connection between two pods of the node is to go (`--same-node`).
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wanted {
    /// From veth to veth if that is possible; else directly if no other pod is on the way; else the proxy
    /// encrypts it.
    Auto = 0,
    /// Directly in any case.
    Direct = 1,
}

/// How a pod's network interface is connected to the node.
#[repr(u16)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    /// A veth whose host end has our program, and nothing else that would be passed by.
    Guarded = 1,
    /// A veth that leads to the node's routing alone.
    Routed = 2,
    /// Something else: a bridge, which other pods are at too, or what the agent does not know.
    Shared = 3,
}

impl Link {
    /// What a number from the map stands for. What is not known is taken for shared.
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
pub enum Obstacle {
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

impl Obstacle {
    /// What a number from the map stands for.
    pub const fn from_number(number: u16) -> Self {
        match number {
            1 => Self::NoVeth,
            2 => Self::Shaped,
            3 => Self::OtherProgram,
            4 => Self::NoProgram,
            _ => Self::None,
        }
    }

    /// The same in words, if there is one.
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

/// Value of `VETHS`, by the cookie of a pod's network namespace.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Veth {
    /// Index of the host's end of the pod's veth.
    pub ifindex: u32,
    /// A [`Link`] as its number.
    pub link: u16,
    /// An [`Obstacle`] as its number.
    pub obstacle: u16,
}
const _: () = assert!(size_of::<Veth>() == 8);

/// How connections between two pods of the node go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// From veth to veth.
    Veth,
    /// Directly, over whatever is between the two.
    Plain,
    /// Not directly.
    Proxy,
}

/// The way between two pods, of which one may not be known (yet).
#[inline(always)]
pub fn way(wanted: Wanted, client: Option<Veth>, server: Option<Veth>) -> Way {
    let link = |veth: Option<Veth>| veth.map_or(Link::Shared, |veth| Link::from_number(veth.link));
    match (link(client), link(server)) {
        (Link::Guarded, Link::Guarded) => Way::Veth,
        (Link::Routed, Link::Routed) => Way::Plain,
        _ if wanted as u8 == Wanted::Direct as u8 => Way::Plain,
        _ => Way::Proxy,
    }
}

/// Key of `VETH_FLOWS`: one direction of a connection.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Direction {
    /// The end that sends.
    pub from: Endpoint,
    /// The end that receives.
    pub to: Endpoint,
}
const _: () = assert!(size_of::<Direction>() == 40);

impl Direction {
    /// None.
    pub const NONE: Self =
        Self { from: Endpoint::new(Address::UNSPECIFIED, 0), to: Endpoint::new(Address::UNSPECIFIED, 0) };

    /// The opposite direction.
    #[inline(always)]
    #[must_use]
    pub const fn reversed(&self) -> Self {
        Self { from: self.to, to: self.from }
    }
}

impl Direction {
    /// The key under which it is noted that one of the two sockets is closed, of the client's direction.
    #[inline(always)]
    #[must_use]
    pub const fn half_closed(&self) -> Self {
        Self { from: Endpoint { note: 1, ..self.from }, to: self.to }
    }

    /// Whether it is such a key, and no direction.
    pub const fn is_note(&self) -> bool {
        self.from.note != 0
    }
}

/// Value of `VETH_FLOWS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethFlow {
    /// The kernel's cookie of the client's socket.
    pub client: u64,
    /// That of the server's, once its handshake is over; 0 before.
    pub server: u64,
    /// When it was filed, in nanoseconds of `CLOCK_MONOTONIC`.
    pub filed: u64,
    /// Index of the host's end of the sender's veth; 0 if nothing may be sent.
    pub in_if: u32,
    /// That of the receiver's; 0 if nothing may be sent any more.
    pub out_if: u32,
    /// Sequence number of the sender's SYN, if that was seen.
    pub isn: u32,
    /// Not 0: it was.
    pub seen: u16,
    /// Not 0: the sender is the client. [`Self::HALF_CLOSED`] where there was no room to note elsewhere that
    /// one of the two sockets is closed.
    pub of_client: u16,
}
const _: () = assert!(size_of::<VethFlow>() == 40);

impl VethFlow {
    /// How long a handshake may take, in nanoseconds: until then what seems left behind may be only late
    /// (`net.ipv4.tcp_syn_retries`, `tcp_synack_retries`).
    pub const HANDSHAKE: u64 = 180_000_000_000;

    /// See [`Self::of_client`].
    pub const HALF_CLOSED: u16 = 2;

    /// Nothing.
    pub const NONE: Self =
        Self { client: 0, server: 0, filed: 0, in_if: 0, out_if: 0, isn: 0, seen: 0, of_client: 0 };

    /// Whether nothing can be sent any more though the entry is there, at a time of the same clock: the
    /// client's socket is closed, and the server's never came to be.
    pub const fn is_left_behind(&self, half_closed: bool, now: u64) -> bool {
        half_closed && self.server == 0 && now.saturating_sub(self.filed) > Self::HANDSHAKE
    }
}

/// What is remembered with either socket of a filed flow.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct VethEnd {
    /// The client's direction.
    pub flow: Direction,
    /// The kernel's cookie of this socket.
    pub socket: u64,
    /// Not 0: this is the server's.
    pub is_server: u64,
}
const _: () = assert!(size_of::<VethEnd>() == 56);

/// The slot of an address among [`NEIGHBOUR_SLOTS`]: addresses that share a slot only cost a further look.
#[inline(always)]
pub const fn slot_of(address: &Address) -> u32 {
    let w = address.to_be32x4();
    let word = w[0] ^ w[1] ^ w[2] ^ w[3];
    (word ^ (word >> 16)) & (NEIGHBOUR_SLOTS - 1)
}

/// Whether a flow between these ports can be filed: packets of the mesh's own ports are left alone unseen.
#[inline(always)]
pub const fn can_be_filed(client: &Endpoint, server: &Endpoint) -> bool {
    !is_mesh_port(client.port) && !is_mesh_port(server.port)
}

/// A packet's bytes.
pub trait Bytes {
    /// Copies some of them, if all of these are there.
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool;
}

/// What was read of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Packet {
    /// Part of no TCP connection.
    Other,
    /// A TCP segment.
    Tcp(Segment),
    /// It may be part of a TCP connection, and can't be read: a fragment, or headers beyond what is followed.
    /// Of its direction the addresses alone are known.
    Unreadable,
}

/// What is to be known of a TCP header.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Its first byte's sequence number.
    pub seq: u32,
    /// FIN, SYN, RST, PSH, ACK, URG, ECE and CWR, from the lowest bit.
    pub flags: u8,
    /// Whether it has payload, as far as that is certain; else it has.
    pub payload: bool,
}

const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;

impl Segment {
    /// Part of a handshake that goes the ordinary way: SYN or SYN-ACK.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.flags & (FIN | SYN | RST) == SYN
    }

    /// A reset that says nothing else.
    #[inline(always)]
    pub const fn resets(self) -> bool {
        self.flags & (FIN | SYN | RST) == RST
    }
}

/// What becomes of a packet that left a pod, at the host's end of its veth.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Departure {
    /// It goes the ordinary way.
    Ordinary,
    /// The same, and its sequence number is noted.
    Noted,
    /// To the receiver's veth.
    Redirected,
    /// It is dropped.
    Dropped,
}

/// Judges a segment of a filed flow that came in by an interface, tagged for a VLAN or not.
#[inline(always)]
pub const fn departure(flow: &VethFlow, segment: Segment, ifindex: u32, tagged: bool) -> Departure {
    if flow.in_if != ifindex || flow.out_if == 0 || tagged {
        // Another pod than the one that it claims to be from, or one that may send nothing.
        return Departure::Dropped;
    }
    if !segment.opens() {
        return Departure::Redirected;
    }
    // What a SYN carries (TCP Fast Open) would be seen on the way. The kernel sends it again, later.
    if segment.payload { Departure::Dropped } else { Departure::Noted }
}

/// Whether a socket takes a segment of a filed flow that was not redirected: only the handshake as its sender
/// began it. A shift of its sequence number, by somebody on the way, would take bytes off the beginning of
/// what follows. One that is `connecting` takes a reset as well: that is how a firewall says no, and who is
/// on the way can keep it from connecting anyhow.
#[inline(always)]
pub const fn may_arrive(flow: &VethFlow, segment: Segment, connecting: bool) -> bool {
    let begins = segment.opens() && !segment.payload && flow.seen != 0 && flow.isn == segment.seq;
    begins || (connecting && segment.resets())
}

/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// IPv6 extension headers that are followed.
const MOST_EXTENSIONS: u32 = 6;

/// Reads the packet whose IP header begins at an offset, and its direction. (Which is not part of the answer,
/// since the programs have little stack.)
#[inline(always)]
pub fn read(packet: &impl Bytes, at: u32, direction: &mut Direction) -> Packet {
    let mut first = [0; 1];
    if !packet.load(at, &mut first) {
        return Packet::Other;
    }
    match first[0] >> 4 {
        4 => read_v4(packet, at, direction),
        6 => read_v6(packet, at, direction),
        _ => Packet::Other,
    }
}

#[inline(always)]
fn read_v4(packet: &impl Bytes, at: u32, direction: &mut Direction) -> Packet {
    let mut ip = [0; 20];
    if !packet.load(at, &mut ip) || ip[9] != TCP {
        return Packet::Other;
    }
    direction.from = Endpoint::new(Address::v4([ip[12], ip[13], ip[14], ip[15]]), 0);
    direction.to = Endpoint::new(Address::v4([ip[16], ip[17], ip[18], ip[19]]), 0);
    let header = u32::from(ip[0] & 0xf) * 4;
    // More fragments, or not the first.
    let fragment = ip[6] & 0x3f != 0 || ip[7] != 0;
    if fragment || header < 20 {
        return Packet::Unreadable;
    }
    let total = u32::from(u16::from_be_bytes([ip[2], ip[3]]));
    tcp(packet, at + header, total.wrapping_sub(header), direction)
}

#[inline(always)]
fn read_v6(packet: &impl Bytes, at: u32, direction: &mut Direction) -> Packet {
    let mut ip = [0; 8];
    let read = packet.load(at, &mut ip)
        && packet.load(at + 8, &mut direction.from.address.0)
        && packet.load(at + 24, &mut direction.to.address.0);
    if !read {
        return Packet::Other;
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
            // A fragment: of what, it says.
            44 => {
                let readable = packet.load(at, &mut header) && !may_lead_to_tcp(header[0]);
                return if readable { Packet::Other } else { Packet::Unreadable };
            }
            other if may_lead_to_tcp(other) => return Packet::Unreadable,
            _ => return Packet::Other,
        }
        if !packet.load(at, &mut header) {
            return Packet::Unreadable;
        }
        let bytes = (u32::from(header[1]) + 1) * 8;
        (next, length) = (header[0], length.wrapping_sub(bytes));
        at += bytes;
        followed += 1;
    }
    Packet::Unreadable
}

/// TCP itself and the headers that it may be behind: options, routing, fragment, authentication, mobility,
/// HIP, shim6.
#[inline(always)]
const fn may_lead_to_tcp(next: u8) -> bool {
    matches!(next, TCP | 0 | 43 | 44 | 51 | 60 | 135 | 139 | 140)
}

/// `length` is that of the segment by the IP header. A very long one (`BIG TCP`) has none there, and has
/// payload.
#[inline(always)]
fn tcp(packet: &impl Bytes, at: u32, length: u32, direction: &mut Direction) -> Packet {
    let mut tcp = [0; 14];
    if !packet.load(at, &mut tcp) {
        return Packet::Unreadable;
    }
    let header = u32::from(tcp[12] >> 4) * 4;
    if header < 20 {
        return Packet::Unreadable;
    }
    direction.from.port = u16::from_be_bytes([tcp[0], tcp[1]]);
    direction.to.port = u16::from_be_bytes([tcp[2], tcp[3]]);
    let seq = u32::from_be_bytes([tcp[4], tcp[5], tcp[6], tcp[7]]);
    Packet::Tcp(Segment { seq, flags: tcp[13], payload: length != header })
}

#[cfg(test)]
mod tests;
