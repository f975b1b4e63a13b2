//! Changes of headers on the way.

use http::HeaderName;

use super::route::RouteMaker;
use crate::resource::virtual_service::{HeaderOperations, Headers};
use crate::wire::ext;

/// Changes of requests and of responses.
#[derive(Default)]
pub(super) struct MessageEdits {
    pub request: ext::HeaderEdits,
    pub response: ext::HeaderEdits,
}

impl MessageEdits {
    /// Adds changes that come after these, as one list of changes has them: Envoy removes first what any of
    /// them does, then sets, then adds.
    pub fn append(&mut self, later: Self) {
        append(&mut self.request, later.request);
        append(&mut self.response, later.response);
    }
}

fn append(edits: &mut ext::HeaderEdits, later: ext::HeaderEdits) {
    edits.set.extend(later.set);
    edits.append.extend(later.append);
    edits.remove.extend(later.remove);
    if edits.authority.is_empty() {
        edits.authority = later.authority;
    }
}

/// Changes as they are sent; no message at all if there are none.
pub(super) fn given(edits: ext::HeaderEdits) -> Option<ext::HeaderEdits> {
    (edits != ext::HeaderEdits::default()).then_some(edits)
}

impl RouteMaker<'_, '_> {
    /// The changes that `headers` at `path` asks for.
    pub(super) fn edits(&mut self, path: &str, headers: &Headers) -> MessageEdits {
        MessageEdits {
            request: self.edits_of_message(&format!("{path}.request"), &headers.request),
            response: self.edits_of_message(&format!("{path}.response"), &headers.response),
        }
    }

    fn edits_of_message(&mut self, path: &str, operations: &HeaderOperations) -> ext::HeaderEdits {
        ext::HeaderEdits {
            set: self.values(&format!("{path}.set"), &operations.set),
            append: self.values(&format!("{path}.add"), &operations.add),
            remove: operations.remove.iter().map(|name| name.as_str().to_owned()).collect(),
            authority: operations.authority.clone().unwrap_or_default(),
        }
    }

    fn values(&mut self, path: &str, values: &[(HeaderName, String)]) -> Vec<ext::HeaderValue> {
        let made = values.iter().filter_map(|(name, value)| {
            let literal = literal(value);
            if literal.is_none() {
                let reason = "what Envoy puts in the place of a name between `%` is not known here";
                self.said.ignore(
                    format!("{path}.{name}"),
                    reason,
                    "write the value itself, with `%%` for `%`",
                );
            }
            Some(ext::HeaderValue { name: name.as_str().to_owned(), value: literal? })
        });
        made.collect()
    }
}

/// The text that a value stands for. `None`: there is a name in it that Envoy knows. The reader has seen to
/// it that every `%` has another.
fn literal(value: &str) -> Option<String> {
    let mut literal = String::with_capacity(value.len());
    let mut rest = value;
    while let Some((before, behind)) = rest.split_once('%') {
        literal.push_str(before);
        literal.push('%');
        rest = behind.strip_prefix('%')?;
    }
    literal.push_str(rest);
    Some(literal)
}

#[cfg(test)]
mod tests {
    use super::literal;

    #[test]
    fn two_percent_signs_stand_for_one_and_names_for_nothing_that_is_known() {
        for (value, stands_for) in
            [("", Some("")), ("a b", Some("a b")), ("100%%", Some("100%")), ("%%a%%%%", Some("%a%%"))]
        {
            assert_eq!(literal(value).as_deref(), stands_for, "{value}");
        }
        for value in ["%HOSTNAME%", "a%%%REQ(x)%"] {
            assert_eq!(literal(value), None, "{value}");
        }
    }
}
