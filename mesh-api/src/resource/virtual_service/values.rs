//! Values that several parts of a virtual service are made of.

use std::time::Duration;

use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::{Labels, metadata};

/// A field, unless it is absent or an empty text, which protobuf does not tell from that.
pub(super) fn given<'a>(fields: &Fields<'a>, key: &str) -> Option<Cursor<'a>> {
    fields.get(key).filter(|at| !at.is_empty_text())
}

/// A name for logs and metrics. `None` if it is absent or empty.
pub(super) fn name(fields: &Fields<'_>, key: &str) -> Option<String> {
    let at = given(fields, key)?;
    let text = at.text()?;
    if text.chars().any(char::is_control) {
        at.error("a name has no control characters", "remove line breaks and the like");
    }
    Some(text.to_owned())
}

/// A path or a host for a request or a response. `None` if it is absent or empty.
pub(super) fn url_part(fields: &Fields<'_>, key: &str) -> Option<String> {
    let at = given(fields, key)?;
    let text = at.text()?;
    refuse_what_no_url_has(&at, text);
    Some(text.to_owned())
}

/// What is sent as it is in a request's first line or a response's `location` could otherwise end it, and
/// begin something else.
pub(in crate::resource) fn refuse_what_no_url_has(at: &Cursor<'_>, text: &str) {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        let fix =
            "write other characters than letters, digits and punctuation of ASCII as `%` and two digits";
        at.error("a URL has no spaces, control characters or characters beyond ASCII", fix);
    }
}

/// Most bytes of a key of a map, since the path of everything below has it.
const MAX_KEY: usize = 256;

/// The entries of a map by names that its author chooses. `null_fix`: what to write for a value that is not
/// there. What is below a name that is too long is not looked at.
pub(super) fn entries<'a>(at: &Cursor<'a>, null_fix: &str) -> Vec<(&'a str, Cursor<'a>)> {
    let fields = at.fields_with_any_key();
    fields.refuse_nulls(null_fix);
    let (entries, too_long): (Vec<_>, Vec<_>) = fields.all().partition(|(key, _)| key.len() <= MAX_KEY);
    for (key, _) in too_long {
        at.error(format!("the name {} is longer than {MAX_KEY} bytes", quoted(key)), "write a shorter one");
    }
    entries
}

/// What `read` makes of the items of a list; an absent list has none.
pub(super) fn list<'a, T>(
    fields: &Fields<'a>,
    key: &str,
    read: impl FnMut(&Cursor<'a>) -> Option<T>,
) -> Vec<T> {
    fields.get(key).map(|at| at.items()).unwrap_or_default().iter().filter_map(read).collect()
}

/// A port, from 1.
pub(in crate::resource) fn port(at: &Cursor<'_>) -> Option<u16> {
    at.integer(1..=65535).and_then(|port| u16::try_from(port).ok())
}

/// The port of a match. `None` if it is absent or 0, which protobuf does not tell from that.
pub(super) fn optional_port(fields: &Fields<'_>) -> Option<u16> {
    port(&fields.get("port").filter(|at| !at.is_zero())?)
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
            let (key, value) = (quoted(key), quoted(value));
            at.error(format!("no pod can have the label {key} with the value {value}"), fix);
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
