//! Consistent hashing: which key of a request or connection decides where it goes.

use std::fmt::Write as _;
use std::time::Duration;

use super::field_parsing::Invalid;
use super::traffic_policy::parse_duration_zero_as_none;
use crate::wire::ext as wire;
use crate::wire::ext::consistent_hash::Key;

/// What decides: what is alike in it goes to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header, by its name in lower case.
    Header(Box<str>),
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The client's address.
    SourceIp,
    /// The first value of a parameter of the query, by its name.
    QueryParameter(Box<str>),
}

/// A cookie that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: Box<str>,
    /// What stands behind the value where a client without one is given one (RFC 6265, 4.1.1); none: it is
    /// given none.
    pub attributes: Option<Box<str>>,
}

impl HashKey {
    /// Whether it is found in HTTP requests alone.
    pub fn is_of_request(&self) -> bool {
        !matches!(self, Self::SourceIp)
    }
}

impl TryFrom<&wire::ConsistentHash> for HashKey {
    type Error = Invalid;

    fn try_from(from: &wire::ConsistentHash) -> Result<Self, Invalid> {
        Ok(match from.key.as_ref().ok_or(Invalid::Missing { field: "hash.key" })? {
            Key::Header(name) => Self::Header(name.to_ascii_lowercase().into()),
            Key::Cookie(cookie) => Self::Cookie(cookie.try_into()?),
            Key::SourceIp(()) => Self::SourceIp,
            Key::QueryParameter(name) => Self::QueryParameter(name.as_str().into()),
        })
    }
}

impl TryFrom<&wire::HashCookie> for HashCookie {
    type Error = Invalid;

    fn try_from(from: &wire::HashCookie) -> Result<Self, Invalid> {
        let attributes = match from.ttl {
            None => None,
            Some(ttl) => {
                let ttl = parse_duration_zero_as_none("hash.cookie.ttl", Some(ttl))?;
                Some(attributes_of(from, ttl.unwrap_or_default()).into())
            }
        };
        let name: String = from.name.chars().filter(|c| !c.is_control()).collect();
        Ok(Self { name: name.into(), attributes })
    }
}

/// As Envoy orders them.
fn attributes_of(cookie: &wire::HashCookie, ttl: Duration) -> String {
    let mut text = String::new();
    let mut add = |name: &str, value: &str| {
        let sign = if value.is_empty() { "" } else { "=" };
        let _ = write!(text, "; {name}{sign}{value}");
    };
    if !ttl.is_zero() {
        // A part of a second would be no time at all.
        add("Max-Age", &ttl.as_secs().max(1).to_string());
    }
    if !cookie.path.is_empty() {
        add("Path", &cookie.path);
    }
    cookie.attributes.iter().for_each(|it| add(&it.name, &it.value));
    add("HttpOnly", "");
    // What can't stand in a header is no attribute.
    text.retain(|c| !c.is_control());
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cookie(ttl: Option<i64>) -> Option<Box<str>> {
        let attribute =
            |name: &str, value: &str| wire::CookieAttribute { name: name.into(), value: value.into() };
        let from = wire::HashCookie {
            name: "user".into(),
            path: "/a".into(),
            ttl: ttl.map(|seconds| prost_types::Duration { seconds, nanos: 0 }),
            attributes: vec![attribute("SameSite", "Strict"), attribute("Secure", "")],
        };
        HashCookie::try_from(&from).unwrap().attributes
    }

    #[test]
    fn a_cookie_is_given_with_its_attributes_or_not_at_all() {
        assert_eq!(cookie(None), None);
        let rest = "; Path=/a; SameSite=Strict; Secure; HttpOnly";
        assert_eq!(cookie(Some(0)).as_deref(), Some(rest), "for the session");
        assert_eq!(cookie(Some(60)).unwrap().strip_suffix(rest), Some("; Max-Age=60"));
    }
}
