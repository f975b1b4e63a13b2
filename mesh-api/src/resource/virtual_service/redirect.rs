//! `redirect`: the client is told to ask elsewhere.

use http::StatusCode;

use super::values;
use crate::document::cursor::{Cursor, Fields};

/// Where the client is sent to. What is not said stays as in the request, but for the port, which may go with
/// the scheme ([`RedirectPort::FromProtocolDefault`]).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Redirect {
    /// How the path becomes another. `None`: it stays.
    pub path: Option<RedirectPath>,
    /// The new host, with its port if that is not the usual one. `None`: it stays.
    pub authority: Option<String>,
    /// The new port.
    pub port: RedirectPort,
    /// The new scheme. `None`: it stays.
    pub scheme: Option<Scheme>,
    /// The status of the response: 301, 302, 303, 307 or 308; 301 unless set.
    pub status: StatusCode,
}

/// How the path of a request that is redirected becomes another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RedirectPath {
    /// This is instead of all of it (`uri`).
    Full(String),
    /// This is instead of the prefix that the match named (`prefixRewrite`).
    Prefix(String),
}

/// The port of a redirect.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RedirectPort {
    /// As the client wrote it in the request's authority. It goes where the scheme changes and it was the old
    /// one's usual port.
    #[default]
    FromProtocolDefault,
    /// The one that the client connects to.
    FromRequestPort,
    /// This one.
    Number(u16),
}

/// The scheme of a URL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    /// `http`.
    Http,
    /// `https`.
    Https,
}

const STATUSES: [u16; 5] = [301, 302, 303, 307, 308];

impl Redirect {
    pub(super) fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields =
            at.fields(&["uri", "prefixRewrite", "authority", "port", "derivePort", "scheme", "redirectCode"]);
        let says_nothing = |(key, at): (&str, Cursor<'_>)| key == "redirectCode" || at.is_empty_text();
        if at.is_map() && fields.all().all(says_nothing) {
            at.error("it does not say where to", "add `uri`, `authority`, `scheme` or `port`");
        }
        let status = fields.get("redirectCode").filter(|at| !at.is_zero());
        let status = status.map_or(Some(StatusCode::MOVED_PERMANENTLY), |at| status_code(&at));
        Some(Self {
            path: path(&fields),
            authority: values::url_part(&fields, "authority"),
            port: port(&fields),
            scheme: fields
                .get("scheme")
                .and_then(|at| at.enum_value(&[("http", Scheme::Http), ("https", Scheme::Https)])),
            status: status?,
        })
    }
}

fn path(fields: &Fields<'_>) -> Option<RedirectPath> {
    let full = values::url_part(fields, "uri").map(RedirectPath::Full);
    let prefix = values::url_part(fields, "prefixRewrite").map(RedirectPath::Prefix);
    if let Some(at) = values::given(fields, "prefixRewrite").filter(|_| full.is_some()) {
        at.error("`uri` and `prefixRewrite` exclude each other", "remove one of them");
    }
    full.or(prefix)
}

fn port(fields: &Fields<'_>) -> RedirectPort {
    const DERIVED: [(&str, RedirectPort); 2] = [
        ("FROM_PROTOCOL_DEFAULT", RedirectPort::FromProtocolDefault),
        ("FROM_REQUEST_PORT", RedirectPort::FromRequestPort),
    ];
    let derived = fields.get("derivePort").and_then(|at| at.enum_value(&DERIVED));
    let number = fields.get("port").and_then(|at| values::port(&at)).map(RedirectPort::Number);
    if let Some(at) = fields.get("derivePort").filter(|_| number.is_some()) {
        at.error("`port` and `derivePort` exclude each other", "remove one of them");
    }
    number.or(derived).unwrap_or_default()
}

fn status_code(at: &Cursor<'_>) -> Option<StatusCode> {
    let code = at.integer(300..=399).and_then(|code| u16::try_from(code).ok())?;
    if !STATUSES.contains(&code) {
        at.error(format!("{code} is no redirect that goes anywhere"), "write 301, 302, 303, 307 or 308");
        return None;
    }
    StatusCode::from_u16(code).ok()
}
