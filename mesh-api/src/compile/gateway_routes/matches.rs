//! Conditions of requests, and which of them count before others.

use std::cmp::Reverse;

use http::HeaderName;

use super::rule::RuleMaker;
use crate::compile::virtual_services::{EXPRESSION_FIX, string_match};
use crate::resource::gateway_api::{PathMatch, RouteMatch, RouteRule};
use crate::resource::virtual_service::StringMatch;
use crate::wire::ext::{self, string_match::Form};

/// What comes first of all the matches of a Service: an exact path, then the longest prefix, then the longest
/// expression, then any path; then one with a method, then that with the most headers, then that with the
/// most parameters of the query.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Rank {
    path: PathRank,
    has_no_method: bool,
    headers: Reverse<usize>,
    query: Reverse<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum PathRank {
    Exact,
    Prefix(Reverse<usize>),
    Regex(Reverse<usize>),
    Any,
}

impl RuleMaker<'_, '_> {
    /// The matches of a rule that agents can look for.
    pub(super) fn matches(&mut self, path: &str, rule: &RouteRule) -> Vec<(Rank, ext::HttpMatch)> {
        let mut made = Vec::with_capacity(rule.matches.len());
        for (index, matched) in rule.matches.iter().enumerate() {
            let mut is_usable = true;
            for (field, pattern) in expressions(matched) {
                let field = format!("{path}.matches[{index}].{field}");
                is_usable &= self.can_use(field, pattern);
            }
            if is_usable {
                made.push((rank(matched), wire_match(matched)));
            }
        }
        made
    }

    fn can_use(&mut self, field: String, pattern: &str) -> bool {
        let problem = self.expressions.problem(pattern);
        if let Some(problem) = problem {
            let reason =
                format!("agents can't use the regular expression, so the match is left out: {problem}");
            self.said.ignore(field, reason, EXPRESSION_FIX);
        }
        problem.is_none()
    }
}

fn rank(matched: &RouteMatch) -> Rank {
    let path = match &matched.path {
        PathMatch::Exact(_) => PathRank::Exact,
        PathMatch::Prefix(prefix) => match prefix.trim_end_matches('/').len() {
            0 => PathRank::Any,
            length => PathRank::Prefix(Reverse(length)),
        },
        PathMatch::Regex(pattern) => PathRank::Regex(Reverse(pattern.len())),
    };
    Rank {
        path,
        has_no_method: matched.method.is_none(),
        headers: Reverse(matched.headers.len()),
        query: Reverse(matched.query.len()),
    }
}

fn wire_match(matched: &RouteMatch) -> ext::HttpMatch {
    let path = match matched.path.clone() {
        PathMatch::Exact(path) => Form::Exact(path),
        PathMatch::Prefix(prefix) => Form::PathPrefix(prefix.trim_end_matches('/').to_owned()),
        PathMatch::Regex(pattern) => Form::Regex(pattern),
    };
    let header = |(name, value): &(HeaderName, StringMatch)| ext::HeaderMatch {
        // No request has the field `host` beside its authority.
        name: if name == "host" { ":authority" } else { name.as_str() }.to_owned(),
        value: Some(string_match(value)),
        invert: false,
    };
    let query = |(name, value): &(String, StringMatch)| ext::QueryMatch {
        name: name.clone(),
        value: Some(string_match(value)),
    };
    ext::HttpMatch {
        path: Some(ext::StringMatch { form: Some(path) }),
        method: matched.method.clone().map(|method| string_match(&StringMatch::Exact(method))),
        headers: matched.headers.iter().map(header).collect(),
        query: matched.query.iter().map(query).collect(),
        is_grpc: matched.is_grpc,
        ..ext::HttpMatch::default()
    }
}

/// The regular expressions of a match, each with its field.
pub(super) fn expressions<'a>(matched: &'a RouteMatch) -> impl Iterator<Item = (String, &'a str)> {
    let path = match &matched.path {
        PathMatch::Regex(pattern) => Some(("path.value".to_owned(), pattern.as_str())),
        PathMatch::Exact(_) | PathMatch::Prefix(_) => None,
    };
    let of = |field: &'static str, index: usize, value: &'a StringMatch| match value {
        StringMatch::Regex(pattern) => Some((format!("{field}[{index}].value"), pattern.as_str())),
        StringMatch::Exact(_) | StringMatch::Prefix(_) => None,
    };
    let headers = matched.headers.iter().enumerate();
    let headers = headers.filter_map(move |(index, (_, value))| of("headers", index, value));
    let query = matched.query.iter().enumerate();
    let query = query.filter_map(move |(index, (_, value))| of("queryParams", index, value));
    path.into_iter().chain(headers).chain(query)
}
