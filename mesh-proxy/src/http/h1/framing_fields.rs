//! What the fields of a head say of where its body ends (RFC 9112, 6).

use httparse::Header;

use super::{BodyFraming, Malformed, Version};

/// Most digits of a length: what has more is no length of anything.
const MAX_LENGTH_DIGITS: usize = 18;

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
    pub fn declared_framing(self) -> Option<BodyFraming> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_numbers_are_lengths() {
        assert_eq!((parse_length(b"0"), parse_length(b"007")), (Some(0), Some(7)));
        for bad in ["", "+1", "-1", " 1", "1 ", "0x1", "1,1", "1.0", "1234567890123456789"] {
            assert_eq!(parse_length(bad.as_bytes()), None, "{bad:?}");
        }
    }
}
