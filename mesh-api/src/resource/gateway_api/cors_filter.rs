//! `cors`: which pages of other origins may have a browser send requests.

use crate::document::cursor::{Cursor, Fields, quoted};

/// Which requests of other origins are allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsFilter {
    /// Origins that are allowed: `*` for all, else a scheme and a host, which may begin with `*.`.
    pub allow_origins: Vec<String>,
    /// Methods that are allowed, or `*`.
    pub allow_methods: Vec<String>,
    /// Headers that a request may have, or `*`.
    pub allow_headers: Vec<String>,
    /// Headers of a response that a page may read, or `*`.
    pub expose_headers: Vec<String>,
    /// Whether requests may have credentials.
    pub allow_credentials: bool,
    /// How long a browser may remember what it was told, in seconds.
    pub max_age: u32,
}

/// What the API fills in.
const MAX_AGE: u32 = 5;

impl CorsFilter {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&[
            "allowOrigins",
            "allowMethods",
            "allowHeaders",
            "exposeHeaders",
            "allowCredentials",
            "maxAge",
        ]);
        Self {
            allow_origins: words(&fields, "allowOrigins", is_origin),
            allow_methods: words(&fields, "allowMethods", is_token),
            allow_headers: words(&fields, "allowHeaders", is_token),
            expose_headers: words(&fields, "exposeHeaders", is_token),
            allow_credentials: fields.get("allowCredentials").and_then(|at| at.boolean()).unwrap_or(false),
            max_age: fields
                .get("maxAge")
                .and_then(|at| at.integer(1..=i32::MAX.unsigned_abs()))
                .unwrap_or(MAX_AGE),
        }
    }
}

fn words(fields: &Fields<'_>, key: &str, is_good: impl Fn(&str) -> bool) -> Vec<String> {
    let words = fields.get(key).map(|at| at.non_empty_strings()).unwrap_or_default();
    for (at, word) in words.iter().filter(|(_, word)| !is_good(word)) {
        let fix = match key {
            "allowOrigins" => "write `*`, or an origin such as `https://*.example.com`",
            "allowMethods" => "write a method, or `*`",
            _ => "write a header's name, or `*`",
        };
        at.error(format!("{} does not belong here", quoted(word)), fix);
    }
    words.into_iter().map(|(_, word)| word.to_owned()).collect()
}

fn is_origin(text: &str) -> bool {
    let is_host = |host: &str| {
        let rest = host.strip_prefix("*.").unwrap_or(host);
        !rest.is_empty()
            && !rest.contains(['*', '/', '?', '#'])
            && rest.bytes().all(|it| it.is_ascii_graphic())
    };
    let is_scheme = |scheme: &str| {
        scheme.starts_with(|first: char| first.is_ascii_alphabetic())
            && scheme.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
    };
    text == "*" || text.split_once("://").is_some_and(|(scheme, host)| is_scheme(scheme) && is_host(host))
}

fn is_token(text: &str) -> bool {
    text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte))
}
