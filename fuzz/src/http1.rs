//! Heads and bodies of HTTP/1, as clients and servers send them: `mesh-proxy/src/http/h1`.

use bytes::BytesMut;

#[path = "../../mesh-proxy/src/http/h1/mod.rs"]
#[expect(dead_code, unused_imports, reason = "what the proxy alone asks of a message")]
mod h1;

use h1::{BodyDecoder, BodyEncoder, BodyFraming, BodyPiece, Fields, RequestHead, ResponseHead};

/// The first byte says where the rest is split in two, as if it came in two reads.
pub fn check(data: &[u8]) {
    let Some((split, message)) = data.split_first() else { return };
    let split = usize::from(*split).min(message.len());
    let end = h1::find_head_end(message, &mut 0);
    assert_eq!(head_end_in_two(message, split), end, "it matters how the head comes");
    let Ok(Some(end)) = end else { return };
    let (head, rest) = message.split_at(end);
    let mut request = RequestHead::default();
    if request.parse(head).is_ok() {
        check_request(&request);
        check_body(request.body, rest, split);
    }
    let mut response = ResponseHead::default();
    if response.parse(head, "GET").is_ok() {
        check_body(response.body, rest, split);
    }
}

fn head_end_in_two(message: &[u8], split: usize) -> Result<Option<usize>, h1::Malformed> {
    let mut searched = 0;
    match h1::find_head_end(&message[..split], &mut searched)? {
        Some(end) => Ok(Some(end)),
        None => h1::find_head_end(message, &mut searched),
    }
}

/// What is written of a request is read as the same request: the server sees what routes and policies saw.
fn check_request(request: &RequestHead) {
    let target = match (&*request.path, &request.query) {
        _ if request.is_connect() => request.authority.clone(),
        (path, None) => path.to_owned(),
        (path, Some(query)) => format!("{path}?{query}"),
    };
    let mut written = BytesMut::new();
    h1::write_request_head((&target, &request.authority), &request, &mut written);
    let end = h1::find_head_end(&written, &mut 0);
    assert!(end == Ok(Some(written.len())) || end == Err(h1::Malformed::TooLarge), "{written:?}");
    let mut again = RequestHead::default();
    match again.parse(&written) {
        // The lines that are written beside the fields may be one more than there is room for.
        Err(h1::Malformed::TooLarge) => return,
        parsed => parsed.unwrap_or_else(|error| panic!("{error}: {written:?}")),
    }
    let all = |head: &RequestHead| {
        let fields: Vec<_> =
            head.fields.iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
        let of_line = (head.method.clone(), head.authority.clone(), head.path.clone(), head.query.clone());
        (of_line, fields, head.body, head.upgrade.clone())
    };
    assert_eq!(all(&again), all(request), "{written:?}");
}

/// A body means the same however it comes, and after it was framed anew.
fn check_body(framing: BodyFraming, bytes: &[u8], split: usize) {
    let whole = decode(framing, &[bytes]);
    let (first, second) = bytes.split_at(split.min(bytes.len()));
    assert_eq!(decode(framing, &[first, second]), whole, "it matters how the body comes");
    let Some((content, trailers)) = whole else { return };
    let encoder = BodyEncoder::new(BodyFraming::Chunked, true);
    let mut written = BytesMut::new();
    if !content.is_empty() {
        encoder.encode_data(&content, &mut written);
    }
    let mut fields = Fields::default();
    trailers.iter().for_each(|(name, value)| fields.push(name, value));
    encoder.encode_end(&fields, &mut written);
    assert_eq!(decode(BodyFraming::Chunked, &[&written]), Some((content, trailers)), "{written:?}");
}

type Body = (Vec<u8>, Vec<(String, Vec<u8>)>);

/// The content and the trailers; none if it is refused, or has no end.
fn decode(framing: BodyFraming, pieces: &[&[u8]]) -> Option<Body> {
    let (mut decoder, mut input, mut content) = (BodyDecoder::new(framing), BytesMut::new(), Vec::new());
    let mut pieces = pieces.iter();
    loop {
        match decoder.decode(&mut input).ok()? {
            BodyPiece::Data(data) => content.extend_from_slice(&data),
            BodyPiece::End(trailers) => {
                let trailers = trailers.iter().map(|(name, value)| (name.to_owned(), value.to_vec()));
                return Some((content, trailers.collect()));
            }
            BodyPiece::Incomplete => match pieces.next() {
                Some(piece) => input.extend_from_slice(piece),
                None if decoder.end_of_input() => {}
                None => return None,
            },
        }
    }
}
