//! The frames of the mesh's own protocol, version 1 (`docs/protocol.md`): pure functions of bytes, without
//! I/O.
//!
//! A frame is a header of 8 bytes (kind, length of the payload in 24 bits, stream in 32, big-endian) and its
//! payload. [`FrameDecoder`] takes bytes in any pieces. It holds at most one frame that is not DATA, and so
//! never more than [`MAX_CONTROL_LEN`] bytes and a header; DATA is passed on piece by piece, without a copy.

use super::open_frame::OpenFrame;

/// Bytes of a header.
pub const HEADER_LEN: usize = 8;

/// Most bytes of a DATA frame's payload.
pub const MAX_DATA_LEN: usize = 256 * 1024;

/// Most bytes of any other frame's payload.
pub const MAX_CONTROL_LEN: usize = 1024;

/// First kind that a receiver which does not know it skips.
const FIRST_OPTIONAL: u8 = 0x80;

const DATA: u8 = 0;
const OPEN: u8 = 1;
const ACCEPT: u8 = 2;
const REFUSE: u8 = 3;
const CREDIT: u8 = 4;
const END: u8 = 5;
const RESET: u8 = 6;
const PING: u8 = 7;
const PONG: u8 = 8;
const GO_AWAY: u8 = 9;

/// An event of the decoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DecoderEvent<'a> {
    /// Part of a DATA frame.
    Data {
        /// Stream that it is of.
        stream: u32,
        /// The bytes; never empty.
        piece: &'a [u8],
        /// Whether the frame ends with it.
        last: bool,
    },
    /// Any other frame, whole.
    Frame(ControlFrame),
}

/// A frame that is not DATA. Of two numbers the first is the stream, as is a single one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ControlFrame {
    /// Opens a stream.
    Open(u32, OpenFrame),
    /// Accepts it: from here on it carries bytes both ways. The number is further credit for the opener,
    /// bytes.
    Accept(u32, u32),
    /// Refuses it.
    Refuse(u32, Refusal),
    /// Gives credit: that many more bytes may be sent on a stream.
    Credit(u32, u32),
    /// The sender has sent its last byte on a stream.
    End(u32),
    /// The stream is over at once, in both directions.
    Reset(u32, ResetReason),
    /// Asks for a PONG with the same bytes.
    Ping([u8; 8]),
    /// Answers a PING.
    Pong([u8; 8]),
    /// The sender takes no new streams; why, as a code and in words.
    GoAway(GoAwayReason, String),
}

