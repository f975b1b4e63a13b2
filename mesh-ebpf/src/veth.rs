//! The packets of direct connections that go from veth to veth: redirected at the sender's veth
//! ([`from_pod`]), and guarded where a socket takes them ([`guard`]). Which these are is in what
//! [`crate::filing`] has filed.

use aya_ebpf::bindings::{
    __sk_buff, BPF_TCP_LISTEN, BPF_TCP_NEW_SYN_RECV, BPF_TCP_SYN_RECV, BPF_TCP_SYN_SENT, bpf_sock,
};
use aya_ebpf::helpers::generated::{
    bpf_redirect_peer, bpf_sk_fullsock, bpf_skb_change_type, bpf_skb_load_bytes,
};
use aya_ebpf::macros::{cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use mesh_common::address::Address;
use mesh_common::veth::{self, DepartureAction, FlowDirection, PacketBytes, ParsedPacket, REDIRECTED_MARK};

use crate::context;
use crate::maps::{NEIGHBOURS, VETH_FLOWS};

/// `TCX_NEXT` and `TCX_DROP` of `linux/bpf.h`.
const NEXT: i32 = -1;
const DROP: i32 = 2;
/// `ETH_P_IP` and `ETH_P_IPV6` of `linux/if_ether.h`, in network order.
const IPV4: u32 = 0x0800_u16.to_be() as u32;
const IPV6: u32 = 0x86dd_u16.to_be() as u32;
/// Bytes of an Ethernet header.
const ETHERNET: u32 = 14;
/// `PACKET_HOST` of `linux/if_packet.h`.
const PACKET_HOST: u32 = 0;
/// `IPPROTO_TCP`.
const TCP: u32 = 6;

/// What a pod sends, at the host's end of its veth: segments of filed flows go to the receiver's veth.
#[classifier]
pub fn from_pod(context: TcContext) -> i32 {
    let skb = Skb(context.skb.skb);
    if !skb.goes_to_neighbour() {
        return NEXT;
    }
    let mut direction = FlowDirection::NONE;
    match veth::parse_packet(&skb, ETHERNET, &mut direction) {
        ParsedPacket::Tcp(segment) => {
            let Some(flow) = VETH_FLOWS.get_ptr_mut(&direction) else { return NEXT };
            // SAFETY: the map's memory is there as long as the program; its words are written one by one.
            let flow = unsafe { &mut *flow };
            match veth::departure_action(flow, segment, skb.ifindex(), skb.is_tagged()) {
                DepartureAction::Ordinary => NEXT,
                DepartureAction::Noted => {
                    flow.isn = segment.seq;
                    flow.seen = 1;
                    NEXT
                }
                DepartureAction::Redirected => skb.redirect(flow.out_if),
                DepartureAction::Dropped => DROP,
            }
        }
        ParsedPacket::Unreadable if are_neighbours(&direction) => DROP,
        ParsedPacket::Unreadable | ParsedPacket::Other => NEXT,
    }
}

/// What a socket is about to take: of a filed flow only what was redirected, and the handshake. Runs for
/// every packet of every socket below the cgroup; nearly all of them are let in after one look at what is
/// remembered with the socket.
#[cgroup_skb(ingress)]
pub fn guard(context: SkBuffContext) -> i32 {
    let skb = Skb(context.skb.skb);
    if skb.mark() == REDIRECTED_MARK {
        return 1;
    }
    let Some(socket) = skb.socket() else { return 1 };
    let state = socket.state();
    // Which connection it is the packet alone says. A new socket of a connection is in the second of these
    // states until it is remembered whose it is (kernel: `tcp_rcv_state_process`).
    let is_new = matches!(state, BPF_TCP_LISTEN | BPF_TCP_SYN_RECV | BPF_TCP_NEW_SYN_RECV);
    if !is_new && context::veth_end_of(socket.0).is_none() {
        return 1;
    }
    let connecting = state == BPF_TCP_SYN_SENT;
    i32::from(if is_new || connecting { skb.may_arrive(connecting) } else { skb.begins() })
}

#[inline(always)]
fn may_be_neighbour(address: &Address) -> bool {
    let slot = veth::neighbour_slot(address);
    NEIGHBOURS.get(slot >> 6).is_some_and(|slots| slots >> (slot & 63) & 1 != 0)
}

/// Whether there may be a filed flow between two addresses.
#[inline(always)]
fn are_neighbours(direction: &FlowDirection) -> bool {
    may_be_neighbour(&direction.from.address) && may_be_neighbour(&direction.to.address)
}

/// A packet.
struct Skb(*mut __sk_buff);

/// A full socket: neither one that waits for the end of its handshake nor one in `TIME_WAIT`.
struct Socket(*mut bpf_sock);

impl PacketBytes for Skb {
    #[inline(always)]
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        // SAFETY: the context is the program's own; the helper writes so many bytes, whether it finds them or
        // not.
        unsafe { bpf_skb_load_bytes(self.0.cast(), at, to.as_mut_ptr().cast(), N as u32) == 0 }
    }
}

