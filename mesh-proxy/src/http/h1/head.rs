//! Where the head of a message ends, and what requests and responses have in common in it.

use httparse::Header;

use super::{BodyFraming, Fields, Malformed, Version};

/// Most bytes of a head, with its last empty line.
pub const MAX_HEAD: usize = 60 * 1024;
/// Most fields of a head.
pub const MAX_FIELDS: usize = 100;
/// Most digits of a length: what has more is no length of anything.
const MAX_LENGTH_DIGITS: usize = 18;

/// Returns the length of the head that `bytes` begin with, its last empty line included; none if that has not
/// come yet. `searched` is how many bytes were looked at before; it is updated. Errors: a line does not end
/// in CR LF, or the head is too large.
pub fn find_head_end(bytes: &[u8], searched: &mut usize) -> Result<Option<usize>, Malformed> {
    let from = *searched;
    *searched = bytes.len();
    for (index, _) in bytes.iter().enumerate().skip(from).filter(|(_, byte)| **byte == b'\n') {
        let line_start =
            bytes[..index].iter().rposition(|byte| *byte == b'\n').map_or(0, |before| before + 1);
        match &bytes[line_start..index] {
            b"\r" => return if index < MAX_HEAD { Ok(Some(index + 1)) } else { Err(Malformed::TooLarge) },
            [.., b'\r'] => {}
            _ => return Err(Malformed::Invalid("a line of the head ends without CR")),
        }
    }
    if bytes.len() > MAX_HEAD { Err(Malformed::TooLarge) } else { Ok(None) }
}

/// How the fields say that the body is framed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct FramingFields {
    length: Option<u64>,
    is_chunked: bool,
}

impl FramingFields {
    /// Looks at one field. Errors: it is no length or coding, or beside another one has a second meaning.
    pub fn read(&mut self, field: &Header<'_>, version: Version) -> Result<(), Malformed> {
        if field.name.eq_ignore_ascii_case("content-length") {
            let length =
                parse_length(field.value).ok_or(Malformed::Invalid("Content-Length is no number"))?;
            if self.length.replace(length).is_some() {
                return Err(Malformed::Invalid("Content-Length is there twice"));
            }
        } else if field.name.eq_ignore_ascii_case("transfer-encoding") {
            if version == Version::Http10 {
                return Err(Malformed::Invalid("HTTP/1.0 has no Transfer-Encoding"));
            }
            if std::mem::replace(&mut self.is_chunked, true) {
                return Err(Malformed::Invalid("Transfer-Encoding is there twice"));
            }
            if !field.value.eq_ignore_ascii_case(b"chunked") {
                return Err(Malformed::Coding);
            }
        }
        if self.is_chunked && self.length.is_some() {
            return Err(Malformed::Invalid("Content-Length and Transfer-Encoding exclude each other"));
        }
        Ok(())
    }

    /// Returns the framing; none if no field says it.
    pub fn framing(self) -> Option<BodyFraming> {
        if self.is_chunked { Some(BodyFraming::Chunked) } else { self.length.map(BodyFraming::Length) }
    }
}

/// Parses a length: digits and nothing else (RFC 9110, 8.6).
fn parse_length(value: &[u8]) -> Option<u64> {
    if value.is_empty() || value.len() > MAX_LENGTH_DIGITS || !value.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(value).ok()?.parse().ok()
}

/// Whether a field belongs to the framing of this very message, so that it is written anew.
pub(super) fn is_framing(name: &str) -> bool {
    name.eq_ignore_ascii_case("content-length") || name.eq_ignore_ascii_case("transfer-encoding")
}

/// Whether a field means nothing behind the body, since it frames, routes or proves something (RFC 9110,
/// 6.5.1).
pub fn is_no_trailer(name: &str) -> bool {
    const DROPPED: [&str; 12] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "host",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
    ];
    DROPPED.iter().any(|it| name.eq_ignore_ascii_case(it))
}

/// Parses the fields of trailers. Errors: they break the grammar.
pub(super) fn parse_trailers(bytes: &[u8], into: &mut Fields) -> Result<(), Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete((_, fields))) => {
            for field in fields.iter().filter(|field| !is_no_trailer(field.name)) {
                into.push(field.name, field.value);
            }
            Ok(())
        }
        Ok(httparse::Status::Partial) => Err(Malformed::Invalid("the trailers are cut off")),
        Err(error) => Err(from_httparse(error)),
    }
}

/// Converts an error of the parser.
pub(super) fn from_httparse(error: httparse::Error) -> Malformed {
    match error {
        httparse::Error::HeaderName => Malformed::Invalid("a field's name is none"),
        httparse::Error::HeaderValue => Malformed::Invalid("a field's value is none"),
        httparse::Error::NewLine => Malformed::Invalid("a line ends without CR LF"),
        httparse::Error::Status => Malformed::Invalid("the status is none"),
        httparse::Error::Token => Malformed::Invalid("the first line is none of HTTP"),
        httparse::Error::TooManyHeaders => Malformed::TooLarge,
        httparse::Error::Version => Malformed::Version,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_head_ends_with_an_empty_line_however_it_comes() {
        let head = b"GET / HTTP/1.1\r\nHost: a\r\n\r\nbody\r\n\r\n";
        let mut searched = 0;
        for end in 0..27 {
            assert_eq!(find_head_end(&head[..end], &mut searched), Ok(None), "{end}");
        }
        assert_eq!(find_head_end(head, &mut searched), Ok(Some(27)));
    }

    #[test]
    fn a_line_without_cr_is_refused_as_soon_as_it_comes() {
        for bad in ["GET / HTTP/1.1\n", "GET / HTTP/1.1\r\nHost: a\n", "A\r\n\n", "\n"] {
            assert!(find_head_end(bad.as_bytes(), &mut 0).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_head_that_does_not_end_is_bounded() {
        let line = b"X: 1234567890\r\n".repeat(MAX_HEAD / 15 + 1);
        assert_eq!(find_head_end(&line, &mut 0), Err(Malformed::TooLarge));
    }

    #[test]
    fn only_plain_numbers_are_lengths() {
        assert_eq!((parse_length(b"0"), parse_length(b"007")), (Some(0), Some(7)));
        for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "1,1", "1.0", "1234567890123456789"] {
            assert_eq!(parse_length(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
