//! Conditions of requests.

use super::entry::LEAVE;
use super::route::RouteMaker;
use crate::resource::Labels;
use crate::resource::virtual_service::{
    GatewayRef, HeaderKey, HttpMatch, HttpRoute, PseudoHeader, StringMatch, ValueMatch,
};
use crate::wire::ext::{self, string_match::Form};

/// What to write instead of an expression that agents can't use.
pub(in crate::compile) const EXPRESSION_FIX: &str =
    "write one without `\\C` and `\\Q`, and without large repetitions";

impl RouteMaker<'_, '_> {
    /// The matches of a route that can hold here. `None`: it has some, and none of them can.
    pub(super) fn matches(&mut self, path: &str, route: &HttpRoute) -> Option<Vec<ext::HttpMatch>> {
        let matches = route.matches.iter().enumerate();
        let made: Vec<_> =
            matches.filter_map(|(index, it)| self.one_match(&format!("{path}.match[{index}]"), it)).collect();
        (route.matches.is_empty() || !made.is_empty()).then_some(made)
    }

    fn one_match(&mut self, path: &str, matched: &HttpMatch) -> Option<ext::HttpMatch> {
        let gateways = &matched.gateways;
        if !gateways.is_empty() && !gateways.contains(&GatewayRef::Mesh) {
            // Else it was said of the whole.
            if self.service.gateways.len() == 1 {
                self.said.ignore(
                    format!("{path}.gateways"),
                    "it is for gateways, which the mesh has none of",
                    LEAVE,
                );
            }
            return None;
        }
        if matched.stat_prefix.is_some() {
            self.said.ignore(format!("{path}.statPrefix"), "a match has no metrics of its own yet", LEAVE);
        }
        let mut is_usable = true;
        for (field, name, pattern) in expressions_of_match(matched) {
            let dot = if name.is_empty() { "" } else { "." };
            let field = format!("{path}.{field}{dot}{name}.regex");
            is_usable &= self.can_use(field, pattern, "the match is left out");
        }
        is_usable.then(|| made(matched)).flatten()
    }

    /// Whether agents can use an expression. If not, says so, and what comes of it.
    pub(super) fn can_use(&mut self, field: String, pattern: &str, result: &str) -> bool {
        let problem = self.expressions.problem(pattern);
        if let Some(problem) = problem {
            let reason = format!("agents can't use the regular expression, so {result}: {problem}");
            self.said.ignore(field, reason, EXPRESSION_FIX);
        }
        problem.is_none()
    }
}

/// What a match asks for; `None` if no request in the mesh has that.
fn made(matched: &HttpMatch) -> Option<ext::HttpMatch> {
    let is_for_any_source = matched.gateways.is_empty();
    let headers = matched.headers.iter().map(|header| (header, false));
    let without = matched.without_headers.iter().map(|header| (header, true));
    let header = |((key, value), invert): (&(HeaderKey, ValueMatch), bool)| {
        let name = name_of(key)?.to_owned();
        Some(ext::HeaderMatch { name, value: text_of_value(value), invert })
    };
    let query = |(name, value): &(String, ValueMatch)| ext::QueryMatch {
        name: name.clone(),
        value: text_of_value(value),
    };
    Some(ext::HttpMatch {
        name: matched.name.clone().unwrap_or_default(),
        path: matched.uri.as_ref().map(string_match),
        ignore_path_case: matched.ignore_uri_case,
        scheme: matched.scheme.as_ref().map(string_match),
        method: matched.method.as_ref().map(string_match),
        authority: matched.authority.as_ref().map(string_match),
        headers: headers.chain(without).map(header).collect::<Option<_>>()?,
        query: matched.query_params.iter().map(query).collect(),
        port: matched.port.unwrap_or_default().into(),
        client_labels: if is_for_any_source { matched.source_labels.clone() } else { Labels::new() },
        client_namespace: matched.source_namespace.clone().filter(|_| is_for_any_source).unwrap_or_default(),
        is_grpc: false,
    })
}

/// How a text is compared, on the wire.
pub(in crate::compile) fn string_match(text: &StringMatch) -> ext::StringMatch {
    let form = match text.clone() {
        StringMatch::Exact(text) => Form::Exact(text),
        StringMatch::Prefix(text) => Form::Prefix(text),
        StringMatch::Regex(pattern) => Form::Regex(pattern),
    };
    ext::StringMatch { form: Some(form) }
}

/// Nothing stands for any text that is there.
fn text_of_value(value: &ValueMatch) -> Option<ext::StringMatch> {
    match value {
        ValueMatch::Present => None,
        ValueMatch::Text(it) => Some(string_match(it)),
    }
}

/// The name of what a condition looks at. `None`: no request in the mesh has it, nor does the reader let a
/// virtual service for the mesh ask for it.
fn name_of(key: &HeaderKey) -> Option<&str> {
    Some(match key {
        HeaderKey::Header(name) => name.as_str(),
        HeaderKey::PseudoHeader(PseudoHeader::Method) => ":method",
        HeaderKey::PseudoHeader(PseudoHeader::Scheme) => ":scheme",
        HeaderKey::PseudoHeader(PseudoHeader::Authority) => ":authority",
        HeaderKey::PseudoHeader(PseudoHeader::Path) => ":path",
        HeaderKey::Claim(_) => return None,
    })
}

/// The regular expressions of a match, each with its field and the name in that.
pub(super) fn expressions_of_match(matched: &HttpMatch) -> impl Iterator<Item = (&'static str, &str, &str)> {
    let parts = [
        ("uri", &matched.uri),
        ("scheme", &matched.scheme),
        ("method", &matched.method),
        ("authority", &matched.authority),
    ];
    let parts = parts.into_iter().filter_map(|(field, text)| Some((field, "", text.as_ref()?)));
    let headers = [("headers", &matched.headers), ("withoutHeaders", &matched.without_headers)];
    let headers = headers.into_iter().flat_map(|(field, headers)| {
        let named = headers.iter().filter_map(|(key, value)| Some((name_of(key)?, value)));
        named.filter_map(move |(name, value)| Some((field, name, written(value)?)))
    });
    let query = matched.query_params.iter();
    let query = query.filter_map(|(name, value)| Some(("queryParams", name.as_str(), written(value)?)));
    parts.chain(headers).chain(query).filter_map(|(field, name, text)| match text {
        StringMatch::Regex(pattern) => Some((field, name, pattern.as_str())),
        StringMatch::Exact(_) | StringMatch::Prefix(_) => None,
    })
}

fn written(value: &ValueMatch) -> Option<&StringMatch> {
    match value {
        ValueMatch::Present => None,
        ValueMatch::Text(text) => Some(text),
    }
}
