//! Changes of headers by a rule and by its backends, joined: those of the rule come first.

use super::filters::MadeFilters;
use crate::wire::ext::{HeaderEdits, HeaderValue, HttpDestination};

/// Gives each destination the rule's changes before its own, if one has changes: agents apply a route's
/// changes before or behind those of its destinations, by the number of these, as Istio's virtual services
/// have it.
pub(super) fn join_header_edits(filters: &mut MadeFilters, destinations: &mut [HttpDestination]) {
    if destinations.iter().any(|it| it.request.is_some()) {
        join(filters.request.take(), destinations.iter_mut().map(|it| &mut it.request));
    }
    if destinations.iter().any(|it| it.response.is_some()) {
        join(filters.response.take(), destinations.iter_mut().map(|it| &mut it.response));
    }
}

fn join<'a>(of_rule: Option<HeaderEdits>, all: impl Iterator<Item = &'a mut Option<HeaderEdits>>) {
    let Some(of_rule) = of_rule else { return };
    for of_backend in all {
        *of_backend = Some(match of_backend.take() {
            None => of_rule.clone(),
            Some(own) => both(of_rule.clone(), own),
        });
    }
}

/// What two changes come to, one after the other.
fn both(mut first: HeaderEdits, then: HeaderEdits) -> HeaderEdits {
    let is_kept = |it: &HeaderValue| {
        !then.remove.contains(&it.name) && then.set.iter().all(|value| value.name != it.name)
    };
    first.set.retain(is_kept);
    first.append.retain(is_kept);
    first.set.extend(then.set);
    first.append.extend(then.append);
    first.remove.extend(then.remove);
    if !then.authority.is_empty() {
        first.authority = then.authority;
    }
    first
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(pairs: &[(&str, &str)]) -> Vec<HeaderValue> {
        let value =
            |(name, value): &(&str, &str)| HeaderValue { name: (*name).into(), value: (*value).into() };
        pairs.iter().map(value).collect()
    }

    #[test]
    fn what_comes_last_wins() {
        let rule = HeaderEdits {
            set: values(&[("a", "rule"), ("b", "rule"), ("c", "rule")]),
            append: values(&[("d", "rule"), ("e", "rule")]),
            remove: vec!["f".into()],
            authority: "rule".into(),
        };
        let backend = HeaderEdits {
            set: values(&[("a", "backend"), ("d", "backend")]),
            append: values(&[("c", "backend"), ("f", "backend")]),
            remove: vec!["b".into(), "e".into()],
            authority: String::new(),
        };
        let mut filters = MadeFilters { request: Some(rule.clone()), ..MadeFilters::default() };
        let with = HttpDestination { request: Some(backend), ..HttpDestination::default() };
        let mut destinations = [with, HttpDestination::default()];
        join_header_edits(&mut filters, &mut destinations);
        let expected = HeaderEdits {
            set: values(&[("c", "rule"), ("a", "backend"), ("d", "backend")]),
            append: values(&[("c", "backend"), ("f", "backend")]),
            remove: vec!["f".into(), "b".into(), "e".into()],
            authority: "rule".into(),
        };
        assert_eq!((&filters.request, &destinations[0].request), (&None, &Some(expected)));
        assert_eq!(destinations[1].request, Some(rule), "the rule's alone");
    }

    #[test]
    fn a_rule_s_changes_stay_where_no_backend_has_some() {
        let mut filters = MadeFilters { response: Some(HeaderEdits::default()), ..MadeFilters::default() };
        let mut destinations = [HttpDestination::default()];
        join_header_edits(&mut filters, &mut destinations);
        assert!(filters.response.is_some() && destinations[0].response.is_none());
    }
}
