//! `requestHeaderModifier` and `responseHeaderModifier`: how headers are changed on the way.

use http::HeaderName;

use super::values;
use crate::document::cursor::{Cursor, Fields, quoted};

/// Changes of the headers of one message.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HeaderFilter {
    /// Headers that get this value instead of those that they have.
    pub set: Vec<(HeaderName, String)>,
    /// Headers that get this value beside those that they have.
    pub add: Vec<(HeaderName, String)>,
    /// Headers that are taken away.
    pub remove: Vec<HeaderName>,
}

const MOST: usize = 16;

impl HeaderFilter {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["set", "add", "remove"]);
        if at.is_map() && fields.all().next().is_none() {
            at.error("it changes nothing", "add `set`, `add` or `remove`");
        }
        let remove = fields.get("remove").map(|at| at.non_empty_strings()).unwrap_or_default();
        Self {
            set: named_values(&fields, "set"),
            add: named_values(&fields, "add"),
            remove: remove.iter().filter_map(|(at, name)| header_name(at, name)).collect(),
        }
    }
}

fn named_values(fields: &Fields<'_>, key: &str) -> Vec<(HeaderName, String)> {
    let items = values::items(fields, key, MOST);
    let read = items.iter().filter_map(|at| {
        let fields = at.fields(&["name", "value"]);
        let (name, value) = (fields.require("name"), fields.require("value"));
        let name = name.and_then(|at| header_name(&at, at.non_empty_string()?));
        let value = value.and_then(|at| header_value(&at));
        name.zip(value)
    });
    read.collect()
}

fn header_name(at: &Cursor<'_>, text: &str) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(text.as_bytes()).ok();
    if name.is_none() {
        at.error(format!("{} is not a header's name", quoted(text)), "use letters, digits and `-`");
    }
    name
}

fn header_value(at: &Cursor<'_>) -> Option<String> {
    let text = at.non_empty_string()?;
    if text.chars().any(|c| c.is_ascii_control() && c != '\t') {
        at.error("a header's value has no control characters", "remove line breaks and the like");
        return None;
    }
    Some(text.to_owned())
}
