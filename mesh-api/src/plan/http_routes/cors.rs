//! Cross-origin resource sharing: which pages of other origins may have a browser send requests (Fetch
//! standard, "CORS protocol"; Envoy's filter `cors`).

use super::text_match::TextMatch;

/// Which origins are allowed, and what browsers are told.
#[derive(Debug, PartialEq, Eq)]
pub struct CorsPolicy {
    /// Origins that are allowed: any of these.
    pub(super) allow_origins: Box<[TextMatch]>,
    /// Or any of these.
    pub(super) allow_origin_patterns: Box<[OriginPattern]>,
    /// Value of `Access-Control-Allow-Methods`; empty: it is not sent; so for the next two.
    pub allow_methods: Box<str>,
    /// Value of `Access-Control-Allow-Headers`.
    pub allow_headers: Box<str>,
    /// Whether any header that a preflight request asks for is allowed.
    pub allow_requested_headers: bool,
    /// Value of `Access-Control-Expose-Headers`.
    pub expose_headers: Box<str>,
    /// How long a browser may remember a preflight's answer, in seconds; none: it is not told.
    pub max_age: Option<u64>,
    /// Whether requests may have credentials.
    pub allow_credentials: bool,
    /// Whether preflight requests of other origins are answered, without permission; else they are forwarded.
    pub answers_unmatched_preflights: bool,
}

/// Origins with these ends, and any labels of a host between them.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct OriginPattern {
    pub prefix: Box<str>,
    pub suffix: Box<str>,
}

impl OriginPattern {
    fn fits(&self, origin: &str) -> bool {
        let rest = origin.strip_prefix(&*self.prefix).and_then(|rest| rest.strip_suffix(&*self.suffix));
        rest.is_some_and(|labels| !labels.is_empty() && !labels.contains('/'))
    }
}

impl CorsPolicy {
    /// Whether pages of an origin, as the header `Origin` has it, may send requests.
    pub fn allows_origin(&self, origin: &str) -> bool {
        let is_any = |allowed: &TextMatch| matches!(allowed, TextMatch::Exact(text) if **text == *"*");
        self.allow_origins.iter().any(|allowed| is_any(allowed) || allowed.fits(origin))
            || self.allow_origin_patterns.iter().any(|pattern| pattern.fits(origin))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn between_the_ends_of_a_pattern_are_labels() {
        let pattern = OriginPattern { prefix: "https://".into(), suffix: ".shop.example:8443".into() };
        for (origin, fits) in [
            ("https://a.shop.example:8443", true),
            ("https://a.b.shop.example:8443", true),
            ("https://.shop.example:8443", false),
            ("https://shop.example:8443", false),
            ("https://a.shopxexample:8443", false),
            ("http://a.shop.example:8443", false),
            ("https://evil/.shop.example:8443", false),
        ] {
            assert_eq!(pattern.fits(origin), fits, "{origin}");
        }
    }
}
