//! `requestRedirect` and `urlRewrite`: the client is told to ask elsewhere, or the server gets another URL.

use http::StatusCode;

use super::values;
use crate::document::cursor::{Cursor, Fields};
use crate::resource::virtual_service::Scheme;
use crate::resource::virtual_service::values::{port, refuse_what_no_url_has};

/// How a path becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PathChange {
    /// This is instead of all of it.
    Full(String),
    /// This is instead of the prefix that the match named, by whole segments.
    Prefix(String),
}

/// The client is sent elsewhere.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RedirectFilter {
    /// The new scheme. `None`: it stays.
    pub scheme: Option<Scheme>,
    /// The new host. `None`: it stays.
    pub hostname: Option<String>,
    /// How the path becomes another. `None`: it stays.
    pub path: Option<PathChange>,
    /// The new port. `None`: the usual one of the scheme if that is given, else the one that the client
    /// connects to.
    pub port: Option<u16>,
    /// The status of the response.
    pub status: StatusCode,
}

/// The request becomes another before it goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RewriteFilter {
    /// The new host. `None`: it stays.
    pub hostname: Option<String>,
    /// How the path becomes another. `None`: it stays.
    pub path: Option<PathChange>,
}

impl RedirectFilter {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        const STATUSES: [u32; 5] = [301, 302, 303, 307, 308];
        let fields = at.fields(&["scheme", "hostname", "path", "port", "statusCode"]);
        let status = match fields.get("statusCode") {
            None => Some(302),
            Some(at) => {
                let code = at.integer(300..=399)?;
                if !STATUSES.contains(&code) {
                    at.error(format!("{code} is no redirect"), "write 301, 302, 303, 307 or 308");
                }
                Some(code)
            }
        };
        let status = status.and_then(|code| u16::try_from(code).ok());
        Some(Self {
            scheme: fields
                .get("scheme")
                .and_then(|at| at.enum_value(&[("http", Scheme::Http), ("https", Scheme::Https)])),
            hostname: values::hostname(&fields),
            path: PathChange::read(&fields),
            port: fields.get("port").and_then(|at| port(&at)),
            status: status.and_then(|code| StatusCode::from_u16(code).ok())?,
        })
    }
}

impl RewriteFilter {
    pub(super) fn read(at: &Cursor<'_>) -> Self {
        let fields = at.fields(&["hostname", "path"]);
        Self { hostname: values::hostname(&fields), path: PathChange::read(&fields) }
    }
}

impl PathChange {
    fn read(fields: &Fields<'_>) -> Option<Self> {
        let at = fields.get("path")?;
        let fields = at.fields(&["type", "replaceFullPath", "replacePrefixMatch"]);
        let is_prefix = fields
            .require("type")?
            .enum_value(&[("ReplaceFullPath", false), ("ReplacePrefixMatch", true)])?;
        let (own, other) = if is_prefix {
            ("replacePrefixMatch", "replaceFullPath")
        } else {
            ("replaceFullPath", "replacePrefixMatch")
        };
        if let Some(at) = fields.get(other) {
            at.error("it does not go with this `type`", format!("write `{own}` instead"));
            return None;
        }
        let at = fields.require(own)?;
        let text = at.text()?;
        refuse_what_no_url_has(&at, text);
        if !text.is_empty() && !text.starts_with('/') {
            at.error("a path begins with a slash", "begin it with `/`");
        }
        Some(if is_prefix { Self::Prefix(text.to_owned()) } else { Self::Full(text.to_owned()) })
    }
}
