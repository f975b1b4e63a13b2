//! At the proxy's outbound listeners: a SYN waits until the proxy knows whether somebody takes the connection
//! ([`mesh_common::deferred_accept`]).

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::generated::{bpf_get_socket_cookie, bpf_skb_load_bytes, bpf_skb_load_bytes_relative};
use aya_ebpf::macros::socket_filter;
use aya_ebpf::programs::SkBuffContext;
use core::ptr;
use mesh_common::address::Address;
use mesh_common::deferred_accept::{self as rules, DeferredSyn, MAX_TCP_HEADER_BYTES};
use mesh_common::maps::{AddressPort, NetnsConnection};
use mesh_common::redirect_rules;

use crate::direct::{agent_lives, now};
use crate::maps::{DECISIONS, DEFERRED_SYNS, HANDOFFS, HERE};
use crate::nobody;

/// The whole segment goes on.
const PASS: i64 = u32::MAX as i64;
/// It is dropped, and nobody is told (kernel: `tcp_filter`).
const DROP: i64 = 0;

/// `BPF_HDR_START_NET` of `linux/bpf.h`.
const FROM_IP_HEADER: u32 = 1;

/// Offsets in the IP headers (RFC 791, RFC 8200), and in that of TCP.
const IPV4_SOURCE: u32 = 12;
const IPV6_SOURCE: u32 = 8;
const DATA_OFFSET: u32 = 12;
const FLAGS: u32 = 13;

/// Runs for every segment that comes to a listener, and inherited by what it accepts until that lets go of
/// it: most are no SYN. What can't be read, is not known, or finds no room goes on: then the client hears a
/// moment later what came of it.
#[socket_filter]
pub fn defer_accept(context: SkBuffContext) -> i64 {
    let segment = Segment(context.skb.skb);
    match segment.byte(FLAGS) {
        Some(flags) if rules::is_initial_syn(flags) => {}
        _ => return PASS,
    }
    if waits(&segment) { DROP } else { PASS }
}

#[inline(always)]
fn waits(segment: &Segment) -> bool {
    let mut connection = NetnsConnection {
        netns: 0,
        client: AddressPort::new(Address::UNSPECIFIED, 0),
        server: AddressPort::new(Address::UNSPECIFIED, 0),
    };
    if !segment.read(&mut connection)
        || !redirect_rules::is_outbound_listener_address(connection.server.address)
    {
        return false;
    }
    // SAFETY: the entries are copied at once.
    let (asked, decided) = unsafe { (HANDOFFS.get(connection).copied(), DECISIONS.get(connection).copied()) };
    let Some(destination) = asked else { return false };
    let is_decided = decided.is_some_and(|decision| decision.refused_at(now()).is_some());
    if is_decided || !agent_lives() || was_taken_lately(connection.netns, &destination) {
        return false;
    }
    tell(segment, &connection, &destination)
}

/// Not inlined: there is one stack for all.
#[inline(never)]
fn was_taken_lately(client: u64, to: &AddressPort) -> bool {
    nobody::lately(client, &AddressPort::new(to.address, to.port)) == Some(false)
}

/// Returns whether the proxy will hear of it. Not inlined, as above.
#[inline(never)]
fn tell(segment: &Segment, connection: &NetnsConnection, destination: &AddressPort) -> bool {
    let Some(length) = segment.byte(DATA_OFFSET).and_then(rules::tcp_header_length) else { return false };
    // SAFETY: a word of the stack. Volatile, so that the verifier sees the bounds that are checked next.
    let length = unsafe { ptr::read_volatile(&raw const length) };
    if length == 0 || length > MAX_TCP_HEADER_BYTES as u32 {
        return false;
    }
    let Some(mut record) = DEFERRED_SYNS.reserve::<DeferredSyn>(0) else { return false };
    let syn = record.as_mut_ptr();
    // SAFETY: the record is as long as the structure, and is written field by field; what is behind the
    // header is nobody's business but the proxy's. The helpers get the program's own context.
    let whole = unsafe {
        ptr::addr_of_mut!((*syn).at).write(now());
        ptr::addr_of_mut!((*syn).listener).write(bpf_get_socket_cookie(segment.0.cast()));
        ptr::addr_of_mut!((*syn).connection).write(*connection);
        ptr::addr_of_mut!((*syn).destination).write(*destination);
        ptr::addr_of_mut!((*syn).length).write(length);
        ptr::addr_of_mut!((*syn).zero).write(0);
        let header = ptr::addr_of_mut!((*syn).header).cast();
        bpf_skb_load_bytes(segment.0.cast(), 0, header, length) == 0
    };
    if whole {
        record.submit(0);
    } else {
        record.discard(0);
    }
    whole
}

/// A TCP segment that has come to a socket: what the filter sees begins with its TCP header.
struct Segment(*mut __sk_buff);

impl Segment {
    #[inline(always)]
    fn byte(&self, offset: u32) -> Option<u8> {
        let mut byte = 0_u8;
        // SAFETY: the context is the program's own, and one byte may be written.
        let read = unsafe { bpf_skb_load_bytes(self.0.cast(), offset, ptr::from_mut(&mut byte).cast(), 1) };
        (read == 0).then_some(byte)
    }

    #[inline(always)]
    fn ip<const N: usize>(&self, offset: u32) -> Option<[u8; N]> {
        let mut bytes = [0; N];
        // SAFETY: as above, and so many bytes.
        let read = unsafe {
            bpf_skb_load_bytes_relative(
                self.0.cast(),
                offset,
                bytes.as_mut_ptr().cast(),
                N as u32,
                FROM_IP_HEADER,
            )
        };
        (read == 0).then_some(bytes)
    }

    /// Fills in both ends, and the namespace: `sk_lookup` has just noted it, on this processor, when it was
    /// asked for the listener. Returns false if they can't be read.
    #[inline(always)]
    fn read(&self, connection: &mut NetnsConnection) -> bool {
        connection.netns = HERE.get(0).copied().unwrap_or(0);
        let Some([version]) = self.ip::<1>(0) else { return false };
        if version >> 4 == 4 {
            let Some([a, b, c, d, e, f, g, h]) = self.ip::<8>(IPV4_SOURCE) else { return false };
            connection.client.address = Address::v4([a, b, c, d]);
            connection.server.address = Address::v4([e, f, g, h]);
        } else {
            let Some(source) = self.ip::<16>(IPV6_SOURCE) else { return false };
            let Some(destination) = self.ip::<16>(IPV6_SOURCE + 16) else { return false };
            connection.client.address = Address(source);
            connection.server.address = Address(destination);
        }
        let mut ports = [0; 4];
        // SAFETY: as above; four bytes.
        let read = unsafe { bpf_skb_load_bytes(self.0.cast(), 0, ports.as_mut_ptr().cast(), 4) };
        let [a, b, c, d] = ports;
        connection.client.port = u16::from_be_bytes([a, b]);
        connection.server.port = u16::from_be_bytes([c, d]);
        read == 0
    }
}

/// Whether the proxy has found that nobody takes a connection which arrives at its listener now.
#[inline(never)]
pub fn is_refused(netns: u64, client: &AddressPort, server: &AddressPort) -> bool {
    let connection = NetnsConnection { netns, client: *client, server: *server };
    // SAFETY: the entry is copied at once.
    unsafe { DECISIONS.get(connection) }.copied().and_then(|decision| decision.refused_at(now()))
        == Some(true)
}