impl Skb {
    #[inline(always)]
    fn mark(&self) -> u32 {
        // SAFETY: the kernel passes a valid context for the length of the program; the verifier checks each
        // load.
        unsafe { (*self.0).mark }
    }

    #[inline(always)]
    fn ifindex(&self) -> u32 {
        // SAFETY: as above.
        unsafe { (*self.0).ifindex }
    }

    #[inline(always)]
    fn is_tagged(&self) -> bool {
        // SAFETY: as above.
        unsafe { (*self.0).vlan_present != 0 }
    }

    /// The first look at what a pod sends.
    #[inline(always)]
    fn goes_to_neighbour(&self) -> bool {
        let mut to = Address::UNSPECIFIED;
        // SAFETY: as above.
        let read = match unsafe { (*self.0).protocol } {
            IPV4 => {
                let mut last = [0; 4];
                let read = self.load(ETHERNET + 16, &mut last);
                to = Address::v4(last);
                read
            }
            IPV6 => self.load(ETHERNET + 24, &mut to.0),
            _ => false,
        };
        read && may_be_neighbour(&to)
    }

    #[inline(always)]
    fn redirect(&self, interface: u32) -> i32 {
        // SAFETY: the context is the program's own. Before Linux 6.15 the receiver would take the packet for
        // somebody else's without the second.
        unsafe {
            (*self.0).mark = REDIRECTED_MARK;
            bpf_skb_change_type(self.0.cast(), PACKET_HOST);
            bpf_redirect_peer(interface, 0) as i32
        }
    }

    /// The TCP socket that takes it, if it is one.
    #[inline(always)]
    fn socket(&self) -> Option<Socket> {
        // SAFETY: as above; the helper answers null or a socket that is there as long as the program.
        unsafe {
            let socket = (*self.0).__bindgen_anon_2.sk;
            if socket.is_null() {
                return None;
            }
            let socket = bpf_sk_fullsock(socket);
            (!socket.is_null() && (*socket).protocol == TCP).then_some(Socket(socket))
        }
    }

    /// Whether a packet that was not redirected begins another connection of the same addresses and ports as
    /// the one that its socket has still: the kernel asks the client about it, and then lets it in.
    #[inline(always)]
    fn begins(&self) -> bool {
        let mut direction = FlowDirection::NONE;
        let ParsedPacket::Tcp(segment) = veth::parse_packet(self, 0, &mut direction) else { return false };
        // SAFETY: as in `may_arrive`.
        unsafe { VETH_FLOWS.get(&direction) }
            .is_some_and(|flow| veth::accepts_unredirected(flow, segment, false))
    }

    /// Whether a packet that was not redirected may be part of what it says to be part of.
    #[inline(always)]
    fn may_arrive(&self, connecting: bool) -> bool {
        let mut direction = FlowDirection::NONE;
        match veth::parse_packet(self, 0, &mut direction) {
            ParsedPacket::Tcp(segment) => {
                if !may_be_neighbour(&direction.from.address) {
                    return true;
                }
                // SAFETY: the map's memory is there as long as the program; a word at a time is read.
                unsafe { VETH_FLOWS.get(&direction) }
                    .is_none_or(|flow| veth::accepts_unredirected(flow, segment, connecting))
            }
            ParsedPacket::Unreadable => !are_neighbours(&direction),
            // A TCP socket gets nothing else.
            ParsedPacket::Other => false,
        }
    }
}

impl Socket {
    #[inline(always)]
    fn state(&self) -> u32 {
        // SAFETY: not null; the verifier checks the load.
        unsafe { (*self.0).state }
    }
}
