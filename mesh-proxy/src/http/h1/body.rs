//! The body of a message: taken out of its framing, and put into another.

use bytes::{Buf, Bytes, BytesMut};

use super::head_end::{MAX_HEAD, find_head_end};
use super::trailers::parse_trailers;
use super::{Fields, Malformed};

/// Most bytes of the line that begins a chunk, with its extensions.
const MAX_CHUNK_LINE: usize = 1024;
/// Most digits of a chunk's size.
const MAX_SIZE_DIGITS: usize = 15;

/// How the end of a body is told (RFC 9112, 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BodyFraming {
    /// There is none.
    #[default]
    None,
    /// It has that many bytes.
    Length(u64),
    /// It comes in chunks.
    Chunked,
    /// It ends with the connection; only a response's does.
    UntilClose,
}

/// Takes a body out of its framing.
#[derive(Debug)]
pub struct BodyDecoder {
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// So many bytes of the body are left.
    Length(u64),
    UntilClose,
    ChunkLine,
    /// So many bytes of the chunk are left.
    Chunk(u64),
    /// CR LF behind a chunk.
    ChunkEnd,
    /// So many bytes of the trailers were looked at.
    TrailersSummary(usize),
    Done,
}

/// A part of a body.
#[derive(Debug)]
pub enum BodyPiece {
    /// Bytes of the content, at least one.
    Data(Bytes),
    /// The end, with the trailers; they may be empty.
    End(Fields),
    /// More input is needed.
    Incomplete,
}

impl BodyDecoder {
    /// Creates a decoder of a body that is framed so.
    pub fn new(framing: BodyFraming) -> Self {
        let state = match framing {
            BodyFraming::None | BodyFraming::Length(0) => State::Done,
            BodyFraming::Length(length) => State::Length(length),
            BodyFraming::Chunked => State::ChunkLine,
            BodyFraming::UntilClose => State::UntilClose,
        };
        Self { state }
    }

    /// Whether the end was returned, or there is no body.
    pub fn is_done(&self) -> bool {
        self.state == State::Done
    }

    /// Takes the next piece out of `input`. Errors: the framing is broken.
    pub fn decode(&mut self, input: &mut BytesMut) -> Result<BodyPiece, Malformed> {
        loop {
            match self.state {
                State::Length(0) | State::Done => {
                    self.state = State::Done;
                    return Ok(BodyPiece::End(Fields::default()));
                }
                State::Length(left) => {
                    let Some(data) = take(input, left) else { return Ok(BodyPiece::Incomplete) };
                    self.state = State::Length(left - data.len() as u64);
                    return Ok(BodyPiece::Data(data));
                }
                State::UntilClose => {
                    return Ok(take(input, u64::MAX).map_or(BodyPiece::Incomplete, BodyPiece::Data));
                }
                State::ChunkLine => match chunk_size(input)? {
                    None => return Ok(BodyPiece::Incomplete),
                    Some(0) => self.state = State::TrailersSummary(0),
                    Some(size) => self.state = State::Chunk(size),
                },
                State::Chunk(left) => {
                    let Some(data) = take(input, left) else { return Ok(BodyPiece::Incomplete) };
                    let left = left - data.len() as u64;
                    self.state = if left == 0 { State::ChunkEnd } else { State::Chunk(left) };
                    return Ok(BodyPiece::Data(data));
                }
                State::ChunkEnd => match &input[..] {
                    [b'\r', b'\n', ..] => {
                        input.advance(2);
                        self.state = State::ChunkLine;
                    }
                    [] | [b'\r'] => return Ok(BodyPiece::Incomplete),
                    _ => return Err(Malformed::Invalid("a chunk is longer than its size")),
                },
                State::TrailersSummary(mut searched) => {
                    let trailers = trailers(input, &mut searched)?;
                    self.state = State::TrailersSummary(searched);
                    let Some(trailers) = trailers else { return Ok(BodyPiece::Incomplete) };
                    self.state = State::Done;
                    return Ok(BodyPiece::End(trailers));
                }
            }
        }
    }

    /// Tells the decoder that no more input comes. Returns whether that ends the body in order.
    pub fn end_of_input(&mut self) -> bool {
        if self.state == State::UntilClose {
            self.state = State::Length(0);
        }
        matches!(self.state, State::Length(0) | State::Done)
    }
}

/// Takes at most `most` bytes; none if there are none.
fn take(input: &mut BytesMut, most: u64) -> Option<Bytes> {
    let length = input.len().min(usize::try_from(most).unwrap_or(usize::MAX));
    (length > 0).then(|| input.split_to(length).freeze())
}

