//! What a token says of itself (RFC 7519). Whether that is so is for the API server to say: [`left`] is asked
//! after it has been, [`plausible`] before, so that it need not be.

use std::time::{Duration, SystemTime};

use serde::Deserialize;

/// A service account's token is some 1 kB.
const LONGEST: usize = 8192;

/// A token that ran out longer ago is refused without asking. Clocks differ by less; the API server goes by
/// its own.
const LEEWAY: Duration = Duration::from_mins(5);

#[derive(Deserialize)]
struct Claims {
    /// Seconds since 1970.
    exp: u64,
    #[serde(default)]
    aud: Audience,
    #[serde(default)]
    sub: String,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Several(Vec<String>),
}

impl Default for Audience {
    fn default() -> Self {
        Self::Several(Vec::new())
    }
}

impl Audience {
    fn has(&self, audience: &str) -> bool {
        match self {
            Self::One(one) => one == audience,
            Self::Several(several) => several.iter().any(|one| one == audience),
        }
    }
}

/// Whether a token may be one of `account` for `audience`, by what it says itself. Errors: why it is not
/// worth asking about.
pub fn plausible(token: &[u8], account: &str, audience: &str, now: SystemTime) -> Result<(), &'static str> {
    if token.len() > LONGEST {
        return Err("it is longer than any service account's token");
    }
    let three_parts = token.split(|byte| *byte == b'.').count() == 3;
    let claims = claims(token).filter(|_| three_parts).ok_or("it is not a service account's token")?;
    if !claims.aud.has(audience) {
        return Err("it is for another audience");
    }
    if claims.sub != account {
        return Err("it is another account's");
    }
    let end = SystemTime::UNIX_EPOCH.checked_add(Duration::from_secs(claims.exp));
    let over = end.and_then(|end| end.checked_add(LEEWAY)).is_none_or(|end| end < now);
    if over { Err("it has run out") } else { Ok(()) }
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

/// A token that says this of itself, for tests.
#[cfg(test)]
pub fn token(claims: &str) -> Vec<u8> {
    const LETTERS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = b"e30.".to_vec();
    for chunk in claims.as_bytes().chunks(3) {
        let bytes = [0, 1, 2].map(|at| chunk.get(at).copied().unwrap_or_default());
        let word = u32::from_be_bytes([0, bytes[0], bytes[1], bytes[2]]);
        let letters = (0..=chunk.len()).map(|at| LETTERS[(word >> (18 - 6 * at)) as usize & 63]);
        text.extend(letters);
    }
    text.extend(b".c2ln");
    text
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
    fn what_can_not_be_an_agents_is_told_without_asking() {
        let judge = |claims: &str| plausible(&token(claims), "the-agent", "mesh", at(1000));
        assert_eq!(judge(r#"{"exp":1000,"aud":["x","mesh"],"sub":"the-agent"}"#), Ok(()));
        assert_eq!(judge(r#"{"exp":1000,"aud":"mesh","sub":"the-agent"}"#), Ok(()));
        assert_eq!(judge(r#"{"exp":701,"aud":"mesh","sub":"the-agent"}"#), Ok(()), "a clock may be off");
        for claims in [
            r#"{"exp":699,"aud":"mesh","sub":"the-agent"}"#,
            r#"{"exp":18446744073709551615,"aud":"mesh","sub":"the-agent"}"#,
            r#"{"exp":1000,"aud":"kubernetes","sub":"the-agent"}"#,
            r#"{"exp":1000,"sub":"the-agent"}"#,
            r#"{"exp":1000,"aud":"mesh","sub":"another"}"#,
            r#"{"exp":1000,"aud":"mesh"}"#,
            r#"{"aud":"mesh","sub":"the-agent"}"#,
            r#"{"exp":1000,"aud":7,"sub":"the-agent"}"#,
            "[]",
        ] {
            assert!(judge(claims).is_err(), "{claims}");
        }
        let good = token(r#"{"exp":1000,"aud":"mesh","sub":"the-agent"}"#);
        let two_parts = &good[..good.len() - b".c2ln".len()];
        let long = [&good[..], &[b'A'; LONGEST]].concat();
        for token in [two_parts, &long, b"opaque", b"", b"..", b"\xff.\xff.\xff"] {
            assert!(plausible(token, "the-agent", "mesh", at(1000)).is_err());
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
