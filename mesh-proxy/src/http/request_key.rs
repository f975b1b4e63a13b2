//! The key by which a consistent hash chooses the endpoint of a request.

use std::net::IpAddr;

use mesh_api::plan::http_routes::{RequestView, query_parameter};
use mesh_api::plan::{HashCookie, HashKey};
use rand::RngExt;

use super::h1::RequestHead;
use crate::balance::KeyHash;

/// The key of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct RequestKey {
    /// None: it has none, so that its endpoint is drawn.
    pub hash: Option<KeyHash>,
    /// Value of a field `Set-Cookie` by which the client keeps its endpoint; none: it has a cookie already,
    /// or is not to have one.
    pub set_cookie: Option<String>,
}

impl RequestKey {
    /// Returns the key of a request that comes from an address; `by`: what decides, if something does.
    pub fn of(by: Option<&HashKey>, head: &RequestHead, client: IpAddr) -> Self {
        let hash = match by {
            None => None,
            Some(HashKey::Header(name)) => head.header(name).map(|value| KeyHash::of(value.as_bytes())),
            Some(HashKey::QueryParameter(name)) => {
                query_parameter(head.query(), name).map(|value| KeyHash::of(value.as_bytes()))
            }
            Some(HashKey::SourceIp) => Some(KeyHash::of_client(client)),
            Some(HashKey::Cookie(cookie)) => match cookie_value(head, &cookie.name) {
                Some(value) => Some(KeyHash::of(value)),
                None => return Self::new_cookie(cookie),
            },
        };
        Self { hash, set_cookie: None }
    }

    fn new_cookie(HashCookie { name, attributes }: &HashCookie) -> Self {
        let Some(attributes) = attributes else { return Self::default() };
        let value = format!("{:016x}", rand::rng().random::<u64>());
        Self {
            hash: Some(KeyHash::of(value.as_bytes())),
            set_cookie: Some(format!("{name}=\"{value}\"{attributes}")),
        }
    }
}

/// Returns the value of a cookie, without the quotes that it may have (RFC 6265, 4.2.1); none if it is empty.
fn cookie_value<'a>(head: &'a RequestHead, name: &str) -> Option<&'a [u8]> {
    let pairs = head.fields.values("cookie").flat_map(|value| value.split(|byte| *byte == b';'));
    let value = pairs.map(<[u8]>::trim_ascii).find_map(|pair| {
        let rest = pair.strip_prefix(name.as_bytes())?;
        rest.trim_ascii_start().strip_prefix(b"=")
    })?;
    let value = value.trim_ascii();
    let unquoted = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\""));
    Some(unquoted.unwrap_or(value)).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));

    fn head(lines: &str) -> RequestHead {
        let mut head = RequestHead::default();
        head.parse(format!("GET /a?user=%41&user=B HTTP/1.1\r\nHost: web\r\n{lines}\r\n").as_bytes())
            .unwrap();
        head
    }

    fn hash(by: &HashKey, lines: &str) -> Option<KeyHash> {
        RequestKey::of(Some(by), &head(lines), CLIENT).hash
    }

    fn by_cookie(attributes: Option<&str>) -> HashKey {
        HashKey::Cookie(HashCookie { name: "user".into(), attributes: attributes.map(Into::into) })
    }

    #[test]
    fn requests_alike_in_what_decides_have_one_key() {
        let header = HashKey::Header("x-user".into());
        assert_eq!(hash(&header, "X-User: a\r\n"), Some(KeyHash::of(b"a")));
        assert_eq!(hash(&header, ""), None);
        assert_eq!(hash(&HashKey::QueryParameter("user".into()), ""), Some(KeyHash::of(b"A")));
        assert_eq!(hash(&HashKey::QueryParameter("other".into()), ""), None);
        assert_eq!(hash(&HashKey::SourceIp, ""), Some(KeyHash::of_client(CLIENT)));
        assert_eq!(RequestKey::of(None, &head(""), CLIENT), RequestKey::default());
    }

    #[test]
    fn a_cookie_is_found_among_others_and_given_to_who_has_none() {
        let silent = by_cookie(None);
        for lines in [
            "Cookie: users=b; user=a; x=y\r\n",
            "Cookie: x=y\r\nCookie: user=\"a\"\r\n",
            "Cookie: user = a\r\n",
        ] {
            assert_eq!(hash(&silent, lines), Some(KeyHash::of(b"a")), "{lines}");
        }
        assert_eq!(
            RequestKey::of(Some(&silent), &head("Cookie: users=b\r\n"), CLIENT),
            RequestKey::default()
        );
        let giving = by_cookie(Some("; Path=/; HttpOnly"));
        for empty in ["Cookie: user=\r\n", "Cookie: user=\"\"\r\n"] {
            assert!(RequestKey::of(Some(&giving), &head(empty), CLIENT).set_cookie.is_some(), "{empty}");
        }
        let given = RequestKey::of(Some(&giving), &head(""), CLIENT);
        let cookie = given.set_cookie.unwrap();
        let value = cookie.strip_prefix("user=\"").and_then(|rest| rest.strip_suffix("\"; Path=/; HttpOnly"));
        assert_eq!(given.hash, Some(KeyHash::of(value.unwrap().as_bytes())), "{cookie}");
    }
}
