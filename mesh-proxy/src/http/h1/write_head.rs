//! Writes heads.

use std::io::Write as _;

use bytes::{BufMut, BytesMut};
use http::StatusCode;

use super::{BodyFraming, Fields, RequestHead};

/// Appends a request's head in HTTP/1.1. `target` is the path with its query, or what CONNECT and `OPTIONS *`
/// have instead.
pub fn write_request_head((target, authority): (&str, &str), head: &RequestHead, into: &mut BytesMut) {
    into.extend_from_slice(head.method.as_bytes());
    into.extend_from_slice(b" ");
    into.extend_from_slice(target.as_bytes());
    into.extend_from_slice(b" HTTP/1.1\r\nHost: ");
    into.extend_from_slice(authority.as_bytes());
    into.extend_from_slice(b"\r\n");
    write_fields(&head.fields, into);
    write_framing(head.body, into);
    if head.takes_trailers {
        into.extend_from_slice(b"TE: trailers\r\nConnection: TE\r\n");
    }
    if let Some(protocol) = &head.upgrade {
        write_upgrade(protocol, into);
    }
    into.extend_from_slice(b"\r\n");
}

/// What the head of a response says beside its fields.
#[derive(Clone, Copy, Debug, Default)]
pub struct ResponseLine<'a> {
    /// Status.
    pub status: StatusCode,
    /// Reason phrase; empty: the usual one of the status.
    pub reason: &'a str,
    /// How the body is framed.
    pub body: BodyFraming,
    /// Length that is said although there is no body.
    pub announced_length: Option<u64>,
    /// What is said of the connection.
    pub connection: ConnectionWord<'a>,
}

/// What a response says of its connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ConnectionWord<'a> {
    /// Nothing: what is usual in the version.
    #[default]
    Nothing,
    /// It ends with this response.
    Close,
    /// It stays, which a client of HTTP/1.0 has to be told.
    KeepAlive,
    /// It changes to that protocol.
    Upgrade(&'a str),
}

/// Appends the head of a response in HTTP/1.1.
pub fn write_response_head(line: &ResponseLine<'_>, fields: &Fields, into: &mut BytesMut) {
    let reason =
        if line.reason.is_empty() { line.status.canonical_reason().unwrap_or_default() } else { line.reason };
    // Writing into memory does not fail.
    let _ = write!(into.writer(), "HTTP/1.1 {} {reason}\r\n", line.status.as_u16());
    write_fields(fields, into);
    match line.announced_length {
        Some(length) => write_framing(BodyFraming::Length(length), into),
        None => write_framing(line.body, into),
    }
    match line.connection {
        ConnectionWord::Nothing => {}
        ConnectionWord::Close => into.extend_from_slice(b"Connection: close\r\n"),
        ConnectionWord::KeepAlive => into.extend_from_slice(b"Connection: keep-alive\r\n"),
        ConnectionWord::Upgrade(protocol) => write_upgrade(protocol, into),
    }
    into.extend_from_slice(b"\r\n");
}

fn write_fields(fields: &Fields, into: &mut BytesMut) {
    for (name, value) in fields.iter() {
        into.extend_from_slice(name.as_bytes());
        into.extend_from_slice(b": ");
        into.extend_from_slice(value);
        into.extend_from_slice(b"\r\n");
    }
}

fn write_framing(body: BodyFraming, into: &mut BytesMut) {
    match body {
        BodyFraming::None | BodyFraming::UntilClose => {}
        BodyFraming::Length(length) => {
            let _ = write!(into.writer(), "Content-Length: {length}\r\n");
        }
        BodyFraming::Chunked => into.extend_from_slice(b"Transfer-Encoding: chunked\r\n"),
    }
}

fn write_upgrade(protocol: &str, into: &mut BytesMut) {
    into.extend_from_slice(b"Connection: Upgrade\r\nUpgrade: ");
    into.extend_from_slice(protocol.as_bytes());
    into.extend_from_slice(b"\r\n");
}
