//! `matches` of a `GRPCRoute`: which calls a rule is for. A call is a POST to the path `/SERVICE/METHOD`.

use super::http_match::{PathMatch, RouteMatch, headers};
use crate::document::cursor::{Cursor, quoted};
use crate::resource::virtual_service::regex_syntax;

/// Any part of a path.
const ANY: &str = "[^/]+";

impl RouteMatch {
    /// The match of every call.
    pub(super) fn any_call() -> Self {
        Self { method: Some("POST".to_owned()), is_grpc: true, ..Self::default() }
    }

    pub(super) fn read_grpc(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["method", "headers"]);
        let mut read = Self { headers: headers(&fields), ..Self::any_call() };
        if let Some(at) = fields.get("method") {
            read.path = method(&at)?;
        }
        Some(read)
    }
}

fn method(at: &Cursor<'_>) -> Option<PathMatch> {
    let fields = at.fields(&["type", "service", "method"]);
    let is_regex = fields
        .get("type")
        .map_or(Some(false), |at| at.enum_value(&[("Exact", false), ("RegularExpression", true)]))?;
    let part = |key: &str| {
        let Some(at) = fields.get(key) else { return Some(None) };
        let text = at.non_empty_string()?;
        if is_regex {
            regex_syntax::check(&at, text);
        } else if !text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._".contains(&byte)) {
            let fix = "use letters, digits, `_` and `.`, or `type: RegularExpression`";
            at.error(format!("{} is not a name of gRPC", quoted(text)), fix);
        }
        Some(Some(text))
    };
    Some(match (is_regex, part("service")?, part("method")?) {
        (_, None, None) => {
            at.error("it names neither a service nor a method", "add `service` or `method`");
            return None;
        }
        (false, Some(service), Some(method)) => PathMatch::Exact(format!("/{service}/{method}")),
        (false, Some(service), None) => PathMatch::Prefix(format!("/{service}")),
        (false, None, Some(method)) => PathMatch::Regex(format!("/{ANY}/{}", method.replace('.', "\\."))),
        (true, service, method) => {
            let group = |part: Option<&str>| part.map_or(ANY.to_owned(), |part| format!("(?:{part})"));
            PathMatch::Regex(format!("/{}/{}", group(service), group(method)))
        }
    })
}