macro_rules! codes {
    ($(#[$doc:meta])* $name:ident { $($(#[$variant_doc:meta])* $variant:ident = $code:literal,)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum $name {
            $($(#[$variant_doc])* $variant,)*
            /// A code that this version does not know.
            Other(u8),
        }

        impl $name {
            fn code(self) -> u8 {
                match self {
                    $(Self::$variant => $code,)*
                    Self::Other(code) => code,
                }
            }

            fn of(code: u8) -> Self {
                match code {
                    $($code => Self::$variant,)*
                    other => Self::Other(other),
                }
            }
        }
    };
}

codes! {
    /// Why a stream is refused.
    Refusal {
        /// The destination's policy denies it.
        Denied = 1,
        /// The destination's application can't be reached, or the node does not know the pod yet.
        Unavailable = 2,
        /// It asks for an address or port that is not to be asked for here.
        BadRequest = 3,
        /// The connection has as many streams as it may; another one may take it.
        Busy = 4,
        /// The node is about to stop; another connection or node may take it.
        GoingAway = 5,
    }
}

codes! {
    /// Why a stream is reset.
    ResetReason {
        /// The application broke its connection, or the node gave it up.
        Broken = 1,
        /// The policy no longer allows it.
        Revoked = 2,
    }
}

codes! {
    /// Why a connection takes no new streams.
    GoAwayReason {
        /// The node is about to stop; open streams go on.
        Draining = 0,
        /// The receiver did what the protocol does not allow; the connection is closed.
        Violation = 1,
        /// The receiver does not read; the connection is closed.
        Backlog = 2,
        /// The receiver sends too much that is of no use; the connection is closed.
        Flood = 3,
    }
}

/// How a peer broke the protocol. Its connection is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// A kind that this version does not know and must not skip.
    #[error("frame of unknown kind {0}")]
    UnknownKind(u8),
    /// A payload longer than its kind allows.
    #[error("frame of kind {kind} with {length} bytes")]
    TooLong {
        /// Kind of the frame.
        kind: u8,
        /// Bytes of its payload.
        length: usize,
    },
    /// A payload that can't be parsed.
    #[error("malformed frame of kind {0}")]
    Malformed(u8),
    /// A frame that needs a stream without one, or the other way round.
    #[error("frame of kind {kind} on stream {stream}")]
    WrongStream {
        /// Kind of the frame.
        kind: u8,
        /// The stream that it was sent on.
        stream: u32,
    },
}

#[derive(Clone, Copy, Debug)]
struct Header {
    kind: u8,
    length: usize,
    stream: u32,
}

impl Header {
    fn read(bytes: [u8; HEADER_LEN]) -> Result<Self, FrameError> {
        let [kind, l1, l2, l3, stream @ ..] = bytes;
        let length = usize::from(l1) << 16 | usize::from(l2) << 8 | usize::from(l3);
        let stream = u32::from_be_bytes(stream);
        let most = match kind {
            DATA => MAX_DATA_LEN,
            OPEN..=GO_AWAY => MAX_CONTROL_LEN,
            FIRST_OPTIONAL.. => usize::MAX,
            unknown => return Err(FrameError::UnknownKind(unknown)),
        };
        if length > most {
            return Err(FrameError::TooLong { kind, length });
        }
        if kind == DATA && length == 0 {
            return Err(FrameError::Malformed(kind));
        }
        let of_connection = (PING..=GO_AWAY).contains(&kind);
        if kind < FIRST_OPTIONAL && of_connection != (stream == 0) {
            return Err(FrameError::WrongStream { kind, stream });
        }
        Ok(Self { kind, length, stream })
    }
}

/// Builds a header.
#[allow(
    clippy::cast_possible_truncation,
    reason = "24 bits hold the length of every frame that is made here"
)]
fn header(kind: u8, stream: u32, length: usize) -> [u8; HEADER_LEN] {
    let [s1, s2, s3, s4] = stream.to_be_bytes();
    [kind, (length >> 16) as u8, (length >> 8) as u8, length as u8, s1, s2, s3, s4]
}

/// Builds the header of a DATA frame of `length` bytes, at most [`MAX_DATA_LEN`].
pub fn data_header(stream: u32, length: usize) -> [u8; HEADER_LEN] {
    debug_assert!(length <= MAX_DATA_LEN);
    header(DATA, stream, length)
}

/// Counts of skipped frames of unknown kinds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SkippedFrames {
    /// Number of frames.
    pub frames: usize,
    /// Bytes of their payloads.
    pub bytes: usize,
}

/// Turns bytes into events.
#[derive(Debug, Default)]
pub struct FrameDecoder {
    /// Bytes of the current payload that are still to come, to be passed on or skipped.
    left: usize,
    /// Stream of that payload; none if it is skipped.
    stream: Option<u32>,
    /// Skipped since [`FrameDecoder::take_skipped_counts`] was called.
    skipped: SkippedFrames,
    /// Beginning of a frame that is not complete yet.
    held: Vec<u8>,
}

