//! The payload of an OPEN frame: who connects to where.

use std::net::{IpAddr, SocketAddr};

/// Most bytes of a host name (RFC 1035, section 2.3.4).
const LONGEST_HOST: usize = 253;

const HOST: u8 = 1;
const TRACE: u8 = 2;

/// The frame that asks for a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OpenFrame {
    /// Bytes that the other end may send before it needs CREDIT.
    pub credit: u32,
    /// The client's address as its application knows it.
    pub source: SocketAddr,
    /// The pod's address and port.
    pub destination: SocketAddr,
    /// Host name of the service that the client addressed, if it did.
    pub host: Option<String>,
    /// Trace context of the stream, if it has one.
    pub trace: Option<TraceContext>,
}

/// A trace context (W3C Trace Context, version 00).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Id of the trace.
    pub id: [u8; 16],
    /// Id of the parent span.
    pub parent: [u8; 8],
    /// Trace flags; bit 0 says that the trace is recorded.
    pub flags: u8,
}

impl OpenFrame {
    /// Creates one with the addresses alone, without credit.
    pub fn new(source: SocketAddr, destination: SocketAddr) -> Self {
        Self { credit: 0, source, destination, host: None, trace: None }
    }

    pub(super) fn encode(&self, out: &mut Vec<u8>) {
        out.extend_from_slice(&self.credit.to_be_bytes());
        write_address(out, self.source);
        write_address(out, self.destination);
        if let Some(host) = self.host.as_deref().filter(|host| host.len() <= LONGEST_HOST) {
            write_field(out, HOST, &[host.as_bytes()]);
        }
        if let Some(TraceContext { id, parent, flags }) = &self.trace {
            write_field(out, TRACE, &[id, parent, &[*flags]]);
        }
    }

    /// Parses a payload; none if it is not of this form.
    pub(super) fn decode(bytes: &[u8]) -> Option<Self> {
        let (credit, mut rest) = bytes.split_first_chunk()?;
        let (source, destination) = (read_address(&mut rest)?, read_address(&mut rest)?);
        let mut open = Self { credit: u32::from_be_bytes(*credit), ..Self::new(source, destination) };
        while let Some((&[kind, l1, l2], after)) = rest.split_first_chunk() {
            let (value, after) = after.split_at_checked(usize::from(u16::from_be_bytes([l1, l2])))?;
            rest = after;
            match kind {
                HOST => open.host = Some(read_host(value)?),
                TRACE => open.trace = Some(TraceContext::read(value)?),
                // A field of a later version.
                _ => {}
            }
        }
        rest.is_empty().then_some(open)
    }
}

impl TraceContext {
    fn read(value: &[u8]) -> Option<Self> {
        let (id, rest) = value.split_first_chunk()?;
        let (parent, rest) = rest.split_first_chunk()?;
        let &[flags] = rest else { return None };
        Some(Self { id: *id, parent: *parent, flags })
    }
}

#[allow(clippy::cast_possible_truncation, reason = "the values are shorter than a frame")]
fn write_field(out: &mut Vec<u8>, kind: u8, value: &[&[u8]]) {
    let length: usize = value.iter().map(|part| part.len()).sum();
    out.push(kind);
    out.extend_from_slice(&(length as u16).to_be_bytes());
    value.iter().for_each(|part| out.extend_from_slice(part));
}

fn read_host(value: &[u8]) -> Option<String> {
    let host = std::str::from_utf8(value).ok()?;
    (value.len() <= LONGEST_HOST).then(|| host.to_owned())
}

fn write_address(out: &mut Vec<u8>, address: SocketAddr) {
    match address.ip() {
        IpAddr::V4(ip) => {
            out.push(4);
            out.extend_from_slice(&ip.octets());
        }
        IpAddr::V6(ip) => {
            out.push(6);
            out.extend_from_slice(&ip.octets());
        }
    }
    out.extend_from_slice(&address.port().to_be_bytes());
}

fn read_address(bytes: &mut &[u8]) -> Option<SocketAddr> {
    let (family, rest) = bytes.split_first()?;
    let (ip, rest) = match family {
        4 => rest.split_first_chunk::<4>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        6 => rest.split_first_chunk::<16>().map(|(ip, rest)| (IpAddr::from(*ip), rest))?,
        _ => return None,
    };
    let (port, rest) = rest.split_first_chunk()?;
    *bytes = rest;
    Some(SocketAddr::new(ip, u16::from_be_bytes(*port)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn written(open: &OpenFrame) -> Vec<u8> {
        let mut bytes = Vec::new();
        open.encode(&mut bytes);
        bytes
    }

    fn full() -> OpenFrame {
        OpenFrame {
            credit: 77,
            source: "[fd00:244:1::5]:40000".parse().unwrap(),
            destination: "10.244.1.5:8080".parse().unwrap(),
            host: Some("web.shop.svc.cluster.local".to_owned()),
            trace: Some(TraceContext { id: [7; 16], parent: [8; 8], flags: 1 }),
        }
    }

    #[test]
    fn everything_survives() {
        let open = full();
        assert_eq!(OpenFrame::decode(&written(&open)), Some(open));
    }

    #[test]
    fn what_a_later_version_adds_is_skipped() {
        let mut bytes = written(&full());
        write_field(&mut bytes, 99, &[b"news"]);
        assert_eq!(OpenFrame::decode(&bytes).map(|open| open.credit), Some(77));
    }

    #[test]
    fn what_is_cut_short_is_nothing() {
        let bytes = written(&full());
        // Cut between two fields it is whole again.
        let whole = [bytes.len(), bytes.len() - 28, bytes.len() - 28 - 29];
        for length in 0..bytes.len() {
            assert_eq!(
                OpenFrame::decode(&bytes[..length]).is_some(),
                whole.contains(&length),
                "{length} bytes"
            );
        }
    }

    #[test]
    fn a_host_that_is_none_is_refused() {
        let open = OpenFrame { host: None, trace: None, ..full() };
        for value in [&b"\xff\xfe"[..], &[b'a'; LONGEST_HOST + 1]] {
            let mut bytes = written(&open);
            write_field(&mut bytes, HOST, &[value]);
            assert_eq!(OpenFrame::decode(&bytes), None);
        }
    }
}
