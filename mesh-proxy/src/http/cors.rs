//! Cross-origin resource sharing, as a route's policy has it: answers preflight requests, and tells browsers
//! what pages of other origins may read.

use http::StatusCode;
use mesh_api::plan::http_routes::{CorsPolicy, RequestView};

use super::h1::{Fields, RequestHead};
use super::local_response::LocalResponse;

/// What a policy says of the request of a page.
pub(super) enum CorsVerdict<'a> {
    /// Nothing: there is no policy, the request is no page's, or it is of an origin that is not allowed.
    Nothing,
    /// The browser asks beforehand, and gets this answer.
    Answer(LocalResponse<'static>),
    /// The page may read the response.
    Allow(CorsPermission<'a>),
}

/// The permission of an origin to read a response.
pub(super) struct CorsPermission<'a> {
    policy: &'a CorsPolicy,
    origin: String,
}

/// Returns what a route's policy says of a request.
pub(super) fn judge<'a>(policy: Option<&'a CorsPolicy>, request: &RequestHead) -> CorsVerdict<'a> {
    let Some((policy, origin)) = policy.zip(request.header("origin")) else { return CorsVerdict::Nothing };
    let is_allowed = policy.allows_origin(&origin);
    let permission = CorsPermission { policy, origin: origin.into_owned() };
    let is_preflight =
        request.method == "OPTIONS" && request.fields.contains("access-control-request-method");
    if is_preflight && (is_allowed || policy.answers_unmatched_preflights) {
        let mut response = LocalResponse { status: StatusCode::OK, ..LocalResponse::default() };
        if is_allowed {
            permission.add_to_preflight(request, &mut response.fields);
        }
        return CorsVerdict::Answer(response);
    }
    if is_allowed { CorsVerdict::Allow(permission) } else { CorsVerdict::Nothing }
}

impl CorsPermission<'_> {
    /// Says it in a response, instead of what the server says.
    pub fn add_to(&self, fields: &mut Fields) {
        self.add_origin(fields);
        set(fields, "access-control-expose-headers", &self.policy.expose_headers);
    }

    fn add_to_preflight(&self, request: &RequestHead, fields: &mut Fields) {
        self.add_origin(fields);
        set(fields, "access-control-allow-methods", &self.policy.allow_methods);
        let requested = request.header("access-control-request-headers");
        let requested = requested.filter(|_| self.policy.allow_requested_headers);
        let allowed = requested.as_deref().unwrap_or(&self.policy.allow_headers);
        set(fields, "access-control-allow-headers", allowed);
        if let Some(age) = self.policy.max_age {
            set(fields, "access-control-max-age", &age.to_string());
        }
    }

    fn add_origin(&self, fields: &mut Fields) {
        set(fields, "access-control-allow-origin", &self.origin);
        if self.policy.allow_credentials {
            set(fields, "access-control-allow-credentials", "true");
        }
    }
}

/// Sets a field; an empty value leaves it as it is.
fn set(fields: &mut Fields, name: &str, value: &str) {
    if !value.is_empty() {
        fields.remove(name);
        fields.push(name, value.as_bytes());
    }
}
