//! The framing of the protocol between nodes, as either end reads what the other sends.

#[path = "../../mesh-proxy/src/mux/frame.rs"]
pub mod frame;
#[path = "../../mesh-proxy/src/mux/open_frame.rs"]
pub mod open_frame;

use std::net::{IpAddr, SocketAddr};

use frame::{
    ControlFrame, DecoderEvent, FrameDecoder, FrameError, GoAwayReason, HEADER_LEN, MAX_CONTROL_LEN,
    MAX_DATA_LEN, Refusal, ResetReason, data_header,
};
use open_frame::{OpenFrame, TraceContext};

/// What a decoder made of some bytes: all that came before the first error, and that.
type Read = (Vec<Item>, Option<FrameError>);

/// One frame, or the beginning of one that is DATA.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Item {
    Data { stream: u32, bytes: Vec<u8>, whole: bool },
    Frame(ControlFrame),
}

/// Two bytes that say where to split the rest, which is what a peer sends. It is the same frames wherever it
/// is split, those that a decoder sees that has all of it at once, and when they are written they are read
/// again.
pub fn check(data: &[u8]) {
    let Some((split, sent)) = data.split_first_chunk() else { return };
    let at = usize::from(u16::from_be_bytes(*split)).min(sent.len());
    let read = decode([sent]);
    let (before, after) = sent.split_at(at);
    assert_eq!(decode([before, after]), read, "split at {at}");
    assert_eq!(decode(sent.chunks(1)), read, "byte by byte");
    assert_eq!(decode(sent.chunks(at.max(1))), read, "in pieces of {at}");
    let (items, error) = &read;
    assert!(error.is_none_or(|error| !error.to_string().is_empty()));
    check_against_simple(items, error.is_some(), sent);
    check_writing(items);
}

fn decode<'a>(pieces: impl IntoIterator<Item = &'a [u8]>) -> Read {
    let (mut decoder, mut items) = (FrameDecoder::default(), Vec::new());
    for mut piece in pieces {
        loop {
            match decoder.next_event(&mut piece) {
                Ok(None) => break,
                Ok(Some(event)) => take(&mut items, event),
                Err(error) => return (items, Some(error)),
            }
        }
        assert!(piece.is_empty(), "it takes everything");
    }
    (items, None)
}

/// Puts the pieces of a DATA frame together.
fn take(items: &mut Vec<Item>, event: DecoderEvent<'_>) {
    match event {
        DecoderEvent::Frame(frame) => items.push(Item::Frame(frame)),
        DecoderEvent::Data { stream, piece, last } => {
            assert!(!piece.is_empty(), "a piece has bytes");
            match items.last_mut() {
                Some(Item::Data { stream: of, bytes, whole }) if !*whole => {
                    assert_eq!(*of, stream, "a frame is of one stream");
                    bytes.extend_from_slice(piece);
                    *whole = last;
                }
                _ => items.push(Item::Data { stream, bytes: piece.to_vec(), whole: last }),
            }
        }
    }
}

/// The same by the tables of `docs/protocol.md`, frame by frame from one slice.
fn check_against_simple(items: &[Item], broken: bool, mut sent: &[u8]) {
    let mut items = items.iter().cloned();
    let mut violated = false;
    while let Some((&[kind, l1, l2, l3, s1, s2, s3, s4], rest)) = sent.split_first_chunk::<HEADER_LEN>() {
        let length = u32::from_be_bytes([0, l1, l2, l3]) as usize;
        let stream = u32::from_be_bytes([s1, s2, s3, s4]);
        let whole = rest.len() >= length;
        let payload = &rest[..length.min(rest.len())];
        violated = !may_be(kind, length, stream);
        if violated {
            break;
        }
        sent = &rest[payload.len()..];
        if kind == 0 && !payload.is_empty() {
            assert_eq!(items.next(), Some(Item::Data { stream, bytes: payload.to_vec(), whole }));
        }
        if (1..=9).contains(&kind) && whole {
            let frame = simple(kind, stream, payload);
            violated = frame.is_none();
            assert_eq!(items.next(), frame.map(Item::Frame));
        }
        if violated {
            break;
        }
    }
    assert_eq!(violated, broken);
    assert_eq!(items.next(), None, "what was not sent");
}

/// Whether there may be a frame with such a header.
fn may_be(kind: u8, length: usize, stream: u32) -> bool {
    match kind {
        0 => (1..=MAX_DATA_LEN).contains(&length) && stream > 0,
        1..=6 => length <= MAX_CONTROL_LEN && stream > 0,
        7..=9 => length <= MAX_CONTROL_LEN && stream == 0,
        10..=127 => false,
        128.. => true,
    }
}

