//! Heads of HTTP/2, to and from the form that both versions share.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version as HttpVersion, request, response};

use crate::http::h1::{
    BodyFraming, Fields, Malformed, RequestHead, ResponseHead, Version, is_authority, is_no_trailer,
};

/// Most fields of a head, as of HTTP/1.
const MAX_FIELDS: usize = 100;

impl RequestHead {
    /// Takes the head of a request over. `is_end` is whether nothing follows it. What the library has
    /// refused already: forbidden fields, upper case, and pseudo-header fields out of place (RFC 9113, 8.2
    /// and 8.3). Errors: it is refused.
    pub fn from_http2(parts: &request::Parts, is_end: bool) -> Result<Self, Malformed> {
        let mut head = Self::default();
        parts.method.as_str().clone_into(&mut head.method);
        (head.version, head.keeps_alive) = (Version::Http2, true);
        head.takes_trailers = parts.headers.get(header::TE).is_some_and(|value| value == "trailers");
        if head.is_connect() {
            return Err(Malformed::Unsupported("CONNECT over HTTP/2 is not supported"));
        }
        if parts.headers.len() > MAX_FIELDS {
            return Err(Malformed::TooLarge);
        }
        head.authority = authority_of(parts)?;
        head.set_target(parts.uri.path_and_query().map_or("/", |target| target.as_str()))?;
        head.body = match framing_of(&parts.headers, is_end)? {
            // What usually has a body says in HTTP/1 that it has none (RFC 9110, 8.6).
            BodyFraming::None if matches!(head.method.as_str(), "POST" | "PUT" | "PATCH") => {
                BodyFraming::Length(0)
            }
            framing => framing,
        };
        take_fields(&parts.headers, &mut head.fields)?;
        Ok(head)
    }
}

impl ResponseHead {
    /// Takes the head of a response to a request with that method over. `is_end` is whether nothing follows
    /// it. Errors: it is refused.
    pub fn set_http2(
        &mut self,
        parts: &response::Parts,
        is_end: bool,
        method: &str,
    ) -> Result<(), Malformed> {
        *self = Self::default();
        (self.version, self.status, self.keeps_alive) = (Version::Http2, parts.status, true);
        if parts.headers.len() > MAX_FIELDS {
            return Err(Malformed::TooLarge);
        }
        let framing = framing_of(&parts.headers, is_end)?;
        let length = match declared_length(&parts.headers)? {
            Some(length) if method == "HEAD" || parts.status == StatusCode::NOT_MODIFIED => Some(length),
            _ => None,
        };
        let has_none = method == "HEAD"
            || parts.status.is_informational()
            || matches!(parts.status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
        self.announced_length = length;
        self.body = match framing {
            _ if has_none => BodyFraming::None,
            // An end without a body is said in HTTP/1 by its length.
            BodyFraming::None => BodyFraming::Length(0),
            other => other,
        };
        take_fields(&parts.headers, &mut self.fields)
    }
}

/// Returns the authority, which `:authority` and `host` must not say differently.
fn authority_of(parts: &request::Parts) -> Result<String, Malformed> {
    let mut hosts = parts.headers.get_all(header::HOST).iter();
    let host = hosts.next().map(|host| host.to_str().unwrap_or("\n"));
    if hosts.next().is_some() {
        return Err(Malformed::Invalid("host is there twice"));
    }
    let authority = parts.uri.authority().map(http::uri::Authority::as_str);
    if let (Some(one), Some(other)) = (authority, host)
        && !one.eq_ignore_ascii_case(other)
    {
        return Err(Malformed::Invalid(":authority and host disagree"));
    }
    let authority = authority.or(host).ok_or(Malformed::Invalid(":authority and host are missing"))?;
    if !is_authority(authority) {
        return Err(Malformed::Invalid("the authority is no host"));
    }
    Ok(authority.to_owned())
}

/// Returns how a body that comes in a stream is framed in HTTP/1.
fn framing_of(fields: &HeaderMap, is_end: bool) -> Result<BodyFraming, Malformed> {
    match declared_length(fields)? {
        _ if is_end => Ok(BodyFraming::None),
        Some(length) => Ok(BodyFraming::Length(length)),
        None => Ok(BodyFraming::Chunked),
    }
}

/// Returns the length that `content-length` says; that the body has it is checked by the library.
fn declared_length(fields: &HeaderMap) -> Result<Option<u64>, Malformed> {
    const BAD: Malformed = Malformed::Invalid("content-length is no number, or there twice");
    let mut lengths = fields.get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return Ok(None) };
    let text = length.to_str().ok().filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
    let length = text.and_then(|text| text.parse().ok()).filter(|_| lengths.next().is_none());
    length.map(Some).ok_or(BAD)
}

/// Takes the fields over but for those that frame the message or concern one connection. Crumbs of a cookie
/// become one (RFC 9113, 8.2.3).
fn take_fields(from: &HeaderMap, fields: &mut Fields) -> Result<(), Malformed> {
    let mut cookie: Vec<u8> = Vec::new();
    for (name, value) in from {
        if has_outer_space(value) {
            return Err(Malformed::Invalid("a field's value begins or ends with white space"));
        }
        if *name == header::COOKIE {
            if !cookie.is_empty() {
                cookie.extend_from_slice(b"; ");
            }
            cookie.extend_from_slice(value.as_bytes());
        } else if *name == header::EXPECT && !value.as_bytes().eq_ignore_ascii_case(b"100-continue") {
            return Err(Malformed::Expectation);
        } else if ![header::CONTENT_LENGTH, header::HOST, header::TE].contains(name) {
            fields.push(name.as_str(), value.as_bytes());
        }
    }
    if !cookie.is_empty() {
        fields.push(header::COOKIE.as_str(), &cookie);
    }
    Ok(())
}

