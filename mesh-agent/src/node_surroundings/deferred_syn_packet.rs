//! Rebuilds a deferred SYN as a packet for its pod's kernel: a bare IP header and the TCP header that the
//! client sent, so that all its options (RFC 9293, RFC 7323, RFC 8684) are kept.

use std::net::{IpAddr, SocketAddr};

use mesh_common::deferred_accept::{DeferredSyn, MAX_TCP_HEADER_BYTES};

/// `IPPROTO_TCP`.
const TCP: u8 = 6;
/// Hop limit; there are no routers on the way.
const HOPS: u8 = 64;
/// Bytes of the longest IP header that is built here.
const LONGEST_IP_HEADER: usize = 40;
/// Offset of the checksum in a TCP header.
const CHECKSUM: usize = 16;

/// An IP packet with a SYN.
pub struct ReplayedSyn {
    bytes: [u8; LONGEST_IP_HEADER + MAX_TCP_HEADER_BYTES],
    length: usize,
}

impl ReplayedSyn {
    /// Builds the packet. The kernel fills in the fields of an IPv4 header that only it knows (raw(7)).
    pub fn from_deferred(syn: &DeferredSyn) -> Self {
        let (client, server) =
            (SocketAddr::from(syn.connection.client), SocketAddr::from(syn.connection.server));
        let length = usize::try_from(syn.length).unwrap_or(MAX_TCP_HEADER_BYTES).min(MAX_TCP_HEADER_BYTES);
        let mut header = syn.header;
        header[CHECKSUM..CHECKSUM + 2].fill(0);
        let mut packet = Self { bytes: [0; _], length: 0 };
        let mut sum = Checksum::default();
        // The pseudo-header (RFC 9293, 3.1; RFC 8200, 8.1).
        sum.add(&[0, TCP]);
        sum.add(&u16_of(length));
        match (client.ip(), server.ip()) {
            (IpAddr::V4(from), IpAddr::V4(to)) => {
                sum.add(&from.octets());
                sum.add(&to.octets());
                packet.push(&[0x45, 0]);
                packet.push(&u16_of(20 + length));
                packet.push(&[0, 0, 0, 0, HOPS, TCP, 0, 0]);
                packet.push(&from.octets());
                packet.push(&to.octets());
            }
            (from, to) => {
                let (from, to) = (v6(from), v6(to));
                sum.add(&from);
                sum.add(&to);
                packet.push(&[0x60, 0, 0, 0]);
                packet.push(&u16_of(length));
                packet.push(&[TCP, HOPS]);
                packet.push(&from);
                packet.push(&to);
            }
        }
        sum.add(&header[..length]);
        header[CHECKSUM..CHECKSUM + 2].copy_from_slice(&sum.end());
        packet.push(&header[..length]);
        packet
    }

    /// Returns the packet's bytes.
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    /// Appends bytes, which fit: the buffer has room for both headers at their longest.
    fn push(&mut self, more: &[u8]) {
        self.bytes[self.length..][..more.len()].copy_from_slice(more);
        self.length += more.len();
    }
}

fn v6(address: IpAddr) -> [u8; 16] {
    match address {
        IpAddr::V4(v4) => v4.to_ipv6_mapped().octets(),
        IpAddr::V6(v6) => v6.octets(),
    }
}

/// Converts a length, which has seven bits here.
fn u16_of(length: usize) -> [u8; 2] {
    u16::try_from(length).unwrap_or(u16::MAX).to_be_bytes()
}

/// The Internet checksum (RFC 1071) of parts that, like headers, have even lengths.
#[derive(Default)]
struct Checksum(u32);

impl Checksum {
    fn add(&mut self, part: &[u8]) {
        for pair in part.chunks(2) {
            let word = u16::from_be_bytes([pair[0], pair.get(1).copied().unwrap_or(0)]);
            self.0 += u32::from(word);
        }
    }

    fn end(self) -> [u8; 2] {
        let folded = (self.0 & 0xffff) + (self.0 >> 16);
        let [_, _, a, b] = (folded + (folded >> 16)).to_be_bytes();
        (!u16::from_be_bytes([a, b])).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::maps::{AddressPort, NetnsConnection};

    use super::*;

    fn syn(client: &str, server: &str, header: &[u8]) -> DeferredSyn {
        let end = |it: &str| {
            let it: SocketAddr = it.parse().unwrap();
            AddressPort::new(it.ip().into(), it.port())
        };
        let mut whole = [0xee; MAX_TCP_HEADER_BYTES];
        whole[..header.len()].copy_from_slice(header);
        DeferredSyn {
            at: 0,
            listener: 0,
            connection: NetnsConnection { netns: 1, client: end(client), server: end(server) },
            destination: end(server),
            length: u32::try_from(header.len()).unwrap(),
            header: whole,
            zero: 0,
        }
    }

    /// As a receiver does (RFC 9293, 3.1): over all of it the sum is zero.
    fn sums_up(pseudo: &[u8], header: &[u8]) -> bool {
        let mut sum = Checksum::default();
        sum.add(pseudo);
        sum.add(&[0, TCP]);
        sum.add(&u16_of(header.len()));
        sum.add(header);
        sum.end() == [0, 0]
    }

    /// As captured from a Linux client, but for the checksum, which its kernel leaves to the device.
    const HEADER: [u8; 40] = [
        0xb9, 0x01, 0x3a, 0x99, 0x8e, 0x5f, 0x7f, 0x92, 0, 0, 0, 0, 0xa0, 0x02, 0xff, 0xd7, 0x91, 0x2e, 0, 0,
        0x02, 0x04, 0xff, 0xd7, 0x04, 0x02, 0x08, 0x0a, 0x6f, 0x36, 0x52, 0x1b, 0, 0, 0, 0, 0x01, 0x03, 0x03,
        0x07,
    ];

    #[test]
    fn carries_the_clients_header_with_a_checksum_of_its_own() {
        let packet = ReplayedSyn::from_deferred(&syn("10.9.9.9:47361", "127.64.3.4:15001", &HEADER));
        let (ip, tcp) = packet.as_bytes().split_at(20);
        assert_eq!((ip[0], &ip[2..4], ip[9]), (0x45, &[0, 60][..], TCP));
        assert_eq!(ip[12..], [10, 9, 9, 9, 127, 64, 3, 4]);
        assert_eq!((&tcp[..CHECKSUM], &tcp[CHECKSUM + 2..]), (&HEADER[..CHECKSUM], &HEADER[CHECKSUM + 2..]));
        assert!(sums_up(&ip[12..], tcp));
    }

    #[test]
    fn an_ipv6_one_too() {
        let packet =
            ReplayedSyn::from_deferred(&syn("[fd00::9]:47361", "[fd5a:e1c7:9d02:15:0:1:2:3]:15001", &HEADER));
        let (ip, tcp) = packet.as_bytes().split_at(40);
        assert_eq!((ip[0], &ip[4..6], ip[6]), (0x60, &[0, 40][..], TCP));
        assert!(sums_up(&ip[8..], tcp));
    }

    #[test]
    fn the_longest_header_fits() {
        let packet =
            ReplayedSyn::from_deferred(&syn("[fd00::9]:1", "[::1]:15001", &[0xff; MAX_TCP_HEADER_BYTES]));
        assert_eq!(packet.as_bytes().len(), LONGEST_IP_HEADER + MAX_TCP_HEADER_BYTES);
        assert!(sums_up(&packet.as_bytes()[8..40], &packet.as_bytes()[40..]));
    }
}
