//! Fields behind a body (RFC 9112, 7.1.2).

use super::head_end::MAX_FIELDS;
use super::{Fields, Malformed};

/// Whether a field means nothing behind the body, since it frames, routes or proves something (RFC 9110,
/// 6.5.1).
pub fn is_no_trailer(name: &str) -> bool {
    const DROPPED: [&str; 12] = [
        "authorization",
        "connection",
        "content-encoding",
        "content-length",
        "content-range",
        "content-type",
        "cookie",
        "host",
        "set-cookie",
        "te",
        "trailer",
        "transfer-encoding",
    ];
    DROPPED.iter().any(|it| name.eq_ignore_ascii_case(it))
}

/// Parses the fields of trailers. Errors: they break the grammar.
pub(super) fn parse_trailers(bytes: &[u8], into: &mut Fields) -> Result<(), Malformed> {
    let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
    match httparse::parse_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete((_, fields))) => {
            for field in fields.iter().filter(|field| !is_no_trailer(field.name)) {
                into.push(field.name, field.value);
            }
            Ok(())
        }
        Ok(httparse::Status::Partial) => Err(Malformed::Invalid("the trailers are cut off")),
        Err(error) => Err(error.into()),
    }
}
