//! The mesh's own protocol between nodes (`docs/protocol.md`): many streams on one TLS connection, with a few
//! bytes of header. Chosen by ALPN; other peers get HBONE.
//!
//! Reading order: [`frame`] and [`open`] (bytes, without I/O), `link` (what the streams of a connection
//! share), `stream` (one of them), `window` (how much its peer may send), `price` (and how much beside data),
//! `driver` (the task that receives and sends for all of them), [`Connection`] and [`Server`] (the two ends).
//! `relay::mesh` joins a stream with an application's socket.

mod client;
mod driver;
pub mod frame;
mod link;
pub mod open;
mod price;
mod server;
mod stream;
mod window;

#[cfg(test)]
mod tests;

use tokio::net::TcpStream;

pub use client::{Connection, OpenError, open_frame};
pub use server::{IncomingStream, Server};
pub use stream::{Broken, Revoker, Stream};
pub use window::Budget;

/// What a client has sent before its stream is opened.
#[derive(Clone, Copy)]
pub enum Early<'a> {
    /// What waits in its socket. It stays there: the relay of that socket leaves out what went along.
    Socket(&'a TcpStream),
    /// Bytes that were read from it. Whoever writes to the stream begins behind those that went along.
    Bytes(&'a [u8]),
    /// Nothing that is known of.
    None,
}

/// The protocol's name in ALPN.
pub const ALPN: &[u8] = b"nodemesh/1";

/// Credit that every stream has before it is accepted (a constant of the protocol).
const EARLY: usize = 16 * 1024;

/// Most bytes that a stream sends in one turn: bounds how long it keeps the others of its worker waiting.
///
/// Encrypted they are two packets as the kernel hands them to a device (64 KiB with all headers, in whole
/// segments, whatever usual size those have). A little more would be a third, small one, and that costs what
/// a large one does.
pub(crate) const TURN: usize = 120 * 1024;

/// Streams that a client of ours puts on one connection.
const MAX_STREAMS: usize = 256;

/// Streams that a server of ours lets a peer have on one connection. More than our clients use, since a
/// stream may be over for the client before it is for the server.
const MAX_PEER_STREAMS: usize = 512;
