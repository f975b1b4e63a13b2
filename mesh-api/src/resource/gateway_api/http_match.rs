//! `matches`: which requests a rule is for.

use http::HeaderName;

use super::values;
use crate::document::cursor::{Cursor, Fields, quoted};
use crate::resource::virtual_service::{StringMatch, regex_syntax};

/// Conditions of a request, all of which must hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RouteMatch {
    /// The path.
    pub path: PathMatch,
    /// The method. `None`: any.
    pub method: Option<String>,
    /// Headers, none twice.
    pub headers: Vec<(HeaderName, StringMatch)>,
    /// Parameters of the query, none twice.
    pub query: Vec<(String, StringMatch)>,
    /// Whether it must be a call of gRPC.
    pub is_grpc: bool,
}

/// How a path is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathMatch {
    /// It is this one.
    Exact(String),
    /// It begins with these whole segments. A slash at the end does not count.
    Prefix(String),
    /// This regular expression matches all of it.
    Regex(String),
}

impl Default for RouteMatch {
    fn default() -> Self {
        let path = PathMatch::Prefix("/".to_owned());
        Self { path, method: None, headers: Vec::new(), query: Vec::new(), is_grpc: false }
    }
}

/// What a path or a value is compared by.
#[derive(Clone, Copy)]
enum Comparison {
    Exact,
    Prefix,
    Regex,
}

/// How a value is compared unless it says otherwise, or otherwise than this.
const COMPARISONS: [(&str, Comparison); 2] =
    [("Exact", Comparison::Exact), ("RegularExpression", Comparison::Regex)];
const METHODS: [(&str, ()); 9] = [
    ("GET", ()),
    ("HEAD", ()),
    ("POST", ()),
    ("PUT", ()),
    ("DELETE", ()),
    ("CONNECT", ()),
    ("OPTIONS", ()),
    ("TRACE", ()),
    ("PATCH", ()),
];
const MOST_CONDITIONS: usize = 16;

impl RouteMatch {
    pub(super) fn read_http(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["path", "headers", "queryParams", "method"]);
        let method = fields.get("method").filter(|at| at.enum_value(&METHODS).is_some());
        let path = match fields.get("path") {
            None => Self::default().path,
            Some(at) => path(&at)?,
        };
        Some(Self {
            path,
            method: method.and_then(|at| at.text().map(str::to_owned)),
            headers: headers(&fields),
            query: query(&fields),
            is_grpc: false,
        })
    }
}

fn path(at: &Cursor<'_>) -> Option<PathMatch> {
    const TYPES: [(&str, Comparison); 3] = [
        ("Exact", Comparison::Exact),
        ("PathPrefix", Comparison::Prefix),
        ("RegularExpression", Comparison::Regex),
    ];
    let fields = at.fields(&["type", "value"]);
    let comparison = fields.get("type").map_or(Some(Comparison::Prefix), |at| at.enum_value(&TYPES))?;
    let Some(at_value) = fields.get("value") else { return Some(made_path(comparison, "/")) };
    let value = at_value.non_empty_string()?;
    if matches!(comparison, Comparison::Regex) {
        regex_syntax::check(&at_value, value);
    } else {
        check_path(&at_value, value);
    }
    Some(made_path(comparison, value))
}

fn made_path(comparison: Comparison, value: &str) -> PathMatch {
    let value = value.to_owned();
    match comparison {
        Comparison::Exact => PathMatch::Exact(value),
        Comparison::Prefix => PathMatch::Prefix(value),
        Comparison::Regex => PathMatch::Regex(value),
    }
}

/// No request has such a path in its normal form.
fn check_path(at: &Cursor<'_>, path: &str) {
    let never = ["//", "/./", "/../", "%2f", "%2F", "#"].into_iter().find(|part| path.contains(part));
    let never = never.or_else(|| ["/.", "/.."].into_iter().find(|end| path.ends_with(end)));
    if !path.starts_with('/') {
        at.error(format!("{} is not a path", quoted(path)), "begin it with `/`");
    } else if let Some(part) = never {
        let problem = format!("no request's path has {part:?}, as it is compared in its normal form");
        at.error(problem, "write the path that the server gets");
    }
}

/// Reads `headers`. Of several for one header the first counts.
pub(super) fn headers(fields: &Fields<'_>) -> Vec<(HeaderName, StringMatch)> {
    let mut read: Vec<(HeaderName, StringMatch)> = Vec::new();
    for at in values::items(fields, "headers", MOST_CONDITIONS) {
        let fields = at.fields(&["type", "name", "value"]);
        let Some((at_name, value)) = fields.require("name").zip(value(&fields)) else { continue };
        let Some(text) = at_name.non_empty_string() else { continue };
        let Ok(name) = HeaderName::from_bytes(text.as_bytes()) else {
            let fix = "use letters, digits and `-`";
            at_name.error(format!("{} is not a header's name", quoted(text)), fix);
            continue;
        };
        if read.iter().any(|(known, _)| *known == name) {
            at.warn(format!("{name} has a condition already, which counts alone"), "remove one of them");
        } else {
            read.push((name, value));
        }
    }
    read
}

/// Reads `queryParams`, of which the same is true.
fn query(fields: &Fields<'_>) -> Vec<(String, StringMatch)> {
    let mut read: Vec<(String, StringMatch)> = Vec::new();
    for at in values::items(fields, "queryParams", MOST_CONDITIONS) {
        let fields = at.fields(&["type", "name", "value"]);
        let Some((at_name, value)) = fields.require("name").zip(value(&fields)) else { continue };
        let Some(name) = at_name.non_empty_string() else { continue };
        if read.iter().any(|(known, _)| known == name) {
            let problem = format!("{} has a condition already, which counts alone", quoted(name));
            at.warn(problem, "remove one of them");
        } else {
            read.push((name.to_owned(), value));
        }
    }
    read
}

fn value(fields: &Fields<'_>) -> Option<StringMatch> {
    let comparison = fields.get("type").map_or(Some(Comparison::Exact), |at| at.enum_value(&COMPARISONS));
    let at = fields.require("value")?;
    let text = at.non_empty_string()?;
    Some(match comparison? {
        Comparison::Exact | Comparison::Prefix => StringMatch::Exact(text.to_owned()),
        Comparison::Regex => {
            regex_syntax::check(&at, text);
            StringMatch::Regex(text.to_owned())
        }
    })
}
