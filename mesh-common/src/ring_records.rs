//! Parses the records of the ring buffers into the structures of [`crate::fault`], [`crate::deferred_accept`]
//! and [`crate::direct`]. A record that is too short, or of a kind that this version does not know, is none.

use crate::address::Address;
use crate::deferred_accept::DeferredSyn;
use crate::direct::{DirectEvent, DirectEventKind};
use crate::fault::{Fault, FaultEvent};
use crate::maps::{AddressPort, NetnsConnection};

/// Parses a record of `EVENTS`.
pub fn parse_fault_event(record: &[u8]) -> Option<(Fault, FaultEvent)> {
    let mut fields = Fields(record);
    let event = FaultEvent { netns: fields.u64()?, fault: fields.u32()?, destination: fields.endpoint()? };
    Some((Fault::from_number(event.fault)?, event))
}

/// Parses a record of `DIRECT_EVENTS`.
pub fn parse_direct_event(record: &[u8]) -> Option<(DirectEventKind, DirectEvent)> {
    let mut fields = Fields(record);
    let event = DirectEvent {
        kind: fields.u32()?,
        rtt: fields.u32()?,
        socket: fields.u64()?,
        client_netns: fields.u64()?,
        server_netns: fields.u64()?,
        opened: fields.u64()?,
        now: fields.u64()?,
        sent: fields.u64()?,
        received: fields.u64()?,
        client: fields.endpoint()?,
        server: fields.endpoint()?,
        destination: fields.endpoint()?,
        ended_in: fields.u32()?,
    };
    Some((DirectEventKind::from_number(event.kind)?, event))
}

/// Parses a record of `DEFERRED_SYNS`; none if its header can't have the length that it says.
pub fn parse_deferred_syn(record: &[u8]) -> Option<DeferredSyn> {
    let mut fields = Fields(record);
    let syn = DeferredSyn {
        at: fields.u64()?,
        listener: fields.u64()?,
        connection: NetnsConnection {
            netns: fields.u64()?,
            client: fields.endpoint()?,
            server: fields.endpoint()?,
        },
        destination: fields.endpoint()?,
        length: fields.u32()?,
        header: fields.take()?,
        zero: fields.u32()?,
    };
    syn.header
        .get(..usize::try_from(syn.length).ok()?)
        .is_some_and(|header| header.len() >= 20)
        .then_some(syn)
}

/// The rest of a record, read field by field in the order of the structure, which has no hidden padding.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    fn u16(&mut self) -> Option<u16> {
        self.take().map(u16::from_ne_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_ne_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_ne_bytes)
    }

    fn endpoint(&mut self) -> Option<AddressPort> {
        Some(AddressPort { address: Address(self.take()?), port: self.u16()?, note: self.u16()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decodes_what_the_programs_write() {
        let mut bytes = Vec::new();
        bytes.extend(7_u64.to_ne_bytes());
        bytes.extend((Fault::ListenerMissing as u32).to_ne_bytes());
        bytes.extend(Address::v4([10, 0, 0, 1]).0);
        bytes.extend(80_u16.to_ne_bytes());
        bytes.extend([0; 2]);
        assert_eq!(bytes.len(), size_of::<FaultEvent>());
        let destination = AddressPort::new(Address::v4([10, 0, 0, 1]), 80);
        let expected = FaultEvent { netns: 7, fault: Fault::ListenerMissing as u32, destination };
        assert_eq!(parse_fault_event(&bytes), Some((Fault::ListenerMissing, expected)));
        for length in 0..bytes.len() {
            assert_eq!(parse_fault_event(&bytes[..length]), None, "{length} bytes");
        }
    }
}
