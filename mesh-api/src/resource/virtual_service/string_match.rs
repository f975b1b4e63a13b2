//! `StringMatch`: how a text of a request is compared, with one of `exact`, `prefix` and `regex`.

use super::regex_syntax;
use crate::document::cursor::Cursor;

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum StringMatch {
    /// It is this one.
    Exact(String),
    /// It begins so; empty only for paths, which all of them match.
    Prefix(String),
    /// This regular expression of RE2 matches the whole of it. It has 1 to 1,024 bytes and no mistake that
    /// shows without compiling it.
    Regex(String),
}

/// How the value of a header, a claim or a query parameter is compared.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum ValueMatch {
    /// It is there, whatever it says (`{}`).
    Present,
    /// It is there and matches.
    Text(StringMatch),
}

/// What one place takes that others do not.
#[derive(Clone, Copy, Default)]
struct Allowed {
    empty_prefix: bool,
    /// The regular expression `*`, which is none, for any value.
    star: bool,
}

impl StringMatch {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        Self::read_allowing(at, Allowed::default())
    }

    /// Reads what a path is compared with.
    pub(super) fn read_path(at: &Cursor<'_>) -> Option<Self> {
        Self::read_allowing(at, Allowed { empty_prefix: true, star: false })
    }

    fn read_allowing(at: &Cursor<'_>, allowed: Allowed) -> Option<Self> {
        match ValueMatch::read_allowing(at, allowed)? {
            ValueMatch::Text(text) => Some(text),
            ValueMatch::Present => {
                at.error("it does not say what to compare with", "add `exact`, `prefix` or `regex`");
                None
            }
        }
    }
}

impl ValueMatch {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        Self::read_allowing(at, Allowed::default())
    }

    /// Reads what must not be there.
    pub(super) fn read_absent(at: &Cursor<'_>) -> Option<Self> {
        Self::read_allowing(at, Allowed { empty_prefix: false, star: true })
    }

    fn read_allowing(at: &Cursor<'_>, allowed: Allowed) -> Option<Self> {
        const FORMS: [&str; 3] = ["exact", "prefix", "regex"];
        let fields = at.fields(&FORMS);
        let given: Vec<_> = FORMS.into_iter().filter_map(|form| Some((form, fields.get(form)?))).collect();
        match given.as_slice() {
            // A misspelt form was named, as was what is no map; neither says what was meant.
            [] => (at.is_map() && fields.all().next().is_none()).then_some(Self::Present),
            [(form, value)] => read_form(form, value, allowed),
            _ => {
                at.error("`exact`, `prefix` and `regex` exclude each other", "keep one of them");
                None
            }
        }
    }
}

fn read_form(form: &str, at: &Cursor<'_>, allowed: Allowed) -> Option<ValueMatch> {
    let text = at.text()?;
    let owned = text.to_owned();
    Some(ValueMatch::Text(match form {
        "exact" => StringMatch::Exact(owned),
        "prefix" if text.is_empty() && !allowed.empty_prefix => {
            at.error("the prefix is empty", "write a prefix, or remove the condition");
            return None;
        }
        "prefix" => StringMatch::Prefix(owned),
        _ if text == "*" && allowed.star => return Some(ValueMatch::Present),
        _ => {
            regex_syntax::check(at, text);
            StringMatch::Regex(owned)
        }
    }))
}
