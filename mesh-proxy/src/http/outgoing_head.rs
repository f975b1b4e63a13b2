//! The head of a request as endpoints get it.

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
#[derive(Clone)]
pub(super) struct RequestLine {
    pub target: String,
    pub authority: String,
}

/// Makes the changes of the route and of its destination, and adds what every request has. Returns what
/// endpoints are asked for. None: the path would no longer be in its normal form.
pub(super) fn edit_head(head: &mut RequestHead, forwarding: &MatchedForward<'_>) -> Option<RequestLine> {
    let MatchedForward { forward, matched, destination, .. } = forwarding;
    let of_route = &forward.request_edits;
    let of_destination = destination.map(|destination| &destination.request_edits);
    apply_route_edits(forward.destinations.len() == 1, of_route, of_destination, &mut head.fields);
    let rewritten = forward.rewrite.authority.as_ref().or(of_route.authority.as_ref());
    let rewritten = rewritten.or_else(|| of_destination.and_then(|edits| edits.authority.as_ref()));
    let authority = rewritten.map_or(head.authority.as_str(), |authority| authority).to_owned();
    if !head.fields.contains("x-request-id") {
        head.fields.push("x-request-id", new_request_id().as_bytes());
    }
    if !head.fields.contains("x-forwarded-proto") {
        head.fields.push("x-forwarded-proto", b"http");
    }
    Some(RequestLine { target: target_of(head, forward, *matched)?, authority })
}

/// Writes a head for endpoints of that protocol. None: it would be too large, or the protocol has no form for
/// it.
pub(super) fn write_head(
    head: &RequestHead,
    line: &RequestLine,
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
fn target_of(head: &RequestHead, forward: &HttpForward, matched: Option<&HttpMatch>) -> Option<String> {
    if head.is_connect() {
        return Some(head.authority.clone());
    }
    let path = match &forward.rewrite.path {
        Some(rewrite) if head.path != "*" => {
            let rewritten = rewrite.rewritten_path(&head.path, matched)?;
            let mut normal = String::new();
            normalize_path(&rewritten, &mut normal).ok()?;
            (normal == rewritten).then_some(rewritten)?
        }
        _ => head.path.clone(),
    };
    Some(match &head.query {
        None => path,
        Some(query) => format!("{path}?{query}"),
    })
}

/// Returns a random UUID (RFC 9562, 5.4), as Envoy makes one of each request.
fn new_request_id() -> String {
    let random: u128 = rand::rng().random();
    let bits = (random & !(0xf << 76) & !(0x3 << 62)) | (0x4 << 76) | (0x2 << 62);
    let hex = format!("{bits:032x}");
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_is_a_random_uuid() {
        let id = new_request_id();
        let parts: Vec<usize> = id.split('-').map(str::len).collect();
        assert_eq!((parts.as_slice(), id.as_bytes()[14]), (&[8, 4, 4, 4, 12][..], b'4'));
        assert!(b"89ab".contains(&id.as_bytes()[19]) && id != new_request_id());
    }
}
