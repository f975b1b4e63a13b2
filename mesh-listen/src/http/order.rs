//! The other end: one request to an endpoint of the same host, by its Unix socket.

use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Longer than the endpoint takes itself.
const PATIENCE: Duration = Duration::from_secs(20);

/// What an endpoint said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Said {
    /// HTTP status.
    pub status: u16,
    /// Its text.
    pub text: String,
}

impl Said {
    /// Whether it did what was asked.
    pub fn is_success(&self) -> bool {
        (200..300).contains(&self.status)
    }
}

/// Asks [`serve`](super::serve) at a Unix socket for one thing, and waits for it. Errors: nobody is there, or
/// it speaks something else.
pub fn order(socket: &Path, method: &str, path: &str, body: &str) -> io::Result<Said> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let length = body.len();
    let head = format!("{method} {path} HTTP/1.1\r\nHost: nodemesh\r\nConnection: close\r\n");
    write!(stream, "{head}Content-Length: {length}\r\n\r\n{body}")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    parse(&answer).ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "no answer of HTTP"))
}

/// The answers of [`serve`](super::serve) have their length and come in one piece.
fn parse(answer: &str) -> Option<Said> {
    let (head, text) = answer.split_once("\r\n\r\n")?;
    let status = head.strip_prefix("HTTP/1.1 ")?.get(..3)?.parse().ok()?;
    Some(Said { status, text: text.to_owned() })
}
