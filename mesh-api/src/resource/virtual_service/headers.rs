//! `headers`: how headers of requests and responses are changed.

use http::HeaderName;

use crate::document::cursor::{Cursor, Fields};

/// What is changed on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Before a request goes to a destination.
    pub request: HeaderOperations,
    /// Before a response goes back to the client.
    pub response: HeaderOperations,
}

/// Changes of the headers of one message. `set` is done first, then `add`, then `remove`.
///
/// In a value `%%` stands for `%`, and `%NAME%` or `%NAME(…)%` for what Envoy knows by that name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// The request's new authority, written as the header `host` or `:authority`. `None`: it stays. Never in
    /// a response.
    pub authority: Option<String>,
    /// Headers that get this value instead of those that they have.
    pub set: Vec<(HeaderName, String)>,
    /// Headers that get this value beside those that they have.
    pub add: Vec<(HeaderName, String)>,
    /// Headers that are taken away.
    pub remove: Vec<HeaderName>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Message {
    Request,
    Response,
}

impl Headers {
    /// Reads the field `headers`; an absent one changes nothing.
    pub(super) fn read(fields: &Fields<'_>) -> Self {
        let Some(at) = fields.get("headers") else { return Self::default() };
        let fields = at.fields(&["request", "response"]);
        let read =
            |key: &str, message| fields.get(key).map(|at| operations(&at, message)).unwrap_or_default();
        Self { request: read("request", Message::Request), response: read("response", Message::Response) }
    }
}

fn operations(at: &Cursor<'_>, message: Message) -> HeaderOperations {
    let fields = at.fields(&["set", "add", "remove"]);
    let mut authority = None;
    let mut values = |key: &str| {
        fields.get(key).map(|at| name_values(&at, key, message, &mut authority)).unwrap_or_default()
    };
    let (set, add) = (values("set"), values("add"));
    let remove = fields.get("remove").map(|at| at.non_empty_strings()).unwrap_or_default();
    let remove = remove.iter().filter_map(|(at, name)| header_name(at, name)).collect();
    HeaderOperations { authority, set, add, remove }
}

fn name_values(
    at: &Cursor<'_>,
    operation: &str,
    message: Message,
    authority: &mut Option<String>,
) -> Vec<(HeaderName, String)> {
    let fields = at.fields_with_any_key();
    fields.refuse_nulls("write the value, or `''` for an empty one");
    let mut values = Vec::new();
    for (name, at) in fields.all() {
        let Some(value) = header_value(&at) else { continue };
        if message == Message::Request && is_authority(name) {
            if operation == "add" {
                at.warn("a request has one authority, so this replaces it", "move it to `set`");
            }
            if authority.replace(value).is_some() {
                at.error("the authority is already set", "set it in one place");
            }
        } else if let Some(name) = header_name(&at, name) {
            values.push((name, value));
        }
    }
    values
}

/// Whether a header is the host of a request, by which names it goes in HTTP/1 and HTTP/2.
fn is_authority(name: &str) -> bool {
    name.eq_ignore_ascii_case("host") || name.eq_ignore_ascii_case(":authority")
}

/// The name of a header that may be changed.
fn header_name(at: &Cursor<'_>, name: &str) -> Option<HeaderName> {
    if is_authority(name) || name.starts_with(':') {
        let fix = "change another header; `set` of `request` takes `host`, for a new authority";
        at.error(format!("{name:?} can't be changed here"), fix);
        return None;
    }
    let read = HeaderName::from_bytes(name.as_bytes()).ok();
    if read.is_none() {
        at.error(format!("{name:?} is not a header's name"), "use letters, digits and `-`");
    }
    read
}

fn header_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.chars().any(|c| c.is_ascii_control() && c != '\t') {
        at.error("a header's value has no control characters", "remove line breaks and the like");
        return None;
    }
    if !has_paired_percents(text) {
        at.error("a `%` stands alone", "write `%%` for a percent sign");
        return None;
    }
    Some(text.to_owned())
}

/// Whether each `%` is doubled, or one of the two around a name of Envoy's, whose arguments may have more.
fn has_paired_percents(value: &str) -> bool {
    let mut rest = value;
    while let Some((_, behind)) = rest.split_once('%') {
        let arguments = behind.find('(').filter(|open| !behind[..*open].contains('%'));
        let name_end =
            arguments.and_then(|open| behind[open..].find(')').map(|close| open + close)).unwrap_or(0);
        let Some(end) = behind[name_end..].find('%').map(|end| name_end + end) else { return false };
        if end > 0 && !behind.starts_with(|c: char| c.is_ascii_uppercase()) {
            return false;
        }
        rest = &behind[end + 1..];
    }
    true
}

#[cfg(test)]
mod tests {
    use super::has_paired_percents;

    #[test]
    fn percent_signs_are_doubled_or_around_a_name() {
        for good in ["", "a", "100%%", "%HOSTNAME%", "a %REQ(x)% b", "%START_TIME(%s)%", "%%%A%"] {
            assert!(has_paired_percents(good), "{good}");
        }
        for bad in ["%", "100%", "50% of 100%", "%HOSTNAME", "%%%", "%REQ(x)"] {
            assert!(!has_paired_percents(bad), "{bad}");
        }
    }
}
