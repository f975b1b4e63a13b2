//! What a proxy asks its keeper for: the keeper has privileges, and does not trust the proxy.

#[path = "../../mesh-agent/src/keeper/protocol.rs"]
pub mod protocol;

use std::net::IpAddr;

use protocol::{
    Claim, KeeperAnswer, KeeperRequest, MOST_ADDRESSES, MOST_PROBE_PORTS, MOST_SOCKETS, RECORD_LEN,
    RecordBytes, StartMessage,
};

/// A record's bytes, without the zeros at its end.
pub fn check(data: &[u8]) {
    if data.len() > RECORD_LEN {
        return;
    }
    let mut record = [0; RECORD_LEN];
    record[..data.len()].copy_from_slice(data);
    let request = KeeperRequest::decode(&record);
    assert_eq!(request.is_some(), is_request(&record), "{request:?}");
    if let Some(request) = request {
        check_bounds(&request);
        assert_eq!(KeeperRequest::decode(&request.encode()), Some(request), "what is said is what is heard");
    }
    if let Some(answer) = KeeperAnswer::decode(&record) {
        assert_eq!(KeeperAnswer::decode(&answer.encode()), Some(answer), "what is answered is what is heard");
    }
    if let Some(message) = StartMessage::decode(&record) {
        assert_eq!(StartMessage::decode(&message.encode()), Some(message));
    }
}

/// What the keeper relies on.
fn check_bounds(request: &KeeperRequest) {
    match request {
        KeeperRequest::Enrol(claim) => {
            // It becomes a part of a path.
            assert!((32..=36).contains(&claim.uid.len()));
            assert!(claim.uid.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-')));
            assert!(claim.addresses.len() <= MOST_ADDRESSES && claim.probe_ports.len() <= MOST_PROBE_PORTS);
            assert!(claim.addresses.iter().all(|address| *address == address.to_canonical()));
            let Claim { uid, addresses, probe_ports, own_userns } = claim;
            let again = Claim::new(uid, addresses, probe_ports).map(|it| it.with_own_userns(*own_userns));
            assert_eq!(again.as_ref(), Ok(claim));
        }
        KeeperRequest::Destroy(_, of) => assert_eq!(of.local.is_ipv4(), of.remote.is_ipv4()),
        KeeperRequest::Sockets(_, _, count) => assert!((1..=MOST_SOCKETS).contains(count)),
        KeeperRequest::Unenrol(_)
        | KeeperRequest::UnenrolUnclaimed
        | KeeperRequest::Ready
        | KeeperRequest::Uninstalled
        | KeeperRequest::List(_)
        | KeeperRequest::PreexistingJudged(_)
        | KeeperRequest::LetStart(_)
        | KeeperRequest::WritePluginState(_)
        | KeeperRequest::Bequeath(_) => {}
    }
}

/// Whether a record is a request, by where its bytes are.
fn is_request(record: &RecordBytes) -> bool {
    match record[0] {
        1 => is_claim(&record[1..]),
        4 => {
            let v4 = |at: usize| {
                let address = <[u8; 16]>::try_from(&record[at..at + 16]).expect("sixteen bytes");
                IpAddr::from(address).to_canonical().is_ipv4()
            };
            v4(17) == v4(35)
        }
        5 => (1..=6).contains(&record[9]) && (1..=32).contains(&record[10]),
        2 | 3 | 6..=10 | 12 => true,
        11 => (1..=2).contains(&record[1]),
        _ => false,
    }
}

fn is_claim(bytes: &[u8]) -> bool {
    let length = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
    let hexadecimal = |byte: &u8| b"-0123456789abcdef".contains(byte);
    if !(32..=36).contains(&length) || !bytes[2..2 + length].iter().all(hexadecimal) {
        return false;
    }
    let addresses = usize::from(bytes[2 + length]);
    let ports = |addresses: usize| usize::from(bytes[3 + length + 16 * addresses]);
    addresses <= 8 && ports(addresses) <= 64
}
