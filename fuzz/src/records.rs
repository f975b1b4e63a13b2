//! The records that the eBPF programs write into their ring buffers.

use mesh_common::direct::DirectEvent;
use mesh_common::fault::FaultEvent;
use mesh_common::maps::AddressPort;
use mesh_common::ring_records;

/// Both kinds: what is read is what was written, and a record is read exactly if it is long enough and of a
/// known kind.
pub fn check(data: &[u8]) {
    let known = |at: usize, most: u32| {
        let number = data.get(at..at + 4).and_then(|bytes| bytes.try_into().ok()).map(u32::from_ne_bytes);
        number.is_some_and(|number| (1..=most).contains(&number))
    };
    let read = ring_records::parse_fault_event(data);
    assert_eq!(read.is_some(), data.len() >= size_of::<FaultEvent>() && known(8, 13));
    if let Some((fault, event)) = read {
        assert_eq!(fault as u32, event.fault);
        let mut written = [&event.netns.to_ne_bytes()[..], &event.fault.to_ne_bytes()].concat();
        endpoint(&mut written, event.destination);
        assert_eq!(written, data[..written.len()]);
        assert!(!fault.describe().is_empty());
    }
    let read = ring_records::parse_direct_event(data);
    assert_eq!(read.is_some(), data.len() >= size_of::<DirectEvent>() && known(0, 6));
    if let Some((kind, event)) = read {
        assert_eq!(kind as u32, event.kind);
        assert_eq!(direct(&event), data[..size_of::<DirectEvent>()]);
    }
}

fn direct(event: &DirectEvent) -> Vec<u8> {
    let mut written = [event.kind.to_ne_bytes(), event.rtt.to_ne_bytes()].concat();
    let [a, b, c] = [event.socket, event.client_netns, event.server_netns];
    for number in [a, b, c, event.opened, event.now, event.sent, event.received] {
        written.extend(number.to_ne_bytes());
    }
    for of in [event.client, event.server, event.destination] {
        endpoint(&mut written, of);
    }
    written.extend(event.ended_in.to_ne_bytes());
    written
}

fn endpoint(written: &mut Vec<u8>, of: AddressPort) {
    written.extend(of.address.0);
    written.extend(of.port.to_ne_bytes());
    written.extend(of.note.to_ne_bytes());
}