/// Whether a value begins or ends with white space, which servers of HTTP/1 would not see (RFC 9113, 8.2.1).
fn has_outer_space(value: &HeaderValue) -> bool {
    let bytes = value.as_bytes();
    [bytes.first(), bytes.last()].into_iter().flatten().any(|byte| matches!(byte, b' ' | b'\t'))
}

/// Returns trailers as HTTP/1 has them.
pub(in crate::http) fn fields_of(from: &HeaderMap) -> Fields {
    let mut fields = Fields::default();
    let kept = from.iter().filter(|(name, value)| !is_no_trailer(name.as_str()) && !has_outer_space(value));
    kept.for_each(|(name, value)| fields.push(name.as_str(), value.as_bytes()));
    fields
}

/// Returns fields as HTTP/2 has them; what it has no form for is left out.
pub(in crate::http) fn header_map_of(fields: &Fields) -> HeaderMap {
    let mut headers = HeaderMap::with_capacity(fields.len());
    for (name, value) in fields.iter() {
        let name = HeaderName::from_bytes(name.as_bytes());
        if let (Ok(name), Ok(value)) = (name, HeaderValue::from_bytes(value)) {
            headers.append(name, value);
        }
    }
    headers
}

/// Returns the head of a request to `target` of `authority`. None: HTTP/2 has no form for it.
pub(in crate::http) fn http2_request(
    head: &RequestHead,
    target: &str,
    authority: &str,
) -> Option<Request<()>> {
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(target).build().ok()?;
    let mut request = Request::new(());
    *request.version_mut() = HttpVersion::HTTP_2;
    *request.method_mut() = Method::from_bytes(head.method.as_bytes()).ok()?;
    *request.uri_mut() = uri;
    *request.headers_mut() = header_map_of(&head.fields);
    if head.takes_trailers {
        request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
    }
    if let BodyFraming::Length(length) = head.body {
        request.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    Some(request)
}

/// Returns the head of a response with a body of that framing.
pub(in crate::http) fn http2_response(
    status: StatusCode,
    fields: &Fields,
    body: BodyFraming,
    announced_length: Option<u64>,
) -> Response<()> {
    let mut response = Response::new(());
    *response.version_mut() = HttpVersion::HTTP_2;
    *response.status_mut() = status;
    *response.headers_mut() = header_map_of(fields);
    let length = match body {
        BodyFraming::Length(length) => Some(length),
        _ => announced_length,
    };
    if let Some(length) = length {
        response.headers_mut().insert(header::CONTENT_LENGTH, length.into());
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(uri: &str, fields: &[(&'static str, &'static str)]) -> Result<RequestHead, Malformed> {
        let mut request = Request::builder().uri(uri).method("POST");
        for (name, value) in fields {
            request = request.header(*name, *value);
        }
        RequestHead::from_http2(&request.body(()).unwrap().into_parts().0, false)
    }

    #[test]
    fn a_head_is_taken_over() {
        let fields =
            [("cookie", "a=1"), ("x-a", "1"), ("te", "trailers"), ("cookie", "b=2"), ("content-length", "3")];
        let head = request("http://web:80/a/../b?c=d", &fields).unwrap();
        assert_eq!((head.authority.as_str(), head.path.as_str()), ("web:80", "/b"));
        assert_eq!((head.query.as_deref(), head.body), (Some("c=d"), BodyFraming::Length(3)));
        let expected: [(&str, &[u8]); 2] = [("x-a", b"1"), ("cookie", b"a=1; b=2")];
        assert_eq!(head.fields.iter().collect::<Vec<_>>(), expected);
        assert_eq!(request("http://web/", &[]).unwrap().body, BodyFraming::Chunked);
    }

    #[test]
    fn what_means_nothing_behind_a_body_is_no_trailer() {
        let mut trailers = HeaderMap::new();
        for (name, value) in [
            ("grpc-status", "0"),
            ("host", "other"),
            ("authorization", "x"),
            ("x-space", " x"),
            ("x-sum", "7"),
        ] {
            trailers.append(name, HeaderValue::from_static(value));
        }
        let fields = fields_of(&trailers);
        assert_eq!(fields.iter().map(|(name, _)| name).collect::<Vec<_>>(), ["grpc-status", "x-sum"]);
    }

    #[test]
    fn a_head_that_has_two_meanings_is_refused() {
        for (uri, fields) in [
            ("http://web/", &[("host", "other")][..]),
            ("/", &[]),
            ("/", &[("host", "a"), ("host", "a")]),
            ("http://user@web/", &[]),
            ("http://web/%zz", &[]),
            ("http://web/", &[("content-length", "3"), ("content-length", "3")]),
            ("http://web/", &[("content-length", "+3")]),
            ("http://web/", &[("content-length", "3, 3")]),
            ("http://web/", &[("expect", "more")]),
            ("http://web/", &[("x-role", " admin")]),
            ("http://web/", &[("x-role", "admin\t")]),
        ] {
            assert!(request(uri, fields).is_err(), "{uri} {fields:?}");
        }
    }
}
