//! How path and authority of a request become others, and where a redirect leads.

use std::fmt::Write as _;

use http::StatusCode;

use super::request_match::{HttpMatch, RequestView};
use super::text_match::TextMatch;
use crate::regular_expression::RegularExpression;

/// Most bytes of a path that a regular expression makes.
const MAX_REWRITTEN: usize = 16 * 1024;

/// What becomes another before a request goes to a destination.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rewrite {
    /// How the path does; none: it stays.
    pub path: Option<PathRewrite>,
    /// The new authority; none: it stays.
    pub authority: Option<Box<str>>,
}

/// How the path of a request becomes another.
#[derive(Debug, PartialEq, Eq)]
pub enum PathRewrite {
    /// This is instead of the prefix that matched, or of the whole path if something else did. A match that
    /// says nothing of the path has the prefix `/`.
    Uri(Box<str>),
    /// Each match of the expression is replaced by the substitution.
    Regex(RegularExpression, Box<str>),
    /// This is instead of the whole path.
    Full(Box<str>),
}

/// Where a client is sent to.
#[derive(Debug, PartialEq, Eq)]
pub struct Redirect {
    /// How the path becomes another; none: it stays.
    pub path: Option<RedirectPath>,
    /// The new authority; none: it stays.
    pub authority: Option<Box<str>>,
    /// The new port.
    pub port: RedirectPort,
    /// The new scheme; none: it stays.
    pub scheme: Option<Box<str>>,
    /// Status of the response.
    pub status: StatusCode,
}

/// How the path of a request that is redirected becomes another.
#[derive(Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// This is instead of path and query.
    Full(Box<str>),
    /// This is instead of the path; the query stays.
    FullPath(Box<str>),
    /// This is instead of the prefix that matched.
    Prefix(Box<str>),
}

/// The port of a redirect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RedirectPort {
    /// As the client wrote it; dropped where the scheme changes and it was the old one's usual port.
    FromProtocolDefault,
    /// The one that the client connects to.
    FromRequest,
    /// This one.
    Number(u16),
}

impl PathRewrite {
    /// Returns the new path, without the query, of a request that `matched` fits; none if it would be too
    /// long.
    pub fn rewritten_path(&self, path: &str, matched: Option<&HttpMatch>) -> Option<String> {
        let rewritten = match self {
            Self::Uri(uri) => replace_prefix(path, matched, uri),
            Self::Regex(pattern, substitution) => pattern.replace_all(path, substitution, MAX_REWRITTEN)?,
            Self::Full(full) => full.to_string(),
        };
        // A request's target begins with a slash (RFC 9112, 3.2.1).
        Some(if rewritten.starts_with('/') { rewritten } else { format!("/{rewritten}") })
    }
}

/// Puts `new` in the place of what `matched` found in a path.
fn replace_prefix(path: &str, matched: Option<&HttpMatch>, new: &str) -> String {
    let prefix = match matched.and_then(|matched| matched.path.as_ref()) {
        None => "/",
        Some(TextMatch::Prefix(prefix)) => prefix,
        Some(TextMatch::PathPrefix(prefix)) => return replace_segments(path, prefix, new),
        Some(TextMatch::Present | TextMatch::Exact(_) | TextMatch::Regex(_)) => path,
    };
    format!("{new}{}", path.get(prefix.len()..).unwrap_or_default())
}

/// Puts `new` in the place of the whole segments at the beginning of a path. What is behind them begins with
/// a slash, if there is anything, so that one at the end of `new` would be a second.
fn replace_segments(path: &str, prefix: &str, new: &str) -> String {
    let rest = path.get(prefix.len()..).unwrap_or_default();
    let replaced = format!("{}{rest}", new.trim_end_matches('/'));
    if replaced.is_empty() { "/".to_owned() } else { replaced }
}

impl Redirect {
    /// Returns the `Location` for a request that `matched` fits and that was sent to a port.
    pub fn location(&self, request: &impl RequestView, matched: Option<&HttpMatch>, port: u16) -> String {
        let scheme = self.scheme.as_deref().unwrap_or(request.scheme());
        let authority = self.authority.as_deref().unwrap_or(request.authority());
        let (host, written_port) = split_port(authority);
        let port = match self.port {
            RedirectPort::Number(number) => Some(number),
            RedirectPort::FromRequest => Some(port),
            RedirectPort::FromProtocolDefault => written_port
                .filter(|port| scheme == request.scheme() || Some(*port) != usual_port(request.scheme())),
        };
        let mut location = format!("{scheme}://{host}");
        if let Some(port) = port.filter(|port| Some(*port) != usual_port(scheme)) {
            // Writing into a text does not fail.
            let _ = write!(location, ":{port}");
        }
        match &self.path {
            Some(RedirectPath::Full(full) | RedirectPath::FullPath(full)) => location.push_str(full),
            Some(RedirectPath::Prefix(prefix)) => {
                location.push_str(&replace_prefix(request.path(), matched, prefix));
            }
            None => location.push_str(request.path()),
        }
        let keeps_query = !matches!(self.path, Some(RedirectPath::Full(_)));
        if let Some(query) = request.query().filter(|_| keeps_query) {
            location.push('?');
            location.push_str(query);
        }
        location
    }
}

/// Splits an authority into host and port. An IPv6 address stands in brackets.
fn split_port(authority: &str) -> (&str, Option<u16>) {
    match authority.rsplit_once(':') {
        Some((host, port)) if !host.contains(':') || host.ends_with(']') => match port.parse() {
            Ok(port) => (host, Some(port)),
            Err(_) => (authority, None),
        },
        _ => (authority, None),
    }
}

fn usual_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}
