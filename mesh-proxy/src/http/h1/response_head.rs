//! The head of a response.

use http::StatusCode;

use super::connection_fields::ConnectionOptions;
use super::framing_fields::{FramingFields, is_framing};
use super::head_end::MAX_FIELDS;
use super::{BodyFraming, Fields, Malformed, Version};

/// The head of a response. Its memory is used again for the next response of the connection.
#[derive(Debug, Default)]
pub struct ResponseHead {
    /// The server's version.
    pub version: Version,
    /// Status.
    pub status: StatusCode,
    /// Reason phrase; may be empty.
    pub reason: String,
    /// The fields but for framing, and those that end here.
    pub fields: Fields,
    /// How the body is framed.
    pub body: BodyFraming,
    /// The length that a response without a body says it would have (HEAD, 304).
    pub announced_length: Option<u64>,
    /// Whether the server takes further requests on the connection.
    pub keeps_alive: bool,
    /// The protocol that the server changes to, with status 101.
    pub upgrade: Option<String>,
    options: ConnectionOptions,
}

impl ResponseHead {
    /// Parses a whole head, as [`find_head_end`](super::find_head_end) delimits it, of a response to a
    /// request with that method. Errors: it is refused.
    pub fn parse(&mut self, head: &[u8], method: &str) -> Result<(), Malformed> {
        self.clear();
        let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut response = httparse::Response::new(&mut headers);
        match response.parse(head)? {
            httparse::Status::Complete(length) if length == head.len() => {}
            _ => return Err(Malformed::Invalid("the head has an empty line in it")),
        }
        self.fields.reserve(head.len(), response.headers.len());
        let (Some(version), Some(code)) = (response.version, response.code) else {
            return Err(Malformed::Invalid("the first line is none of HTTP"));
        };
        self.version = if version == 0 { Version::Http10 } else { Version::Http11 };
        let status = StatusCode::from_u16(code).ok().filter(|status| status.as_u16() < 600);
        self.status = status.ok_or(Malformed::Invalid("the status is none"))?;
        self.reason.push_str(response.reason.unwrap_or_default());
        let mut framing = FramingFields::default();
        for field in response.headers.iter() {
            framing.read(field, self.version)?;
            if field.name.eq_ignore_ascii_case("connection") {
                self.options.read(field.value)?;
            }
        }
        for field in response.headers.iter() {
            if field.name.eq_ignore_ascii_case("upgrade") {
                self.upgrade = std::str::from_utf8(field.value).ok().map(str::to_owned);
            }
            if !is_framing(field.name) && !self.options.ends_here(field.name) {
                self.fields.push(field.name, field.value);
            }
        }
        self.frame_body(framing, method);
        // A server that says that 204 has a body may send one.
        let may_go_on = self.status != StatusCode::NO_CONTENT || framing.declared_framing().is_none();
        self.keeps_alive = self.body != BodyFraming::UntilClose
            && may_go_on
            && !self.options.close
            && (self.version == Version::Http11 || self.options.keep_alive);
        Ok(())
    }

    /// Whether another response follows (RFC 9110, 15.2).
    pub fn is_interim(&self) -> bool {
        self.status.is_informational() && self.status != StatusCode::SWITCHING_PROTOCOLS
    }

    fn clear(&mut self) {
        self.reason.clear();
        self.fields.clear();
        self.announced_length = None;
        self.upgrade = None;
        self.options.clear();
    }

    /// Decides how the body is framed (RFC 9112, 6.3).
    fn frame_body(&mut self, framing: FramingFields, method: &str) {
        let status = self.status;
        let has_none = method == "HEAD"
            || status.is_informational()
            || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED)
            || method == "CONNECT" && status.is_success();
        let framing = framing.declared_framing();
        if has_none {
            self.body = BodyFraming::None;
            let says_length = method == "HEAD" || status == StatusCode::NOT_MODIFIED;
            if let (Some(BodyFraming::Length(length)), true) = (framing, says_length) {
                self.announced_length = Some(length);
            }
        } else {
            self.body = framing.unwrap_or(BodyFraming::UntilClose);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str, method: &str) -> Result<ResponseHead, Malformed> {
        let mut parsed = ResponseHead::default();
        parsed.parse(head.replace('\n', "\r\n").as_bytes(), method).map(|()| parsed)
    }

    #[test]
    fn the_body_is_framed_by_status_and_method_before_fields() {
        let with_length = "HTTP/1.1 STATUS X\nContent-Length: 5\n\n";
        for (status, method, body, announced) in [
            ("200", "GET", BodyFraming::Length(5), None),
            ("200", "HEAD", BodyFraming::None, Some(5)),
            ("304", "GET", BodyFraming::None, Some(5)),
            ("204", "GET", BodyFraming::None, None),
            ("103", "GET", BodyFraming::None, None),
            ("200", "CONNECT", BodyFraming::None, None),
            ("403", "CONNECT", BodyFraming::Length(5), None),
        ] {
            let head = parse(&with_length.replace("STATUS", status), method).unwrap();
            assert_eq!((head.body, head.announced_length), (body, announced), "{status} {method}");
        }
        let until_close = parse("HTTP/1.1 200 OK\n\n", "GET").unwrap();
        assert_eq!((until_close.body, until_close.keeps_alive), (BodyFraming::UntilClose, false));
    }

    #[test]
    fn a_response_that_has_two_meanings_is_refused() {
        for bad in [
            "HTTP/1.1 200 OK\nContent-Length: 5\nContent-Length: 5\n\n",
            "HTTP/1.1 200 OK\nContent-Length: 5\nTransfer-Encoding: chunked\n\n",
            "HTTP/1.1 200 OK\nTransfer-Encoding: gzip, chunked\n\n",
            "HTTP/1.0 200 OK\nTransfer-Encoding: chunked\n\n",
            "HTTP/1.1 600 OK\n\n",
            "HTTP/2.0 200 OK\n\n",
            "HTTP/1.1 200 OK\nA : b\n\n",
            "HTTP/1.1 200 OK\nA: b\n c\n\n",
        ] {
            assert!(parse(bad, "GET").is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_server_says_whether_it_takes_more() {
        for (head, keeps) in [
            ("HTTP/1.1 200 OK\nContent-Length: 0\n\n", true),
            ("HTTP/1.1 200 OK\nContent-Length: 0\nConnection: close\n\n", false),
            ("HTTP/1.0 200 OK\nContent-Length: 0\n\n", false),
            ("HTTP/1.0 200 OK\nContent-Length: 0\nConnection: keep-alive\n\n", true),
        ] {
            assert_eq!(parse(head, "GET").unwrap().keeps_alive, keeps, "{head:?}");
        }
    }
}
