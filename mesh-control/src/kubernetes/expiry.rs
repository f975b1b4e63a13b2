//! When a token runs out (RFC 7519). Whether it is good is for the API server to say; here it has been.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970.
    exp: u64,
}

/// How much longer the token is good; nothing if it does not say, so that nobody relies on it later.
pub fn left(token: &[u8], now: SystemTime) -> Duration {
    let expires =
        claims(token).and_then(|claims| SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp)));
    expires.and_then(|expires| expires.duration_since(now).ok()).unwrap_or_default()
}

fn claims(token: &[u8]) -> Option<Claims> {
    let payload = token.split(|byte| *byte == b'.').nth(1)?;
    serde_json::from_slice(&base64url(payload)?).ok()
}

/// RFC 4648, section 5, without padding.
fn base64url(text: &[u8]) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len() / 4 * 3 + 2);
    for chunk in text.chunks(4) {
        let mut word = 0u32;
        for at in 0..4 {
            word = word << 6 | chunk.get(at).map_or(Some(0), |letter| digit(*letter))?;
        }
        let whole = chunk.len() * 3 / 4;
        bytes.extend_from_slice(&word.to_be_bytes()[1..=whole]);
    }
    Some(bytes)
}

fn digit(letter: u8) -> Option<u32> {
    let digit = match letter {
        b'A'..=b'Z' => letter - b'A',
        b'a'..=b'z' => letter - b'a' + 26,
        b'0'..=b'9' => letter - b'0' + 52,
        b'-' => 62,
        b'_' => 63,
        _ => return None,
    };
    Some(digit.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn a_token_says_how_long_it_is_good() {
        // {"exp":1700000000}, {"a":"??>","exp":1700000000}
        for payload in ["eyJleHAiOjE3MDAwMDAwMDB9", "eyJhIjoiPz8-IiwiZXhwIjoxNzAwMDAwMDAwfQ"] {
            let token = format!("e30.{payload}.c2ln");
            assert_eq!(left(token.as_bytes(), at(1_699_999_970)), Duration::from_secs(30));
            assert_eq!(left(token.as_bytes(), at(1_700_000_001)), Duration::ZERO);
        }
    }

    #[test]
    fn what_does_not_say_is_good_for_nothing() {
        for token in ["", "opaque", "e30.e30.c2ln", "e30.!!!!.c2ln", "e30.e.c2ln", "e30.eyJleHAiOi0xfQ.c2ln"]
        {
            assert_eq!(left(token.as_bytes(), at(0)), Duration::ZERO, "{token}");
        }
    }
}
