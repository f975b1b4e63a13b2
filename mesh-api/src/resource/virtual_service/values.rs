//! Values that several parts of a virtual service are made of.

use std::time::Duration;

use crate::document::cursor::{Cursor, Fields};
use crate::resource::{Labels, metadata};

/// The text of a field. `None` if it is absent, or empty, which is an error.
pub(super) fn text(fields: &Fields<'_>, key: &str) -> Option<String> {
    fields.get(key)?.non_empty_string().map(str::to_owned)
}

/// What `read` makes of the items of a list; an absent list has none.
pub(super) fn list<T>(fields: &Fields<'_>, key: &str, read: impl FnMut(&Cursor<'_>) -> Option<T>) -> Vec<T> {
    fields.get(key).map(|at| at.items()).unwrap_or_default().iter().filter_map(read).collect()
}

/// A port, from 1.
pub(super) fn port(at: &Cursor<'_>) -> Option<u16> {
    at.integer(1..=65535).and_then(|port| u16::try_from(port).ok())
}

/// What an `int32` field can hold that must not be negative.
pub(super) const INT32: std::ops::RangeInclusive<u32> = 0..=i32::MAX.unsigned_abs();

/// A duration of whole milliseconds, at least one.
pub(super) fn duration(fields: &Fields<'_>, key: &str) -> Option<Duration> {
    let at = fields.get(key)?;
    let duration = at.duration()?;
    if !duration.subsec_nanos().is_multiple_of(1_000_000) {
        at.error("it is finer than a millisecond", "write whole milliseconds");
    }
    Some(duration)
}

/// Labels that a client's pod must have; an absent field asks for none.
pub(super) fn source_labels(fields: &Fields<'_>) -> Labels {
    let Some(at) = fields.get("sourceLabels") else { return Labels::new() };
    let labels = at.fields_with_any_key();
    labels.refuse_nulls("write the label's value, or remove the line");
    let mut read = Labels::new();
    for (key, at) in labels.all() {
        let Some(value) = at.text() else { continue };
        if !is_label_key(key) || !(value.is_empty() || is_label_value(value)) {
            let fix = "write the label and its value in full: letters, digits, `-`, `_` and `.`";
            at.error(format!("no pod can have the label {key:?} with the value {value:?}"), fix);
        }
        read.insert(key.to_owned(), value.to_owned());
    }
    read
}

/// A label's key: a name, perhaps behind a domain and a slash.
fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((domain, name)) => metadata::is_subdomain(domain) && is_label_value(name),
        None => is_label_value(key),
    }
}

fn is_label_value(text: &str) -> bool {
    let is_inner = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    let ends_well = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
    text.len() <= 63
        && text.chars().all(is_inner)
        && ends_well(text.chars().next())
        && ends_well(text.chars().next_back())
}
