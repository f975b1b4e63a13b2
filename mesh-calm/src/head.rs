//! The headers of HTTP/2 frames (RFC 9113, section 4.1) in a stream of bytes, without the payloads.
//!
//! Whether a frame is allowed is for the library to say that reads them; this only sees where each begins.

/// Bytes of a header.
pub const HEADER: usize = 9;

/// What a client sends before its first frame (RFC 9113, section 3.4).
pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

/// Kinds of frames.
pub mod kind {
    #![allow(missing_docs, reason = "the names are those of RFC 9113, section 6")]
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const PRIORITY: u8 = 2;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PUSH_PROMISE: u8 = 5;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const WINDOW_UPDATE: u8 = 8;
    pub const CONTINUATION: u8 = 9;
}

/// ACK of SETTINGS and PING.
pub const ACK: u8 = 0x1;

/// `END_STREAM` of HEADERS and DATA.
pub const END_STREAM: u8 = 0x1;

/// PADDED of DATA.
pub const PADDED: u8 = 0x8;

/// The header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// Kind of the frame.
    pub kind: u8,
    /// Flags, whose meaning is the kind's.
    pub flags: u8,
    /// Bytes of the payload, 24 bits.
    pub length: u32,
}

/// Finds the headers in bytes that come in any pieces.
#[derive(Debug, Default)]
pub struct Scanner {
    /// Bytes to pass before the next header: the rest of the preface or of a payload.
    pass: usize,
    /// The beginning of a header.
    header: [u8; HEADER],
    /// Bytes of it that are there.
    have: usize,
}

impl Scanner {
    /// For what a client sends.
    pub fn of_client() -> Self {
        Self { pass: PREFACE.len(), ..Self::default() }
    }

    /// For what a server sends.
    pub fn of_server() -> Self {
        Self::default()
    }

    /// Passes on to behind the next header. None, with `bytes` empty, if it is not whole yet.
    pub fn next(&mut self, bytes: &mut &[u8]) -> Option<Head> {
        let passed = self.pass.min(bytes.len());
        self.pass -= passed;
        let (header, _) = bytes[passed..].split_at((HEADER - self.have).min(bytes.len() - passed));
        *bytes = &bytes[passed + header.len()..];
        self.header[self.have..self.have + header.len()].copy_from_slice(header);
        self.have += header.len();
        if self.have < HEADER {
            return None;
        }
        self.have = 0;
        let [l1, l2, l3, kind, flags, ..] = self.header;
        let length = u32::from_be_bytes([0, l1, l2, l3]);
        self.pass = length as usize;
        Some(Head { kind, flags, length })
    }

    /// Whether the next byte is the first one of a frame.
    pub fn is_between_frames(&self) -> bool {
        self.pass == 0 && self.have == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_every_header_wherever_the_bytes_are_cut() {
        let mut sent = PREFACE.to_vec();
        let heads =
            [(0_u32, kind::SETTINGS, 0), (5, kind::DATA, PADDED), (300, 200, 0xff), (0, kind::DATA, 1)];
        for (length, kind, flags) in heads {
            sent.extend(&length.to_be_bytes()[1..]);
            sent.extend([kind, flags, 0, 0, 0, 1]);
            sent.extend(std::iter::repeat_n(7, length as usize));
        }
        for size in 1..sent.len() {
            let (mut scanner, mut found) = (Scanner::of_client(), Vec::new());
            for mut piece in sent.chunks(size) {
                while let Some(head) = scanner.next(&mut piece) {
                    found.push((head.length, head.kind, head.flags));
                }
                assert!(piece.is_empty());
            }
            assert_eq!(found, heads, "in pieces of {size}");
            assert!(scanner.is_between_frames());
        }
    }
}
