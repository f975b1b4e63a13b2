//! HBONE: TCP streams as HTTP/2 `CONNECT` requests (RFC 9113, section 8.5) inside mutual TLS, on port 15008.

mod client;
pub mod headers;
mod server;
mod session;
mod stream;

#[cfg(test)]
mod tests;

pub use client::{Connection, OpenError};
pub use server::{IncomingStream, Server};
pub use stream::{Stream, stream_error};

/// Flow-control credit of a stream, bytes: what a stopped reader can make its node hold.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Streams that we open on one connection before we take another.
const OWN_STREAMS: u32 = 64;

/// Streams that a peer may have open on one connection: what Istio announces. Peers open up to a hundred
/// before they know how many they may (ztunnel takes that for granted), and what one has asked for beyond a
/// smaller number waits in it for good. So many cost no more memory than as many on further connections: each
/// stream takes one of its pod's connection slots, or is refused.
const PEER_STREAMS: u32 = 200;

/// Credit of a connection with so many streams: all of theirs together, so that stopped readers never hold up
/// the others. Nothing is held for it until a peer uses it: 200 MiB at most on a connection that a peer
/// opened, 64 MiB on ours.
const fn connection_window(streams: u32) -> u32 {
    STREAM_WINDOW * streams
}

/// Largest frame that we take. Ours are smaller; ztunnel sends up to 1 MiB where it may.
const MAX_FRAME: u32 = 1024 * 1024;

/// What frames of little data may hold beside it while nobody takes them: 256 bytes each, so some 16,000 of
/// them.
const DATA_OVERHEAD: usize = 4 * 1024 * 1024;

/// Bytes of one stream that wait to be sent.
const SEND_BUFFER: usize = 256 * 1024;

/// Most bytes of headers that a server of ours takes.
const SERVER_HEADERS: u32 = 64 * 1024;

/// Most bytes of headers that a client of ours takes.
const CLIENT_HEADERS: u32 = 16 * 1024;
