//! `loadBalancer.consistentHash`: what decides which endpoint a request goes to.

use std::time::Duration;

use http::HeaderName;

use crate::document::cursor::{Cursor, Fields, quoted};

/// What decides: requests that are alike in it go to one endpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum HashKey {
    /// The value of a header.
    Header(HeaderName),
    /// The value of a cookie.
    Cookie(HashCookie),
    /// The client's address.
    SourceIp,
    /// The first value of a parameter of the query.
    QueryParameter(String),
}

/// A cookie that decides.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HashCookie {
    /// Its name.
    pub name: String,
    /// The path that it is given for. Empty: that of the request.
    pub path: String,
    /// How long clients keep one that they are given; zero: as long as their session. `None`: they are given
    /// none.
    pub ttl: Option<Duration>,
    /// Its further attributes, each with its value, which may be empty.
    pub attributes: Vec<(String, String)>,
}

const KEYS: [&str; 4] = ["httpHeaderName", "httpCookie", "useSourceIp", "httpQueryParameterName"];

impl HashKey {
    /// Reads `consistentHash`. `None`: it names nothing, or something that can't be.
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let known: Vec<_> = KEYS.into_iter().chain(["minimumRingSize", "ringHash", "maglev"]).collect();
        let fields = at.fields(&known);
        check_tables(&fields);
        let is_off = |at: &Cursor<'_>| at.boolean() == Some(false);
        let is_given = |key: &&str| fields.get(key).is_some_and(|at| *key != "useSourceIp" || !is_off(&at));
        let given: Vec<_> = KEYS.into_iter().filter(is_given).collect();
        let [key] = given[..] else {
            let problem =
                if given.is_empty() { "it does not say what decides" } else { "it says several things" };
            at.error(problem, format!("write one of {}", KEYS.join(", ")));
            return None;
        };
        let at = fields.get(key)?;
        match key {
            "httpHeaderName" => header(&at).map(Self::Header),
            "httpCookie" => HashCookie::read(&at).map(Self::Cookie),
            "useSourceIp" => Some(Self::SourceIp),
            _ => at.non_empty_string().map(|name| Self::QueryParameter(name.to_owned())),
        }
    }
}

/// The mesh's hash needs no table: each endpoint draws a number for a key, and the highest wins.
fn check_tables(fields: &Fields<'_>) {
    let why = "keys are spread evenly without a table, whatever its size";
    let of = |key: &str, size: &str| fields.get(key).map(|at| (at.fields(&[size]).get(size), at));
    if let (Some(_), Some((_, at))) = (fields.get("ringHash"), of("maglev", "tableSize")) {
        at.error("`ringHash` and `maglev` exclude each other", "remove one of them");
    }
    let sizes = [of("ringHash", "minimumRingSize"), of("maglev", "tableSize")].into_iter().flatten();
    for at in sizes.filter_map(|(size, _)| size).chain(fields.get("minimumRingSize")) {
        at.warn(why, "remove it");
    }
}

fn header(at: &Cursor<'_>) -> Option<HeaderName> {
    let text = at.non_empty_string()?;
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        at.error(format!("{} is not a header's name", quoted(text)), "use letters, digits and `-`");
    }
    name
}

impl HashCookie {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["name", "path", "ttl", "attributes"]);
        let name = fields.require("name").and_then(|at| token(&at))?;
        let path = fields.get("path").and_then(|at| attribute_value(&at)).unwrap_or_default();
        let attributes = fields.get("attributes").map(|at| at.items()).unwrap_or_default();
        let attribute = |at: &Cursor<'_>| {
            let fields = at.fields(&["name", "value"]);
            let name = fields.require("name").and_then(|at| token(&at))?;
            Some((name, fields.get("value").and_then(|at| attribute_value(&at)).unwrap_or_default()))
        };
        Some(Self {
            name,
            path,
            ttl: fields.get("ttl").and_then(|at| at.duration_or_zero()),
            attributes: attributes.iter().filter_map(attribute).collect(),
        })
    }
}

/// A name that can stand in a cookie (RFC 6265, 4.1.1).
fn token(at: &Cursor<'_>) -> Option<String> {
    let text = at.non_empty_string()?;
    let is_good = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte));
    if !is_good {
        at.error(format!("{} can't be a name in a cookie", quoted(text)), "use letters, digits, `-` and `_`");
    }
    is_good.then(|| text.to_owned())
}

/// A value of an attribute: anything but control characters and semicolons.
fn attribute_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    let is_good = text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b';');
    if !is_good {
        at.error(format!("{} can't stand in a cookie", quoted(text)), "use printable ASCII without `;`");
    }
    is_good.then(|| text.to_owned())
}
