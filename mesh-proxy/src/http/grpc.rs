//! What gRPC says in the fields of HTTP/2 (gRPC over HTTP/2).

use std::fmt::Write as _;
use std::time::Duration;

use http::StatusCode;

use super::h1::{RequestHead, ResponseHead};

/// `UNAVAILABLE`.
const UNAVAILABLE: u32 = 14;
/// `DEADLINE_EXCEEDED`.
const DEADLINE_EXCEEDED: u32 = 4;
/// Most digits of a timeout.
const MAX_DIGITS: usize = 8;

/// Returns how long the caller waits; none: it is no call, or does not say.
pub(super) fn timeout(head: &RequestHead) -> Option<Duration> {
    let value = head.is_grpc().then(|| head.fields.values("grpc-timeout").next()).flatten()?;
    let (unit, digits) = value.split_last()?;
    let is_number = !digits.is_empty() && digits.len() <= MAX_DIGITS && digits.iter().all(u8::is_ascii_digit);
    let number: u64 = std::str::from_utf8(digits).ok().filter(|_| is_number)?.parse().ok()?;
    Some(match unit {
        b'H' => Duration::from_secs(number * 3600),
        b'M' => Duration::from_secs(number * 60),
        b'S' => Duration::from_secs(number),
        b'm' => Duration::from_millis(number),
        b'u' => Duration::from_micros(number),
        b'n' => Duration::from_nanos(number),
        _ => return None,
    })
}

/// Returns the outcome that a response's head tells, where that is all of the response.
pub(super) fn status_in_head(response: &ResponseHead) -> Option<u32> {
    response.fields.joined_value("grpc-status")?.parse().ok()
}

/// Returns the outcome that a call has instead of a response with that status (gRPC's HTTP status mapping, as
/// Envoy has it).
pub(super) fn status_for(status: StatusCode) -> u32 {
    match status {
        StatusCode::BAD_REQUEST => 13,
        StatusCode::UNAUTHORIZED => 16,
        StatusCode::FORBIDDEN => 7,
        StatusCode::NOT_FOUND => 12,
        StatusCode::GATEWAY_TIMEOUT => DEADLINE_EXCEEDED,
        StatusCode::TOO_MANY_REQUESTS | StatusCode::BAD_GATEWAY | StatusCode::SERVICE_UNAVAILABLE => {
            UNAVAILABLE
        }
        _ => 2,
    }
}

/// Escapes a message for `grpc-message`: percent-encoding of what is not printable ASCII.
pub(super) fn escape_message(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b' '..=b'~' if byte != b'%' => escaped.push(byte.into()),
            // Writing into memory does not fail.
            _ => drop(write!(escaped, "%{byte:02X}")),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::super::h1::Version;
    use super::*;

    #[test]
    fn a_call_says_how_long_it_waits() {
        let with = |content_type: &str, value: &str| {
            let mut head = RequestHead::default();
            head.version = Version::Http2;
            head.fields.push("content-type", content_type.as_bytes());
            head.fields.push("grpc-timeout", value.as_bytes());
            timeout(&head)
        };
        for (value, expected) in [
            ("3S", Some(Duration::from_secs(3))),
            ("250m", Some(Duration::from_millis(250))),
            ("1H", Some(Duration::from_hours(1))),
            ("99999999u", Some(Duration::from_micros(99_999_999))),
            ("100000000u", None),
            ("S", None),
            ("3", None),
            ("3s", None),
            ("-3S", None),
        ] {
            assert_eq!(with("application/grpc+proto", value), expected, "{value}");
        }
        assert_eq!(with("application/grpcx", "3S"), None);
    }

    #[test]
    fn a_message_is_escaped() {
        assert_eq!(escape_message("50% of\n\u{e9}"), "50%25 of%0A%C3%A9");
    }
}