/// Takes the line that begins a chunk, and returns the chunk's size; none if the line has not come yet.
/// Extensions are checked and dropped (RFC 9112, 7.1.1).
fn chunk_size(input: &mut BytesMut) -> Result<Option<u64>, Malformed> {
    let Some(end) = input.iter().take(MAX_CHUNK_LINE).position(|byte| *byte == b'\n') else {
        if input.len() >= MAX_CHUNK_LINE {
            return Err(Malformed::Invalid("a chunk's first line is too long"));
        }
        return Ok(None);
    };
    let line = input.split_to(end + 1);
    let line =
        line.strip_suffix(b"\r\n").ok_or(Malformed::Invalid("a chunk's first line ends without CR"))?;
    let digits = line.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
    let (size, extensions) = line.split_at(digits);
    if size.is_empty() || size.len() > MAX_SIZE_DIGITS {
        return Err(Malformed::Invalid("a chunk's size is no number"));
    }
    if !are_extensions(extensions) {
        return Err(Malformed::Invalid("a chunk's extensions are none"));
    }
    let size = std::str::from_utf8(size).ok().and_then(|size| u64::from_str_radix(size, 16).ok());
    size.map(Some).ok_or(Malformed::Invalid("a chunk's size is no number"))
}

/// Whether a text is empty or `;name`, `;name=value` or `;name="value"`, any number of times.
fn are_extensions(text: &[u8]) -> bool {
    let mut rest = text;
    while let Some((_, behind)) = rest.split_first().filter(|(first, _)| **first == b';') {
        let name = token_length(behind);
        if name == 0 {
            return false;
        }
        rest = &behind[name..];
        if let [b'=', value @ ..] = rest {
            let length =
                if value.first() == Some(&b'"') { quoted_length(value) } else { token_length(value) };
            if length == 0 {
                return false;
            }
            rest = &value[length..];
        }
    }
    rest.is_empty()
}

fn token_length(text: &[u8]) -> usize {
    let is_token = |byte: &&u8| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(byte);
    text.iter().take_while(is_token).count()
}

/// Returns the length of the quoted string that a text begins with; 0 if it does not end.
fn quoted_length(text: &[u8]) -> usize {
    let mut is_escaped = false;
    for (index, byte) in text.iter().enumerate().skip(1) {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' => is_escaped = true,
            b'"' => return index + 1,
            byte if byte.is_ascii_control() && *byte != b'\t' => return 0,
            _ => {}
        }
    }
    0
}

/// Takes the trailers; none if their end has not come yet.
fn trailers(input: &mut BytesMut, searched: &mut usize) -> Result<Option<Fields>, Malformed> {
    let Some(end) = find_head_end(&input[..input.len().min(MAX_HEAD + 1)], searched)? else {
        return Ok(None);
    };
    let mut fields = Fields::default();
    parse_trailers(&input.split_to(end), &mut fields)?;
    Ok(Some(fields))
}

/// Puts a body into a framing.
#[derive(Debug)]
pub struct BodyEncoder {
    is_chunked: bool,
    has_none: bool,
    /// Whether trailers are written; else they are dropped.
    with_trailers: bool,
}

impl BodyEncoder {
    /// Creates an encoder into a framing. `with_trailers` is whether the recipient takes trailers.
    pub fn new(framing: BodyFraming, with_trailers: bool) -> Self {
        let (is_chunked, has_none) = (framing == BodyFraming::Chunked, framing == BodyFraming::None);
        Self { is_chunked, has_none, with_trailers }
    }

    /// Appends a part of the content.
    pub fn encode_data(&self, data: &[u8], into: &mut BytesMut) {
        if self.has_none {
            // Behind the head comes the next message.
        } else if self.is_chunked {
            into.extend_from_slice(format!("{:x}\r\n", data.len()).as_bytes());
            into.extend_from_slice(data);
            into.extend_from_slice(b"\r\n");
        } else {
            into.extend_from_slice(data);
        }
    }

