//! `corsPolicy`: which pages of other origins may have a browser send requests (cross-origin resource
//! sharing).

use std::time::Duration;

use http::HeaderName;

use super::{StringMatch, values};
use crate::document::cursor::{Cursor, Fields, quoted};

/// Which requests of other origins are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsPolicy {
    /// Origins that are allowed: any of these. `Exact("*")` is every origin.
    pub allow_origins: Vec<StringMatch>,
    /// Methods for `Access-Control-Allow-Methods`, or `*`. Empty: the header is not sent; so for the rest.
    pub allow_methods: Vec<String>,
    /// Headers for `Access-Control-Allow-Headers`, or `*`.
    pub allow_headers: Vec<String>,
    /// Headers for `Access-Control-Expose-Headers`, or `*`.
    pub expose_headers: Vec<String>,
    /// How long a browser may remember what it was told, in whole seconds. `None`: it is not told.
    pub max_age: Option<Duration>,
    /// Whether requests may have credentials. Unset: no.
    pub allow_credentials: bool,
    /// What becomes of preflight requests of origins that are not allowed.
    pub unmatched_preflights: UnmatchedPreflights,
}

/// What becomes of preflight requests of origins that are not allowed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnmatchedPreflights {
    /// They go to the destination.
    #[default]
    Forward,
    /// They are answered, without permission.
    Ignore,
}

const METHODS: [&str; 10] =
    ["GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "CONNECT", "OPTIONS", "TRACE", "*"];

impl CorsPolicy {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        const PREFLIGHTS: [(&str, UnmatchedPreflights); 3] = [
            ("FORWARD", UnmatchedPreflights::Forward),
            ("IGNORE", UnmatchedPreflights::Ignore),
            ("UNSPECIFIED", UnmatchedPreflights::Forward),
        ];
        let fields = at.fields(&[
            "allowOrigins",
            "allowOrigin",
            "allowMethods",
            "allowHeaders",
            "exposeHeaders",
            "maxAge",
            "allowCredentials",
            "unmatchedPreflights",
        ]);
        let preflights = fields.get("unmatchedPreflights").and_then(|at| at.enum_value(&PREFLIGHTS));
        Self {
            allow_origins: origins(&fields),
            allow_methods: words(&fields, "allowMethods", |word| METHODS.contains(&word)),
            allow_headers: words(&fields, "allowHeaders", is_header_name),
            expose_headers: words(&fields, "exposeHeaders", is_header_name),
            max_age: max_age(&fields),
            allow_credentials: fields.get("allowCredentials").and_then(|at| at.boolean()).unwrap_or(false),
            unmatched_preflights: preflights.unwrap_or_default(),
        }
    }
}

/// Reads `allowOrigins`, or its old form, which is ignored beside it.
fn origins(fields: &Fields<'_>) -> Vec<StringMatch> {
    let origins = values::list(fields, "allowOrigins", origin);
    let Some(old) = fields.get("allowOrigin") else { return origins };
    old.warn("`allowOrigin` is deprecated", "write `allowOrigins: [{exact: …}]`");
    let old =
        old.non_empty_strings().into_iter().map(|(_, text)| StringMatch::Exact(text.to_owned())).collect();
    if origins.is_empty() { old } else { origins }
}

fn origin(at: &Cursor<'_>) -> Option<StringMatch> {
    let read = StringMatch::read(at)?;
    if read == StringMatch::Exact(String::new()) {
        at.error("the origin is empty", "write one, such as `https://example.com`");
    }
    Some(read)
}

fn words(fields: &Fields<'_>, key: &str, is_good: impl Fn(&str) -> bool) -> Vec<String> {
    let words = fields.get(key).map(|at| at.non_empty_strings()).unwrap_or_default();
    for (at, word) in words.iter().filter(|(_, word)| !is_good(word)) {
        let fix = if key == "allowMethods" {
            "write a method in capitals, or `*`"
        } else {
            "write a header's name"
        };
        at.error(format!("{} does not belong here", quoted(word)), fix);
    }
    words.into_iter().map(|(_, word)| word.to_owned()).collect()
}

/// `*` is one by its letters, too.
fn is_header_name(word: &str) -> bool {
    HeaderName::from_bytes(word.as_bytes()).is_ok()
}

fn max_age(fields: &Fields<'_>) -> Option<Duration> {
    let at = fields.get("maxAge")?;
    let age = at.duration()?;
    if age.subsec_nanos() != 0 {
        at.error("it is finer than a second", "write whole seconds");
    }
    Some(age)
}
