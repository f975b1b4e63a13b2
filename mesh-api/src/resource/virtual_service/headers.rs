//! `headers`: how headers of requests and responses are changed.

use http::HeaderName;

use super::values;
use crate::document::cursor::{Cursor, Fields, quoted};
use crate::plan::http_routes::is_editable;

/// Most bytes of a header's value. No request comes through with a longer one.
const MAX_VALUE: usize = 16 << 10;

/// What is changed on the way.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Headers {
    /// Before a request goes to a destination.
    pub request: HeaderOperations,
    /// Before a response goes back to the client.
    pub response: HeaderOperations,
}

/// Changes of the headers of one message. As in Envoy `remove` is done first, then `set`, then `add`: a
/// header that is removed and added has the new value.
///
/// In a value `%%` stands for `%`, and `%NAME%` or `%NAME(…)%` for what Envoy knows by that name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderOperations {
    /// The request's new authority, written as the header `host` or `:authority`. `None`: it stays. A route's
    /// is instead of that of its destinations. Never in a response.
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
    let mut values = Vec::new();
    for (name, at) in values::entries(at, "write the value, or `''` for an empty one") {
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
        at.error(format!("{} can't be changed here", quoted(name)), fix);
        return None;
    }
    let read = HeaderName::from_bytes(name.as_bytes()).ok();
    if read.is_some() && !is_editable(name) {
        let fix = "change another header; this one belongs to the message's framing or to its connection";
        at.error(format!("{} can't be changed here", quoted(name)), fix);
        return None;
    }
    if read.is_none() {
        at.error(format!("{} is not a header's name", quoted(name)), "use letters, digits and `-`");
    }
    read
}

fn header_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.text()?;
    if text.len() > MAX_VALUE {
        at.error(format!("the value is longer than {MAX_VALUE} bytes"), "write a shorter one");
        return None;
    }
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
        let Some(end) = closing_percent(behind) else { return false };
        if end > 0 && !behind.starts_with(|c: char| c.is_ascii_uppercase()) {
            return false;
        }
        rest = &behind[end + 1..];
    }
    true
}

/// Where the `%` is that belongs to the one before `text`. All that is looked at is between the two, so that
/// a long value takes no longer than it is.
fn closing_percent(text: &str) -> Option<usize> {
    let next = text.find('%')?;
    let Some(open) = text[..next].find('(') else { return Some(next) };
    let close = open + text[open..].find(')')?;
    text[close..].find('%').map(|end| close + end)
}

#[cfg(test)]
mod tests {
    use super::has_paired_percents;

    #[test]
    fn percent_signs_are_doubled_or_around_a_name() {
        for good in ["", "a", "100%%", "%HOSTNAME%", "a %REQ(x)% b", "%START_TIME(%s)%", "%%%A%"] {
            assert!(has_paired_percents(good), "{good}");
        }
        for bad in ["%", "100%", "50% of 100%", "%HOSTNAME", "%%%", "%REQ(x)", "%REQ(x%", "%REQ(x% )"] {
            assert!(!has_paired_percents(bad), "{bad}");
        }
    }

    #[test]
    fn a_long_value_takes_no_longer_than_it_is() {
        let start = std::time::Instant::now();
        assert!(has_paired_percents(&"%".repeat(4 << 20)));
        assert!(!has_paired_percents(&"%A(".repeat(1 << 20)));
        assert!(start.elapsed() < std::time::Duration::from_secs(5), "{:?}", start.elapsed());
    }
}
