//! What browsers are told of other origins.

use super::rule::RuleMaker;
use crate::compile::condition::ConditionEffect;
use crate::resource::gateway_api::CorsFilter;
use crate::wire::ext::{self, string_match::Form};

/// What `*` stands for where browsers do not take it as that.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

impl RuleMaker<'_, '_> {
    /// For requests with credentials browsers take a star as a name. So methods are listed then, and of
    /// headers, which can't be, it is said.
    pub(super) fn cors(&mut self, path: &str, filter: &CorsFilter) -> ext::CorsPolicy {
        let is_star = |words: &[String]| words.iter().any(|word| word == "*");
        let mut headers = |field: &str, words: &[String]| {
            if filter.allow_credentials && is_star(words) {
                let reason = "browsers take no `*` for requests with credentials";
                let fix = "list the headers, or remove `allowCredentials`";
                self.said.differ(ConditionEffect::Stricter, format!("{path}.{field}"), reason, fix);
                return words.iter().filter(|word| *word != "*").cloned().collect::<Vec<_>>().join(",");
            }
            words.join(",")
        };
        ext::CorsPolicy {
            allow_origins: filter.allow_origins.iter().map(|origin| origin_match(origin)).collect(),
            allow_methods: if filter.allow_credentials && is_star(&filter.allow_methods) {
                METHODS.join(",")
            } else {
                filter.allow_methods.join(",")
            },
            allow_headers: headers("allowHeaders", &filter.allow_headers),
            expose_headers: headers("exposeHeaders", &filter.expose_headers),
            max_age: filter.max_age.into(),
            allow_credentials: filter.allow_credentials,
            answers_unmatched_preflights: true,
        }
    }
}

/// A star within an origin stands for any labels.
fn origin_match(origin: &str) -> ext::StringMatch {
    let form = match origin.split_once('*') {
        Some((scheme, rest)) if !rest.is_empty() => {
            Form::Regex(format!("{}[^/]+{}", escaped(scheme), escaped(rest)))
        }
        _ => Form::Exact(origin.to_owned()),
    };
    ext::StringMatch { form: Some(form) }
}

/// A text as the regular expression of itself.
fn escaped(text: &str) -> String {
    let is_plain = |c: &char| c.is_ascii_alphanumeric() || matches!(c, '/' | ':' | '-' | '_');
    let mut escaped = String::new();
    for c in text.chars() {
        if !is_plain(&c) {
            escaped.push('\\');
        }
        escaped.push(c);
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::regular_expression::RegularExpression;

    #[test]
    fn a_star_in_an_origin_stands_for_labels() {
        let Some(Form::Regex(pattern)) = origin_match("https://*.shop.example:8443").form else {
            panic!("it is compared by an expression")
        };
        let expression = RegularExpression::new(&pattern).unwrap();
        for (origin, fits) in [
            ("https://a.shop.example:8443", true),
            ("https://a.b.shop.example:8443", true),
            ("https://shop.example:8443", false),
            ("https://a.shopxexample:8443", false),
            ("http://a.shop.example:8443", false),
            ("https://evil/.shop.example:8443", false),
        ] {
            assert_eq!(expression.matches_whole(origin), fits, "{origin}");
        }
        assert_eq!(origin_match("*").form, Some(Form::Exact("*".to_owned())));
    }
}
