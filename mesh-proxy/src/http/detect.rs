//! Which version of HTTP a connection speaks, by its first bytes.

use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::{Instant, timeout_at};

/// Time for the first bytes. Who sends nothing waits for the server, so it speaks something else.
const FIRST_BYTES: Duration = Duration::from_millis(200);
/// Time for the first word on a port that is declared to speak HTTP, once its first byte has come.
const DECLARED_HEAD: Duration = Duration::from_mins(1);
/// Pause before bytes that are not enough are looked at again: the socket is readable all the while.
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// Most bytes of a method that are looked at. Those in use have at most 17 (`VERSION-CONTROL` and the like).
const MAX_METHOD: usize = 24;

/// What a connection of HTTP/2 begins with (RFC 9113, 3.4).
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Length of its method.
const PRI: usize = 3;

/// What first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guess {
    Http1,
    Http2,
    Other,
    /// More bytes are needed.
    Unknown,
}

/// What a client speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ClientProtocol {
    /// HTTP/1.0 or HTTP/1.1.
    Http1,
    /// HTTP/2 with prior knowledge (RFC 9113, 3.3).
    Http2,
}

/// Returns which version of HTTP the client speaks; none: something else. Its bytes stay in the socket. Where
/// the port is declared to speak HTTP, they are waited for as long as it takes; else a client that sends
/// nothing for 200 ms speaks something else.
pub async fn detect_http(socket: &TcpStream, is_declared: bool) -> Option<ClientProtocol> {
    if is_declared && socket.readable().await.is_err() {
        return None;
    }
    let deadline = Instant::now() + if is_declared { DECLARED_HEAD } else { FIRST_BYTES };
    let mut bytes = [0; MAX_METHOD + 10];
    let mut pause = LOOK_AGAIN;
    loop {
        let Ok(Ok(length)) = timeout_at(deadline, socket.peek(&mut bytes)).await else { return None };
        match guess(&bytes[..length]) {
            Guess::Http1 => return Some(ClientProtocol::Http1),
            Guess::Http2 => return Some(ClientProtocol::Http2),
            Guess::Other => return None,
            Guess::Unknown if length == 0 || Instant::now() >= deadline => return None,
            Guess::Unknown => tokio::time::sleep(pause).await,
        }
        pause = (pause * 2).min(FIRST_BYTES);
    }
}

fn guess(bytes: &[u8]) -> Guess {
    // Empty lines before a request are ignored (RFC 9112, 2.2).
    let bytes = bytes.strip_prefix(b"\r\n").unwrap_or(bytes);
    let is_token = |byte: &&u8| byte.is_ascii_alphabetic() || **byte == b'-' || **byte == b'_';
    let method = bytes.iter().take_while(is_token).count();
    match &bytes[method..] {
        _ if bytes.starts_with(PREFACE) => Guess::Http2,
        _ if bytes.len() > PRI && PREFACE.starts_with(bytes) => Guess::Unknown,
        _ if bytes.starts_with(&PREFACE[..=PRI]) => Guess::Other,
        [] if method <= MAX_METHOD => Guess::Unknown,
        [b' ', target @ ..] if method > 0 => guess_by_target(target, bytes.starts_with(b"CONNECT ")),
        _ => Guess::Other,
    }
}

/// A path, `*`, a URL, or of CONNECT a host. Other protocols have words there.
fn guess_by_target(target: &[u8], is_connect: bool) -> Guess {
    const URL: &[u8] = b"http://";
    match target.first() {
        None => Guess::Unknown,
        Some(b'/' | b'*') => Guess::Http1,
        Some(first) if is_connect && (first.is_ascii_alphanumeric() || *first == b'[') => Guess::Http1,
        Some(_) if target.len() >= URL.len() && target[..URL.len()].eq_ignore_ascii_case(URL) => Guess::Http1,
        Some(_) if target.len() < URL.len() && target.eq_ignore_ascii_case(&URL[..target.len()]) => {
            Guess::Unknown
        }
        Some(_) => Guess::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_bytes_tell() {
        for (bytes, expected) in [
            ("GET / HTTP/1.1\r\n", Guess::Http1),
            ("\r\nGET / HTTP/1.1\r\n", Guess::Http1),
            ("OPTIONS * HTTP/1.1", Guess::Http1),
            ("CONNECT web:80 HTTP/1.1", Guess::Http1),
            ("M-SEARCH /", Guess::Http1),
            ("GET http://web/", Guess::Http1),
            ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Guess::Http2),
            ("PRI * HTTP/2.0\r\n", Guess::Unknown),
            ("PRI * HTTP/1.1\r\n", Guess::Other),
            ("PR", Guess::Unknown),
            ("", Guess::Unknown),
            ("GET", Guess::Unknown),
            ("GET ", Guess::Unknown),
            ("GET http:/", Guess::Unknown),
            ("get foo\r\n", Guess::Other),
            ("HELO web", Guess::Other),
            ("\u{16}\u{3}\u{1}", Guess::Other),
            ("*1\r\n$4\r\nPING\r\n", Guess::Other),
            ("SSH-2.0-x\r\n", Guess::Other),
            ("ABCDEFGHIJKLMNOPQRSTUVWXYZ", Guess::Other),
        ] {
            assert_eq!(guess(bytes.as_bytes()), expected, "{bytes:?}");
        }
    }
}
