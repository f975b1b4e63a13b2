//! `rewrite`: the destination gets another path or host than the client asked for.

use super::{regex_syntax, values};
use crate::document::cursor::{Cursor, Fields};

/// What becomes another before a request goes to a destination.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rewrite {
    /// How the path does. `None`: it stays.
    pub path: Option<PathRewrite>,
    /// The new host. `None`: it stays.
    pub authority: Option<String>,
}

/// How the path of a request becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// This is instead of what the match named: of its prefix, or of the whole path if it named that or a
    /// regular expression. A match that says nothing of the path has the prefix `/`.
    Uri(String),
    /// Each occurrence of a regular expression of RE2 in the path, which is without the query here, is
    /// replaced (`uriRegexRewrite`).
    Regex {
        /// The expression, as in [`super::StringMatch::Regex`], but it need not match the whole path.
        pattern: String,
        /// What is instead. `\1` to `\9` stand for the groups of the expression, `\0` for all that it found,
        /// `\\` for a backslash.
        substitution: String,
    },
}

impl Rewrite {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["uri", "authority", "uriRegexRewrite"]);
        if at.is_map() && fields.all().all(|(_, at)| at.is_empty_text()) {
            at.error("it rewrites nothing", "add `uri`, `uriRegexRewrite` or `authority`");
        }
        Self { path: path(&fields), authority: values::url_part(&fields, "authority") }
    }
}

fn path(fields: &Fields<'_>) -> Option<PathRewrite> {
    let uri = values::url_part(fields, "uri").map(PathRewrite::Uri);
    let Some(at) = fields.get("uriRegexRewrite") else { return uri };
    if uri.is_some() {
        at.error("`uri` and `uriRegexRewrite` exclude each other", "remove one of them");
    }
    let fields = at.fields(&["match", "rewrite"]);
    let pattern = fields.require("match").and_then(|at| {
        let text = at.text()?;
        regex_syntax::check(&at, text);
        Some(text.to_owned())
    });
    let substitution = fields.require("rewrite").and_then(|at| substitution(&at));
    Some(PathRewrite::Regex { pattern: pattern?, substitution: substitution? })
}

fn substitution(at: &Cursor<'_>) -> Option<String> {
    let text = at.non_empty_string()?;
    values::refuse_what_no_url_has(at, text);
    let mut rest = text;
    while let Some((_, behind)) = rest.split_once('\\') {
        let Some(behind) = behind.strip_prefix(|next: char| next.is_ascii_digit() || next == '\\') else {
            let fix = "write `\\1` for what the first group found, and `\\\\` for a backslash";
            at.error("a backslash stands before neither a digit nor another", fix);
            return None;
        };
        rest = behind;
    }
    Some(text.to_owned())
}