    /// Appends the end.
    pub fn encode_end(&self, trailers: &Fields, into: &mut BytesMut) {
        if !self.is_chunked {
            return;
        }
        into.extend_from_slice(b"0\r\n");
        if self.with_trailers {
            for (name, value) in trailers.iter() {
                into.extend_from_slice(name.as_bytes());
                into.extend_from_slice(b": ");
                into.extend_from_slice(value);
                into.extend_from_slice(b"\r\n");
            }
        }
        into.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Content, trailers and what is left, or why it is refused; fed in pieces of that size.
    fn decode(
        framing: BodyFraming,
        input: &str,
        piece: usize,
    ) -> Result<(String, String, String), Malformed> {
        let (mut decoder, mut buffer) = (BodyDecoder::new(framing), BytesMut::new());
        let (mut content, mut rest) = (Vec::new(), input.as_bytes());
        loop {
            match decoder.decode(&mut buffer)? {
                BodyPiece::Data(data) => content.extend_from_slice(&data),
                BodyPiece::End(trailers) => {
                    let trailers =
                        trailers.iter().map(|(name, value)| format!("{name}={};", value.escape_ascii()));
                    buffer.extend_from_slice(rest);
                    let left = String::from_utf8(buffer.to_vec()).unwrap();
                    return Ok((String::from_utf8(content).unwrap(), trailers.collect(), left));
                }
                BodyPiece::Incomplete => {
                    if rest.is_empty() {
                        let ended = decoder.end_of_input();
                        if !ended {
                            return Err(Malformed::Invalid("cut off"));
                        }
                        continue;
                    }
                    let (now, later) = rest.split_at(piece.min(rest.len()));
                    buffer.extend_from_slice(now);
                    rest = later;
                }
            }
        }
    }

    #[test]
    fn bodies_are_the_same_however_they_come() {
        let chunked = "3\r\nabc\r\nA;x=1;y=\"a;\\\"b\"\r\n0123456789\r\n000\r\nX-Sum: 1\r\nContent-Length: 9\r\n\r\nnext";
        for piece in [1, 2, 3, 7, 1000] {
            let text = |text: &str| text.to_owned();
            assert_eq!(
                decode(BodyFraming::Chunked, chunked, piece),
                Ok((text("abc0123456789"), text("X-Sum=1;"), text("next"))),
                "{piece}"
            );
            assert_eq!(
                decode(BodyFraming::Length(3), "abcnext", piece),
                Ok((text("abc"), text(""), text("next")))
            );
            assert_eq!(decode(BodyFraming::None, "next", piece), Ok((text(""), text(""), text("next"))));
            assert_eq!(decode(BodyFraming::UntilClose, "abc", piece), Ok((text("abc"), text(""), text(""))));
        }
    }

    #[test]
    fn broken_framing_is_refused() {
        for bad in [
            "",
            "3\r\nab",
            "3\r\nabcd\r\n0\r\n\r\n",
            "3\nabc\r\n0\r\n\r\n",
            "3\r\nabc\n0\r\n\r\n",
            "x\r\n",
            "-1\r\n",
            "+1\r\na\r\n",
            "0x1\r\na\r\n",
            " 1\r\na\r\n",
            "1 \r\na\r\n",
            "1;\r\na\r\n",
            "1;a b\r\na\r\n",
            "1;a=\"b\r\na\r\n",
            "1;a=\r\na\r\n",
            "fffffffffffffffff\r\n",
            "1\r\na\r\n0\r\nA : b\r\n\r\n",
            "1\r\na\r\n0\r\nA: b\n\r\n",
            "1\r\na\r\n0\r\n",
            "1\r\r\na\r\n",
        ] {
            for piece in [1, 1000] {
                assert!(decode(BodyFraming::Chunked, bad, piece).is_err(), "{bad:?}");
            }
        }
        assert!(decode(BodyFraming::Chunked, &format!("1;a={}\r\n", "b".repeat(2000)), 7).is_err());
        assert!(decode(BodyFraming::Length(3), "ab", 1).is_err());
    }

    #[test]
    fn chunks_are_framed_anew() {
        let encoder = BodyEncoder::new(BodyFraming::Chunked, true);
        let (mut into, mut trailers) = (BytesMut::new(), Fields::default());
        trailers.push("X-Sum", b"1");
        encoder.encode_data(b"0123456789", &mut into);
        encoder.encode_end(&trailers, &mut into);
        assert_eq!(into, "a\r\n0123456789\r\n0\r\nX-Sum: 1\r\n\r\n");
        into.clear();
        BodyEncoder::new(BodyFraming::Chunked, false).encode_end(&trailers, &mut into);
        BodyEncoder::new(BodyFraming::Length(3), true).encode_data(b"abc", &mut into);
        BodyEncoder::new(BodyFraming::Length(3), true).encode_end(&trailers, &mut into);
        assert_eq!(into, "0\r\n\r\nabc");
    }
}
