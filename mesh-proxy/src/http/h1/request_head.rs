//! The head of a request.

use std::borrow::Cow;

use httparse::Header;
use mesh_api::plan::http_routes::RequestView;

use super::connection_fields::ConnectionOptions;
use super::framing_fields::{FramingFields, is_framing};
use super::head_end::MAX_FIELDS;
use super::path::normalize_path;
use super::{BodyFraming, Fields, Malformed, Version};

/// Most bytes of a target, as in nginx. Routes compare it with whatever they are written with.
const MAX_TARGET: usize = 8 * 1024;

/// Most bytes that an idle connection keeps memory for.
const KEPT_CAPACITY: usize = 2048;

/// The head of a request. Its memory is used again for the next request of the connection.
#[derive(Clone, Debug, Default)]
pub struct RequestHead {
    /// Method: a token, in the case in which it came.
    pub method: String,
    /// The client's version.
    pub version: Version,
    /// The host, with its port if it has one; empty if the request names none.
    pub authority: String,
    /// The path in its normal form; `*` for `OPTIONS *`, empty for CONNECT.
    pub path: String,
    /// The query, without its `?`.
    pub query: Option<String>,
    /// The fields but for `Host`, framing, and those that end here.
    pub fields: Fields,
    /// How the body is framed.
    pub body: BodyFraming,
    /// Whether the client wants to send further requests on the connection.
    pub keeps_alive: bool,
    /// The protocol that the client wants to change to (RFC 9110, 7.8); none: it does not.
    pub upgrade: Option<String>,
    /// Whether the client takes trailers (`TE: trailers`).
    pub takes_trailers: bool,
    options: ConnectionOptions,
}

impl RequestHead {
    /// Parses a whole head, as [`find_head_end`](super::find_head_end) delimits it, in the place of what was
    /// here before. Errors: it is refused.
    pub fn parse(&mut self, head: &[u8]) -> Result<(), Malformed> {
        self.clear();
        let mut headers = [httparse::EMPTY_HEADER; MAX_FIELDS];
        let mut request = httparse::Request::new(&mut headers);
        match request.parse(head)? {
            httparse::Status::Complete(length) if length == head.len() => {}
            _ => return Err(Malformed::Invalid("the head has an empty line in it")),
        }
        self.fields.reserve(head.len(), request.headers.len());
        let (Some(method), Some(target), Some(version)) = (request.method, request.path, request.version)
        else {
            return Err(Malformed::Invalid("the first line is none of HTTP"));
        };
        self.version = if version == 0 { Version::Http10 } else { Version::Http11 };
        self.method.push_str(method);
        let host = self.read_fields(request.headers)?;
        self.read_target(target, host)?;
        self.keeps_alive = match self.version {
            Version::Http10 => self.options.keep_alive && !self.options.close,
            Version::Http11 | Version::Http2 => !self.options.close,
        };
        if self.body != BodyFraming::None && self.is_connect() {
            return Err(Malformed::Invalid("CONNECT has no body"));
        }
        if self.has_body() {
            // What follows the body would be of the new protocol, and what comes before it of this one.
            self.upgrade = None;
        }
        Ok(())
    }

    /// Whether the client asks for a tunnel (RFC 9110, 9.3.6).
    pub fn is_connect(&self) -> bool {
        self.method == "CONNECT"
    }

    /// Whether a body follows.
    pub fn has_body(&self) -> bool {
        !matches!(self.body, BodyFraming::None | BodyFraming::Length(0))
    }

    /// Whether it is of gRPC, so that a failure is told in its words (gRPC over HTTP/2, Requests).
    pub fn is_grpc(&self) -> bool {
        let is = |value: &[u8]| {
            value.strip_prefix(b"application/grpc").is_some_and(|rest| matches!(rest, [] | [b'+' | b';', ..]))
        };
        self.version == Version::Http2 && self.fields.values("content-type").next().is_some_and(is)
    }

    /// Whether the method is one that may be repeated with the same effect (RFC 9110, 9.2.2).
    pub fn is_idempotent(&self) -> bool {
        matches!(self.method.as_str(), "GET" | "HEAD" | "OPTIONS" | "TRACE" | "PUT" | "DELETE")
    }

    /// Gives memory back that a large head took: the connection may be idle from now on.
    pub fn release_memory(&mut self) {
        let query = self.query.as_ref().map_or(0, String::capacity);
        let texts = self.method.capacity() + self.authority.capacity() + self.path.capacity() + query;
        if texts + self.fields.capacity() + self.options.capacity() > KEPT_CAPACITY {
            *self = Self::default();
        }
    }

    fn clear(&mut self) {
        self.method.clear();
        self.authority.clear();
        self.path.clear();
        self.query = None;
        self.fields.clear();
        self.body = BodyFraming::None;
        self.upgrade = None;
        self.takes_trailers = false;
        self.options.clear();
    }