/// A frame of a known kind; none if its payload is not of the kind's form.
fn simple(kind: u8, stream: u32, payload: &[u8]) -> Option<ControlFrame> {
    let credit = || payload.try_into().map(u32::from_be_bytes).ok();
    let code = || if payload.len() == 1 { Some(payload[0]) } else { None };
    let reason = |code| match code {
        1 => ResetReason::Broken,
        2 => ResetReason::Revoked,
        other => ResetReason::Other(other),
    };
    Some(match kind {
        1 => ControlFrame::Open(stream, simple_open(payload)?),
        2 => ControlFrame::Accept(stream, credit()?),
        3 => ControlFrame::Refuse(stream, refusal(code()?)),
        4 => ControlFrame::Credit(stream, credit()?),
        5 if payload.is_empty() => ControlFrame::End(stream),
        6 => ControlFrame::Reset(stream, reason(code()?)),
        7 => ControlFrame::Ping(payload.try_into().ok()?),
        8 => ControlFrame::Pong(payload.try_into().ok()?),
        9 => ControlFrame::GoAway(
            goodbye(*payload.first()?),
            String::from_utf8_lossy(&payload[1..]).into_owned(),
        ),
        _ => return None,
    })
}

fn refusal(code: u8) -> Refusal {
    match code {
        1 => Refusal::Denied,
        2 => Refusal::Unavailable,
        3 => Refusal::BadRequest,
        4 => Refusal::Busy,
        5 => Refusal::GoingAway,
        other => Refusal::Other(other),
    }
}

fn goodbye(code: u8) -> GoAwayReason {
    match code {
        0 => GoAwayReason::Draining,
        1 => GoAwayReason::Violation,
        2 => GoAwayReason::Backlog,
        3 => GoAwayReason::Flood,
        other => GoAwayReason::Other(other),
    }
}

fn simple_open(payload: &[u8]) -> Option<OpenFrame> {
    let number = |at: usize| Some(u16::from_be_bytes([*payload.get(at)?, *payload.get(at + 1)?]));
    let address = |at: usize| {
        let size = if *payload.get(at)? == 4 { 4 } else { 16 };
        let ip = payload.get(at + 1..at + 1 + size)?;
        let ip = match (payload[at], size) {
            (4, _) => IpAddr::from(<[u8; 4]>::try_from(ip).ok()?),
            (6, _) => IpAddr::from(<[u8; 16]>::try_from(ip).ok()?),
            _ => return None,
        };
        Some((SocketAddr::new(ip, number(at + 1 + size)?), at + 3 + size))
    };
    let credit = u32::from(number(0)?) << 16 | u32::from(number(2)?);
    let (source, at) = address(4)?;
    let (destination, mut at) = address(at)?;
    let mut open = OpenFrame { credit, source, destination, host: None, trace: None };
    while at < payload.len() {
        let value = payload.get(at + 3..at + 3 + usize::from(number(at + 1)?))?;
        match payload[at] {
            1 if value.len() > 253 => return None,
            1 => open.host = Some(String::from_utf8(value.to_vec()).ok()?),
            2 if value.len() != 25 => return None,
            2 => {
                let (id, parent, flags) = (value[..16].try_into(), value[16..24].try_into(), value[24]);
                open.trace = Some(TraceContext { id: id.ok()?, parent: parent.ok()?, flags });
            }
            _ => {}
        }
        at += 3 + value.len();
    }
    Some(open)
}

/// What is written is read again the same.
fn check_writing(items: &[Item]) {
    let (mut written, mut expected) = (Vec::new(), Vec::new());
    for item in items {
        match item {
            Item::Data { stream, bytes, .. } => {
                written.extend(data_header(*stream, bytes.len()));
                written.extend(bytes);
                expected.push(Item::Data { stream: *stream, bytes: bytes.clone(), whole: true });
            }
            Item::Frame(frame) => {
                let before = written.len();
                frame.encode(&mut written);
                assert!(written.len() - before <= HEADER_LEN + MAX_CONTROL_LEN);
                expected.push(Item::Frame(cut(frame)));
            }
        }
    }
    assert_eq!(decode([&written[..]]), (expected, None));
}

/// A text may have become longer by what stands for bytes that are no UTF-8; then it is cut.
fn cut(frame: &ControlFrame) -> ControlFrame {
    match frame {
        ControlFrame::GoAway(goodbye, text) => {
            let mut text = text.clone();
            while text.len() >= MAX_CONTROL_LEN {
                text.pop();
            }
            ControlFrame::GoAway(*goodbye, text)
        }
        other => other.clone(),
    }
}
