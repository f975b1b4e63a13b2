//! Packets of pods, as the programs at their veths and the guard read them.

use mesh_common::address::Address;
use mesh_common::veth::{FlowDirection, PacketBytes, ParsedPacket, parse_packet};

struct Data<'a>(&'a [u8]);

impl PacketBytes for Data<'_> {
    fn load<const N: usize>(&self, at: u32, to: &mut [u8; N]) -> bool {
        let found = self.0.get(at as usize..).and_then(|bytes| bytes.first_chunk());
        found.is_some_and(|bytes| {
            *to = *bytes;
            true
        })
    }
}

/// What is TCP for sure is never taken for something else, and what was read is where it says to be.
pub fn check(data: &[u8]) {
    let mut direction = FlowDirection::NONE;
    let packet = parse_packet(&Data(data), 0, &mut direction);
    let version = data.first().map(|first| first >> 4);
    let addresses = match version {
        Some(4) if data.len() >= 20 => [12, 16].map(|at| Address::v4(data[at..at + 4].try_into().unwrap())),
        Some(6) if data.len() >= 40 => [8, 24].map(|at| Address(data[at..at + 16].try_into().unwrap())),
        _ => return assert_eq!(packet, ParsedPacket::Other),
    };
    let next = if version == Some(4) { data[9] } else { data[6] };
    match packet {
        ParsedPacket::Other => assert_ne!(next, 6, "TCP"),
        ParsedPacket::Unreadable => assert_eq!([direction.from.address, direction.to.address], addresses),
        ParsedPacket::Tcp(segment) => {
            assert_eq!([direction.from.address, direction.to.address], addresses);
            assert!(!direction.is_half_closed_key());
            let ports = [direction.from.port, direction.to.port].map(u16::to_be_bytes).concat();
            let header = [&ports[..], &segment.seq.to_be_bytes()].concat();
            assert!(data[20..].windows(8).any(|bytes| bytes == header));
        }
    }
}