impl FrameDecoder {
    /// Takes the next event off the front of `bytes`; none when all bytes are taken. Errors: the peer broke
    /// the protocol.
    pub fn next_event<'a>(&mut self, bytes: &mut &'a [u8]) -> Result<Option<DecoderEvent<'a>>, FrameError> {
        loop {
            if self.left > 0 {
                match self.payload(bytes) {
                    None if bytes.is_empty() => return Ok(None),
                    None => continue,
                    event => return Ok(event),
                }
            }
            let header = match self.whole_header(bytes) {
                None => return Ok(None),
                Some(header) => Header::read(header)?,
            };
            if header.kind == DATA || header.kind >= FIRST_OPTIONAL {
                self.skip_header(bytes);
                self.left = header.length;
                self.stream = (header.kind == DATA).then_some(header.stream);
                if self.stream.is_none() {
                    self.skipped.frames += 1;
                    self.skipped.bytes = self.skipped.bytes.saturating_add(header.length);
                }
                continue;
            }
            if let Some(frame) = self.whole_frame(header, bytes)? {
                return Ok(Some(DecoderEvent::Frame(frame)));
            }
            return Ok(None);
        }
    }

    /// Returns the frames skipped since the last call. A payload counts once its header is there.
    pub fn take_skipped_counts(&mut self) -> SkippedFrames {
        std::mem::take(&mut self.skipped)
    }

    /// Passes on or skips a part of a payload.
    fn payload<'a>(&mut self, bytes: &mut &'a [u8]) -> Option<DecoderEvent<'a>> {
        let (piece, rest) = bytes.split_at(self.left.min(bytes.len()));
        *bytes = rest;
        self.left -= piece.len();
        let stream = self.stream?;
        (!piece.is_empty()).then_some(DecoderEvent::Data { stream, piece, last: self.left == 0 })
    }

    /// Returns the next frame's header without taking it; none if it is incomplete, and then it is held.
    fn whole_header(&mut self, bytes: &mut &[u8]) -> Option<[u8; HEADER_LEN]> {
        if self.held.is_empty()
            && let Some(header) = bytes.first_chunk()
        {
            return Some(*header);
        }
        self.hold(HEADER_LEN, bytes);
        self.held.first_chunk().copied()
    }

    fn skip_header(&mut self, bytes: &mut &[u8]) {
        if self.held.is_empty() {
            *bytes = &bytes[HEADER_LEN..];
        }
        self.held = Vec::new();
    }

    /// Moves bytes to the held ones until there are `wanted`.
    fn hold(&mut self, wanted: usize, bytes: &mut &[u8]) {
        let (more, rest) = bytes.split_at(wanted.saturating_sub(self.held.len()).min(bytes.len()));
        self.held.extend_from_slice(more);
        *bytes = rest;
    }

    fn whole_frame(&mut self, header: Header, bytes: &mut &[u8]) -> Result<Option<ControlFrame>, FrameError> {
        let length = HEADER_LEN + header.length;
        if self.held.is_empty() && bytes.len() >= length {
            let (frame, rest) = bytes.split_at(length);
            *bytes = rest;
            return ControlFrame::read(header, &frame[HEADER_LEN..]).map(Some);
        }
        self.hold(length, bytes);
        if self.held.len() < length {
            return Ok(None);
        }
        let held = std::mem::take(&mut self.held);
        ControlFrame::read(header, &held[HEADER_LEN..]).map(Some)
    }
}

impl ControlFrame {
    fn read(header: Header, payload: &[u8]) -> Result<Self, FrameError> {
        let Header { kind, stream, .. } = header;
        let frame = match (kind, payload) {
            (OPEN, payload) => OpenFrame::decode(payload).map(|open| Self::Open(stream, open)),
            (ACCEPT, &[a, b, c, d]) => Some(Self::Accept(stream, u32::from_be_bytes([a, b, c, d]))),
            (REFUSE, &[code]) => Some(Self::Refuse(stream, Refusal::of(code))),
            (CREDIT, &[a, b, c, d]) => Some(Self::Credit(stream, u32::from_be_bytes([a, b, c, d]))),
            (END, &[]) => Some(Self::End(stream)),
            (RESET, &[code]) => Some(Self::Reset(stream, ResetReason::of(code))),
            (PING, payload) => payload.try_into().ok().map(Self::Ping),
            (PONG, payload) => payload.try_into().ok().map(Self::Pong),
            (GO_AWAY, [code, text @ ..]) => {
                Some(Self::GoAway(GoAwayReason::of(*code), String::from_utf8_lossy(text).into_owned()))
            }
            _ => None,
        };
        frame.ok_or(FrameError::Malformed(kind))
    }

