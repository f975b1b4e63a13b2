//! The head of a request as endpoints get it.

use std::borrow::Cow;

use bytes::BytesMut;
use mesh_api::plan::http_routes::{HttpForward, HttpMatch};
use rand::RngExt;

use super::forward::MatchedForward;
use super::h1::{MAX_HEAD, RequestHead, normalize_path, write_request_head};
use super::h2::http2_request;
use super::header_edits::apply_route_edits;
use super::outgoing_request::OutgoingHead;
use super::upstream_target::UpstreamProtocol;

/// What a request asks for, as endpoints get it.
pub(super) struct RequestLine<'a> {
    pub target: Cow<'a, str>,
    pub authority: Cow<'a, str>,
}

/// Makes the changes of the route and of its destination, and adds what every request has.
pub(super) fn edit_fields(head: &mut RequestHead, forwarding: &MatchedForward<'_>) {
    let MatchedForward { forward, destination, .. } = forwarding;
    let of_destination = destination.map(|destination| &destination.request_edits);
    let is_only = forward.destinations.len() == 1;
    apply_route_edits(is_only, &forward.request_edits, of_destination, &mut head.fields);
    if !head.fields.contains("x-request-id") {
        head.fields.push("x-request-id", &new_request_id());
    }
    if !head.fields.contains("x-forwarded-proto") {
        head.fields.push("x-forwarded-proto", b"http");
    }
}

/// Returns what endpoints are asked for. None: the path would no longer be in its normal form.
pub(super) fn request_line<'a>(
    head: &'a RequestHead,
    forwarding: &'a MatchedForward<'_>,
) -> Option<RequestLine<'a>> {
    let MatchedForward { forward, matched, destination, .. } = forwarding;
    let of_destination = destination.and_then(|destination| destination.request_edits.authority.as_deref());
    let rewritten = forward.rewrite.authority.as_deref().or(forward.request_edits.authority.as_deref());
    let authority = rewritten.or(of_destination).unwrap_or(&head.authority).into();
    Some(RequestLine { target: target_of(head, forward, *matched)?, authority })
}

/// Writes a head for endpoints of that protocol. None: it would be too large, or the protocol has no form for
/// it.
pub(super) fn write_head(
    head: &RequestHead,
    line: &RequestLine<'_>,
    protocol: UpstreamProtocol,
) -> Option<OutgoingHead> {
    let RequestLine { target, authority } = line;
    match protocol {
        UpstreamProtocol::Http1 => {
            let mut bytes = BytesMut::new();
            write_request_head((target, authority), head, &mut bytes);
            (bytes.len() <= MAX_HEAD).then_some(OutgoingHead::Http1(bytes))
        }
        UpstreamProtocol::Http2 => {
            http2_request(head, target, authority).map(|request| OutgoingHead::Http2(Box::new(request)))
        }
    }
}

/// Returns the target of a request as endpoints get it. None: a rewritten path that is not in its normal form
/// (`/static../a` to `/files/../a`), or is too long.
fn target_of<'a>(
    head: &'a RequestHead,
    forward: &HttpForward,
    matched: Option<&HttpMatch>,
) -> Option<Cow<'a, str>> {
    if head.is_connect() {
        return Some(head.authority.as_str().into());
    }
    let path = match &forward.rewrite.path {
        Some(rewrite) if head.path != "*" => {
            let rewritten = rewrite.rewritten_path(&head.path, matched)?;
            let mut normal = String::new();
            normalize_path(&rewritten, &mut normal).ok()?;
            Cow::Owned((normal == rewritten).then_some(rewritten)?)
        }
        _ => Cow::Borrowed(head.path.as_str()),
    };
    Some(match &head.query {
        None => path,
        Some(query) => format!("{path}?{query}").into(),
    })
}

/// Returns a random UUID (RFC 9562, 5.4), as Envoy makes one of each request.
fn new_request_id() -> [u8; 36] {
    let random: u128 = rand::rng().random();
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let (mut id, mut left) = ([b'-'; 36], bits);
    let digits = id.iter_mut().enumerate().filter(|(place, _)| ![8, 13, 18, 23].contains(place));
    for (_, digit) in digits {
        left = left.rotate_left(4);
        *digit = b"0123456789abcdef"[usize::from(left.to_le_bytes()[0] & 0xf)];
    }
    id
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let bytes = new_request_id();
        let id = std::str::from_utf8(&bytes).unwrap();
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!((parts.as_slice(), id.as_bytes()[14]), (&[8, 4, 4, 4, 12][..], b'4'));
        assert!(b"89ab".contains(&id.as_bytes()[19]) && bytes != new_request_id());
    }
}