    /// Takes the fields over. Returns the host.
    fn read_fields<'a>(&mut self, fields: &[Header<'a>]) -> Result<Option<&'a str>, Malformed> {
        let (mut framing, mut host) = (FramingFields::default(), None);
        for field in fields {
            framing.read(field, self.version)?;
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            if is("connection") {
                self.options.read(field.value)?;
            } else if is("host") {
                let value = std::str::from_utf8(field.value).unwrap_or("\n");
                if host.replace(value).is_some() {
                    return Err(Malformed::Invalid("Host is there twice"));
                }
            } else if is("expect") && !field.value.eq_ignore_ascii_case(b"100-continue") {
                return Err(Malformed::Expectation);
            } else if is("te") {
                let has = |value: &[u8]| value.eq_ignore_ascii_case(b"trailers");
                self.takes_trailers |= field.value.split(|byte| *byte == b',').any(|it| has(it.trim_ascii()));
            }
        }
        self.body = framing.declared_framing().unwrap_or_default();
        if self.options.upgrade && self.version == Version::Http11 {
            self.upgrade = only_upgrade(fields);
        }
        for field in fields {
            let name = field.name;
            let is_written_anew = is_framing(name) || name.eq_ignore_ascii_case("host");
            if !is_written_anew && !self.options.ends_here(name) {
                self.fields.push(name, field.value);
            }
        }
        Ok(host)
    }

    /// Takes the target over, in each of its forms (RFC 9112, 3.2).
    fn read_target(&mut self, target: &str, host: Option<&str>) -> Result<(), Malformed> {
        check_target(target)?;
        if host.is_none() && self.version == Version::Http11 {
            return Err(Malformed::Invalid("Host is missing"));
        }
        if host.is_some_and(|host| !is_authority(host)) {
            return Err(Malformed::Invalid("Host is no host"));
        }
        let authority = if self.is_connect() {
            if !is_authority(target) || target.is_empty() {
                return Err(Malformed::Invalid("the target of CONNECT is no host"));
            }
            Some(target)
        } else if target == "*" || target.starts_with('/') {
            self.read_origin_form(target)?;
            None
        } else {
            let (authority, path) = split_absolute(target)?;
            self.read_path(path)?;
            Some(authority)
        };
        if let (Some(one), Some(other)) = (authority, host)
            && !one.eq_ignore_ascii_case(other)
        {
            return Err(Malformed::Invalid("target and Host disagree"));
        }
        self.authority.push_str(authority.or(host).unwrap_or_default());
        Ok(())
    }

    /// Takes a target over that names no authority: a path with its query, or `*`. Errors: it is none.
    pub fn set_target(&mut self, target: &str) -> Result<(), Malformed> {
        check_target(target)?;
        if !target.starts_with('/') && target != "*" {
            return Err(Malformed::Invalid("the target is in no known form"));
        }
        self.read_origin_form(target)
    }

    fn read_origin_form(&mut self, target: &str) -> Result<(), Malformed> {
        if target != "*" {
            return self.read_path(target);
        }
        if self.method != "OPTIONS" {
            return Err(Malformed::Invalid("only OPTIONS has the target `*`"));
        }
        self.path.push('*');
        Ok(())
    }

    fn read_path(&mut self, target: &str) -> Result<(), Malformed> {
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query)),
            None => (target, None),
        };
        normalize_path(if path.is_empty() { "/" } else { path }, &mut self.path)?;
        self.query = query.map(str::to_owned);
        Ok(())
    }
}

impl RequestView for RequestHead {
    fn method(&self) -> &str {
        &self.method
    }

    fn scheme(&self) -> &'static str {
        "http"
    }

    fn authority(&self) -> &str {
        &self.authority
    }

    fn path(&self) -> &str {
        &self.path
    }

    fn query(&self) -> Option<&str> {
        self.query.as_deref()
    }

    fn header(&self, name: &str) -> Option<Cow<'_, str>> {
        if name == "host" {
            return Some(Cow::Borrowed(&self.authority));
        }
        self.fields.joined_value(name)
    }
}

/// Returns the protocol to change to, if it is one alone; not HTTP/2, which routes could not see through.
fn only_upgrade(fields: &[Header<'_>]) -> Option<String> {
    let mut all = fields.iter().filter(|field| field.name.eq_ignore_ascii_case("upgrade"));
    let (only, None) = (all.next()?, all.next()) else { return None };
    let protocol = std::str::from_utf8(only.value).ok()?;
    let is_http2 = protocol.get(..3).is_some_and(|start| start.eq_ignore_ascii_case("h2c"));
    (!is_http2 && !protocol.contains(',')).then(|| protocol.to_owned())
}

/// Errors: a target is too long, or has a character that no URI has.
fn check_target(target: &str) -> Result<(), Malformed> {
    if target.len() > MAX_TARGET {
        return Err(Malformed::TargetTooLong);
    }
    if !target.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'#') {
        return Err(Malformed::Invalid("the target has a character that no URI has"));
    }
    Ok(())
}

/// Splits `http://AUTHORITY/PATH?QUERY` (RFC 9112, 3.2.2) into its authority and the rest.
fn split_absolute(target: &str) -> Result<(&str, &str), Malformed> {
    let (scheme, rest) =
        target.split_once("://").ok_or(Malformed::Invalid("the target is in no known form"))?;
    if !scheme.eq_ignore_ascii_case("http") && !scheme.eq_ignore_ascii_case("https") {
        return Err(Malformed::Invalid("the target's scheme is not http"));
    }
    let end = rest.find(['/', '?', '\\']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(end);
    if authority.is_empty() || !is_authority(authority) {
        return Err(Malformed::Invalid("the target's authority is no host"));
    }
    if path.starts_with(['?', '\\']) {
        return Err(Malformed::Invalid("the target has no path"));
    }
    Ok((authority, path))
}

/// Whether a text is a host with or without a port, or empty; without user information, as RFC 9110, 4.2.4
/// wants it.
pub fn is_authority(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, rest)) => {
                if address.parse::<std::net::Ipv6Addr>().is_err() {
                    return false;
                }
                ("", rest.strip_prefix(':').or(if rest.is_empty() { Some("0") } else { None }))
            }
            None => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, Some("0")),
        },
    };
    let is_host_byte = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~%!$&'()*+,;=".contains(&byte);
    let is_port = |port: &str| {
        port.len() <= 5 && port.bytes().all(|digit| digit.is_ascii_digit()) && {
            port.is_empty() || port.parse::<u16>().is_ok()
        }
    };
    host.bytes().all(is_host_byte) && port.is_some_and(is_port)
}

#[cfg(test)]
mod tests;