    /// Appends the frame's bytes. A text that is too long is cut; a host name that is too long is left out.
    pub fn encode(&self, out: &mut Vec<u8>) {
        let (kind, stream) = match self {
            Self::Open(stream, _) => (OPEN, *stream),
            Self::Accept(stream, _) => (ACCEPT, *stream),
            Self::Refuse(stream, _) => (REFUSE, *stream),
            Self::Credit(stream, _) => (CREDIT, *stream),
            Self::End(stream) => (END, *stream),
            Self::Reset(stream, _) => (RESET, *stream),
            Self::Ping(_) => (PING, 0),
            Self::Pong(_) => (PONG, 0),
            Self::GoAway(..) => (GO_AWAY, 0),
        };
        let at = out.len();
        out.extend_from_slice(&header(kind, stream, 0));
        match self {
            Self::Open(_, open) => open.encode(out),
            Self::Accept(_, credit) | Self::Credit(_, credit) => {
                out.extend_from_slice(&credit.to_be_bytes());
            }
            Self::Refuse(_, refusal) => out.push(refusal.code()),
            Self::Reset(_, reason) => out.push(reason.code()),
            Self::End(_) => {}
            Self::Ping(opaque) | Self::Pong(opaque) => out.extend_from_slice(opaque),
            Self::GoAway(goodbye, text) => {
                out.push(goodbye.code());
                out.extend_from_slice(&text.as_bytes()[..text.floor_char_boundary(MAX_CONTROL_LEN - 1)]);
            }
        }
        let length = out.len() - at - HEADER_LEN;
        out[at..at + HEADER_LEN].copy_from_slice(&header(kind, stream, length));
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::super::open_frame::TraceContext;
    use super::*;

    fn frames() -> Vec<ControlFrame> {
        vec![
            ControlFrame::Open(
                7,
                OpenFrame::new("10.0.0.1:80".parse().unwrap(), "[fd00::1]:443".parse().unwrap()),
            ),
            ControlFrame::Accept(7, 1 << 20),
            ControlFrame::Refuse(8, Refusal::Denied),
            ControlFrame::Refuse(8, Refusal::Other(99)),
            ControlFrame::Credit(u32::MAX, 1),
            ControlFrame::End(1),
            ControlFrame::Reset(1, ResetReason::Revoked),
            ControlFrame::Ping(*b"12345678"),
            ControlFrame::Pong(*b"87654321"),
            ControlFrame::GoAway(GoAwayReason::Violation, "nonsense".to_owned()),
        ]
    }

    /// All events of `bytes`, given to the decoder in pieces of `size`; DATA of one frame put together again.
    fn decode(bytes: &[u8], size: usize) -> Result<(Vec<ControlFrame>, Vec<u8>), FrameError> {
        let (mut decoder, mut frames, mut data) = (FrameDecoder::default(), Vec::new(), Vec::new());
        for mut piece in bytes.chunks(size) {
            while let Some(event) = decoder.next_event(&mut piece)? {
                match event {
                    DecoderEvent::Data { piece, .. } => data.extend_from_slice(piece),
                    DecoderEvent::Frame(frame) => frames.push(frame),
                }
            }
            assert!(piece.is_empty(), "the decoder takes everything");
        }
        Ok((frames, data))
    }

    /// Two bytes in front say to the target where to split.
    #[test]
    #[ignore = "writes into the tree: the first inputs of the fuzz target `frames`"]
    fn write_seeds() {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/frames");
        std::fs::create_dir_all(&directory).unwrap();
        let put = |name: &str, sent: &[u8]| {
            std::fs::write(directory.join(name), [&[0, 9], sent].concat()).unwrap();
        };
        let mut conversation = Vec::new();
        for frame in frames() {
            let mut alone = Vec::new();
            frame.encode(&mut alone);
            put(&format!("kind-{}-{}", alone[0], alone.len()), &alone);
            conversation.extend(alone);
        }
        let mut open = OpenFrame::new("[fd00::1]:9".parse().unwrap(), "[fd00::2]:8080".parse().unwrap());
        open.host = Some("web.shop.svc.cluster.local".to_owned());
        open.trace = Some(TraceContext { id: [7; 16], parent: [8; 8], flags: 1 });
        let mut full = Vec::new();
        ControlFrame::Open(9, open).encode(&mut full);
        full.extend_from_slice(&data_header(9, 5));
        full.extend_from_slice(b"early");
        put("open-with-everything", &full);
        conversation.extend(full);
        conversation.extend(header(FIRST_OPTIONAL, 0, 3));
        conversation.extend(b"new");
        put("conversation", &conversation);
        put("another-protocol", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n");
    }

    #[test]
    fn every_frame_survives_in_pieces_of_any_size() {
        let mut bytes = Vec::new();
        for frame in frames() {
            frame.encode(&mut bytes);
            bytes.extend_from_slice(&data_header(3, 5));
            bytes.extend_from_slice(b"hello");
            // A frame of a later version.
            bytes.extend_from_slice(&header(0x80, 0, 3));
            bytes.extend_from_slice(b"new");
        }
        for size in 1..bytes.len() {
            let (decoded, data) = decode(&bytes, size).unwrap();
            assert_eq!(decoded, frames(), "in pieces of {size}");
            assert_eq!(data, b"hello".repeat(frames().len()), "in pieces of {size}");
        }
    }

    #[test]
    fn what_is_not_allowed_is_told_apart() {
        let cases: [(&[u8], FrameError); 8] = [
            (&[10, 0, 0, 0, 0, 0, 0, 1], FrameError::UnknownKind(10)),
            (&[0, 4, 0, 1, 0, 0, 0, 1], FrameError::TooLong { kind: DATA, length: MAX_DATA_LEN + 1 }),
            (&[1, 0, 4, 1, 0, 0, 0, 1], FrameError::TooLong { kind: OPEN, length: MAX_CONTROL_LEN + 1 }),
            (&[0, 0, 0, 0, 0, 0, 0, 1], FrameError::Malformed(DATA)),
            (&[4, 0, 0, 1, 0, 0, 0, 1, 9], FrameError::Malformed(CREDIT)),
            (&[9, 0, 0, 0, 0, 0, 0, 0], FrameError::Malformed(GO_AWAY)),
            (&[0, 0, 0, 1, 0, 0, 0, 0, 9], FrameError::WrongStream { kind: DATA, stream: 0 }),
            (&[7, 0, 0, 8, 0, 0, 0, 1], FrameError::WrongStream { kind: PING, stream: 1 }),
        ];
        for (bytes, error) in cases {
            for size in [1, 100] {
                assert_eq!(decode(bytes, size), Err(error), "{bytes:?}");
            }
        }
    }

    #[test]
    fn a_text_is_cut_between_two_characters() {
        let text = "ä".repeat(MAX_CONTROL_LEN);
        let mut bytes = Vec::new();
        ControlFrame::GoAway(GoAwayReason::Backlog, text.clone()).encode(&mut bytes);
        let (frames, _) = decode(&bytes, bytes.len()).unwrap();
        let [ControlFrame::GoAway(GoAwayReason::Backlog, cut)] = &frames[..] else { panic!("{frames:?}") };
        assert!(text.starts_with(cut.as_str()) && cut.len() >= MAX_CONTROL_LEN - 2);
    }

    #[test]
    fn a_piece_says_whether_its_frame_ends() {
        let mut decoder = FrameDecoder::default();
        let mut bytes = data_header(9, 3).to_vec();
        bytes.extend_from_slice(b"ab");
        let mut rest = &bytes[..];
        assert_eq!(
            decoder.next_event(&mut rest),
            Ok(Some(DecoderEvent::Data { stream: 9, piece: b"ab", last: false }))
        );
        assert_eq!(decoder.next_event(&mut rest), Ok(None));
        assert_eq!(
            decoder.next_event(&mut &b"cd"[..]),
            Ok(Some(DecoderEvent::Data { stream: 9, piece: b"c", last: true }))
        );
    }
}
