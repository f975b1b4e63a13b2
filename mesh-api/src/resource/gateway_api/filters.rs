//! `filters`: what is done to the requests of a rule, or to those that go to one of its backends.

use super::backend_ref::ObjectRef;
use super::cors_filter::CorsFilter;
use super::header_filter::HeaderFilter;
use super::path_filters::{RedirectFilter, RewriteFilter};
use super::values;
use crate::document::cursor::{Cursor, Fields};

/// What is done to requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RouteFilter {
    /// Headers are changed before a request goes on.
    RequestHeaders(HeaderFilter),
    /// Headers are changed before a response goes back.
    ResponseHeaders(HeaderFilter),
    /// The client is sent elsewhere.
    Redirect(RedirectFilter),
    /// Path or host become others.
    Rewrite(RewriteFilter),
    /// Another backend gets a copy.
    Mirror(MirrorFilter),
    /// Pages of other origins may have browsers send such requests.
    Cors(CorsFilter),
    /// Something that the mesh does not know, by its `type`. A request must not go on without it.
    Unknown(String),
}

/// A backend that gets copies of requests.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MirrorFilter {
    /// Which.
    pub backend: ObjectRef,
    /// Of how many requests, in millionths of all.
    pub parts_per_million: u32,
}

const MOST: usize = 16;
const MILLION: u32 = 1_000_000;

impl RouteFilter {
    /// Reads `filters` of a rule or of a backend.
    pub(super) fn read_list(fields: &Fields<'_>) -> Vec<Self> {
        let items = values::items(fields, "filters", MOST);
        let mut read: Vec<Self> = Vec::with_capacity(items.len());
        for at in items {
            let Some(filter) = Self::read(&at) else { continue };
            let is_known = read.iter().any(|known| known.name() == filter.name());
            if is_known && !matches!(filter, Self::Mirror(_) | Self::Unknown(_)) {
                at.error(format!("there is a {} already", filter.name()), "write both in one");
            }
            if let Some(other) = read.iter().find(|known| known.excludes(&filter)) {
                let problem = format!("{} and {} exclude each other", other.name(), filter.name());
                at.error(problem, "remove one of them, or put it into another rule");
            }
            read.push(filter);
        }
        read
    }

    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields_with_any_key();
        let name = fields.require("type")?.non_empty_string()?;
        let key = match name {
            "RequestHeaderModifier" => "requestHeaderModifier",
            "ResponseHeaderModifier" => "responseHeaderModifier",
            "RequestRedirect" => "requestRedirect",
            "URLRewrite" => "urlRewrite",
            "RequestMirror" => "requestMirror",
            "CORS" => "cors",
            // What else stands there is for whoever knows it.
            other => return Some(Self::Unknown(other.to_owned())),
        };
        let inner = at.fields(&["type", key]).require(key)?;
        Some(match name {
            "RequestHeaderModifier" => Self::RequestHeaders(HeaderFilter::read(&inner)),
            "ResponseHeaderModifier" => Self::ResponseHeaders(HeaderFilter::read(&inner)),
            "RequestRedirect" => Self::Redirect(RedirectFilter::read(&inner)?),
            "URLRewrite" => Self::Rewrite(RewriteFilter::read(&inner)),
            "RequestMirror" => Self::Mirror(MirrorFilter::read(&inner)?),
            _ => Self::Cors(CorsFilter::read(&inner)),
        })
    }

    /// Its `type`.
    pub fn name(&self) -> &str {
        match self {
            Self::RequestHeaders(_) => "RequestHeaderModifier",
            Self::ResponseHeaders(_) => "ResponseHeaderModifier",
            Self::Redirect(_) => "RequestRedirect",
            Self::Rewrite(_) => "URLRewrite",
            Self::Mirror(_) => "RequestMirror",
            Self::Cors(_) => "CORS",
            Self::Unknown(name) => name,
        }
    }

    fn excludes(&self, other: &Self) -> bool {
        matches!((self, other), (Self::Redirect(_), Self::Rewrite(_)) | (Self::Rewrite(_), Self::Redirect(_)))
    }
}

impl MirrorFilter {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["backendRef", "percent", "fraction"]);
        let parts_per_million = match (fields.get("percent"), fields.get("fraction")) {
            (None, None) => Some(MILLION),
            (Some(at), None) => at.integer(0..=100).map(|percent| percent * (MILLION / 100)),
            (None, Some(at)) => fraction(&at),
            (Some(_), Some(at)) => {
                at.error("`percent` and `fraction` exclude each other", "remove one of them");
                None
            }
        };
        let backend = fields.require("backendRef").and_then(|at| ObjectRef::read(&at));
        Some(Self { backend: backend?, parts_per_million: parts_per_million? })
    }
}

fn fraction(at: &Cursor<'_>) -> Option<u32> {
    let fields = at.fields(&["numerator", "denominator"]);
    let limit = i32::MAX.unsigned_abs();
    let denominator = fields.get("denominator").map_or(Some(100), |at| at.integer(1..=limit));
    let numerator = fields.require("numerator").and_then(|at| at.integer(0..=limit));
    let (numerator, denominator) = (numerator?, denominator?);
    if numerator > denominator {
        at.error("it is more than all requests", "write a `numerator` of at most the `denominator`");
    }
    u32::try_from(u64::from(numerator) * u64::from(MILLION) / u64::from(denominator)).ok()
}
