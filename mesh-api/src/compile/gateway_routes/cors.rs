//! What browsers are told of other origins.

use crate::resource::gateway_api::CorsFilter;
use crate::wire::ext::{self, string_match::Form};

/// What `*` stands for where browsers do not take it as that.
const METHODS: [&str; 9] = ["GET", "HEAD", "POST", "PUT", "DELETE", "CONNECT", "OPTIONS", "TRACE", "PATCH"];

/// For requests with credentials browsers take a star as a name. So methods are listed then, and headers are
/// allowed as they are asked for.
pub(super) fn cors_policy(filter: &CorsFilter) -> ext::CorsPolicy {
    let is_star = |words: &[String]| filter.allow_credentials && words.iter().any(|word| word == "*");
    let (patterns, origins): (Vec<_>, Vec<_>) =
        filter.allow_origins.iter().partition(|origin| *origin != "*" && origin.contains('*'));
    let allow_requested_headers = is_star(&filter.allow_headers);
    ext::CorsPolicy {
        allow_origins: origins.into_iter().map(|origin| exact(origin)).collect(),
        allow_origin_patterns: patterns.into_iter().filter_map(|origin| pattern(origin)).collect(),
        allow_methods: if is_star(&filter.allow_methods) {
            METHODS.join(",")
        } else {
            filter.allow_methods.join(",")
        },
        allow_headers: if allow_requested_headers { String::new() } else { filter.allow_headers.join(",") },
        allow_requested_headers,
        expose_headers: filter.expose_headers.join(","),
        max_age: filter.max_age.into(),
        allow_credentials: filter.allow_credentials,
        answers_unmatched_preflights: true,
    }
}

/// Whether headers that pages may read have to be listed, and are not.
pub(super) fn exposes_by_name(filter: &CorsFilter) -> bool {
    filter.allow_credentials && filter.expose_headers.iter().any(|word| word == "*")
}

fn exact(origin: &str) -> ext::StringMatch {
    ext::StringMatch { form: Some(Form::Exact(origin.to_owned())) }
}

/// A star within an origin stands for any labels.
fn pattern(origin: &str) -> Option<ext::OriginPattern> {
    let (prefix, suffix) = origin.split_once('*')?;
    Some(ext::OriginPattern { prefix: prefix.to_owned(), suffix: suffix.to_owned() })
}
