//! `directResponse`: the mesh answers itself.

use http::StatusCode;

use crate::document::cursor::Cursor;

/// Most bytes of a body, as in Istio.
const MAX_BODY: usize = 1 << 20;
/// A body with more is a burden: every agent holds it.
const LARGE_BODY: usize = 100 << 10;

/// The response to every request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DirectResponse {
    /// Its status, from 200 to 599.
    pub status: StatusCode,
    /// Its body, at most a mebibyte. `None`: it has none.
    pub body: Option<Vec<u8>>,
}

impl DirectResponse {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["status", "body"]);
        let body = fields.get("body").and_then(|at| body(&at));
        let status = fields.require("status").and_then(|at| final_status(&at));
        Some(Self { status: status?, body })
    }
}

/// The status of a response that ends a request.
pub(super) fn final_status(at: &Cursor<'_>) -> Option<StatusCode> {
    let code = at.integer(200..=599)?;
    u16::try_from(code).ok().and_then(|code| StatusCode::from_u16(code).ok())
}

fn body(at: &Cursor<'_>) -> Option<Vec<u8>> {
    let fields = at.fields(&["string", "bytes"]);
    let body = match (fields.get("string"), fields.get("bytes")) {
        (Some(_), Some(bytes)) => {
            bytes.error("`string` and `bytes` exclude each other", "remove one of them");
            return None;
        }
        (Some(string), None) => string.text()?.as_bytes().to_vec(),
        (None, Some(bytes)) => {
            let read = decode_base64(bytes.text()?);
            if read.is_none() {
                bytes.error("it is not base64", "write the bytes in base64, or `string` for text");
            }
            read?
        }
        (None, None) => return None,
    };
    if body.len() > MAX_BODY {
        at.error(format!("the body has more than {MAX_BODY} bytes"), "have a service respond");
    } else if body.len() > LARGE_BODY {
        let problem = format!("the body has more than {LARGE_BODY} bytes, which every agent holds");
        at.warn(problem, "have a service respond");
    }
    Some(body)
}

/// Base64 of RFC 4648, in either alphabet, with its padding or without.
fn decode_base64(text: &str) -> Option<Vec<u8>> {
    let digits = text.strip_suffix("==").or_else(|| text.strip_suffix('=')).unwrap_or(text);
    let padding = text.len() - digits.len();
    if digits.len() % 4 == 1 || (padding > 0 && !text.len().is_multiple_of(4)) {
        return None;
    }
    let mut bytes = Vec::with_capacity(digits.len() / 4 * 3 + 2);
    let (mut bits, mut count) = (0_u32, 0);
    for digit in digits.bytes() {
        bits = (bits << 6 | base64_digit(digit)?) & 0xff_ffff;
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((bits >> count).to_le_bytes()[0]);
        }
    }
    Some(bytes)
}

fn base64_digit(digit: u8) -> Option<u32> {
    Some(u32::from(match digit {
        b'A'..=b'Z' => digit - b'A',
        b'a'..=b'z' => digit - b'a' + 26,
        b'0'..=b'9' => digit - b'0' + 52,
        b'+' | b'-' => 62,
        b'/' | b'_' => 63,
        _ => return None,
    }))
}

#[cfg(test)]
mod tests {
    use super::decode_base64;

    #[test]
    fn base64_is_read_in_all_of_its_forms() {
        for (text, bytes) in [
            ("", &b""[..]),
            ("Zg==", b"f"),
            ("Zg", b"f"),
            ("Zm8=", b"fo"),
            ("Zm9v", b"foo"),
            ("Zm9vYmFy", b"foobar"),
            ("+/+/", b"\xfb\xff\xbf"),
            ("-_-_", b"\xfb\xff\xbf"),
        ] {
            assert_eq!(decode_base64(text).as_deref(), Some(bytes), "{text}");
        }
        for text in ["Z", "Zg=", "Zm8==", "Zm9v=", "Zm9 v", "====", "Zm9vZ"] {
            assert_eq!(decode_base64(text), None, "{text}");
        }
    }
}
