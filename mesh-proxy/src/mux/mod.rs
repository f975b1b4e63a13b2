//! The mesh's own protocol between nodes (`docs/protocol.md`): many streams on one TLS connection, with a few
//! bytes of header. Chosen by ALPN; other peers get HBONE.
//!
//! Reading order: [`frame`] and [`open`] (bytes, without I/O), `link` (state that the streams of a connection
//! share), `stream` (one of them), `window` (credit of its peer), `price` (limits of frames without data),
//! `driver` (the task that receives and sends for all streams), [`Connection`] and [`Server`] (the two ends).
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

/// Bytes that a client has sent before its stream is opened.
#[derive(Clone, Copy)]
pub enum Early<'a> {
    /// They wait in its socket and stay there: the relay of that socket leaves out those that were sent
    /// along.
    Socket(&'a TcpStream),
    /// They were read already. Writing to the stream starts behind those that were sent along.
    Bytes(&'a [u8]),
    /// None are known of.
    None,
}

/// The protocol's name in ALPN (RFC 7301).
pub const ALPN: &[u8] = b"nodemesh/1";

/// Credit of every stream before it is accepted, bytes (a constant of the protocol).
const EARLY: usize = 16 * 1024;

/// Most bytes that a stream sends in one turn: bounds how long it keeps the others of its worker waiting.
///
/// Encrypted they are two packets as the kernel passes them to a device (64 KiB with all headers, in whole
/// segments of any usual size). A little more would need a third, small packet, which costs as much as a
/// large one.
pub(crate) const TURN: usize = 120 * 1024;

/// Streams that our client puts on one connection.
const MAX_STREAMS: usize = 256;

/// Streams that our server lets a peer open on one connection. More than our client uses, since a stream may
/// be over for the client before it is for the server.
const MAX_PEER_STREAMS: usize = 512;
