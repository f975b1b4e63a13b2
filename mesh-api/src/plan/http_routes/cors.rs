//! Cross-origin resource sharing: which pages of other origins may have a browser send requests (Fetch
//! standard, "CORS protocol"; Envoy's filter `cors`).

use super::text_match::TextMatch;

/// Which origins are allowed, and what browsers are told.
#[derive(Debug, PartialEq, Eq)]
pub struct CorsPolicy {
    /// Origins that are allowed: any of these.
    pub(super) allow_origins: Box<[TextMatch]>,
    /// Value of `Access-Control-Allow-Methods`; empty: it is not sent; so for the next two.
    pub allow_methods: Box<str>,
    /// Value of `Access-Control-Allow-Headers`.
    pub allow_headers: Box<str>,
    /// Value of `Access-Control-Expose-Headers`.
    pub expose_headers: Box<str>,
    /// How long a browser may remember a preflight's answer, in seconds; none: it is not told.
    pub max_age: Option<u64>,
    /// Whether requests may have credentials.
    pub allow_credentials: bool,
    /// Whether preflight requests of other origins are answered, without permission; else they are forwarded.
    pub answers_unmatched_preflights: bool,
}

impl CorsPolicy {
    /// Whether pages of an origin, as the header `Origin` has it, may send requests.
    pub fn allows_origin(&self, origin: &str) -> bool {
        let is_any = |allowed: &TextMatch| matches!(allowed, TextMatch::Exact(text) if **text == *"*");
        self.allow_origins.iter().any(|allowed| is_any(allowed) || allowed.fits(origin))
    }
}
