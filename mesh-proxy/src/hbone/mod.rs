//! HBONE: TCP streams as HTTP/2 `CONNECT` requests (RFC 9113, section 8.5) inside mutual TLS, on port 15008.
//! Peers that do not speak [`crate::mux`] get it: Istio's ztunnel, waypoints and gateways.

mod batched_tls;
mod client;
pub mod headers;
mod incoming_streams;
mod stream;

#[cfg(test)]
mod tests;

pub use client::{Connection, OpenError};
pub use incoming_streams::{IncomingStream, ServerConnection};
pub use stream::{Stream, h2_to_io_error};

/// Flow-control window of a stream, bytes: what a stopped reader can make its node hold.
const STREAM_WINDOW: u32 = 1024 * 1024;

/// Streams that we open on one connection before we open another connection.
const OWN_STREAMS: u32 = 64;

/// Streams that a peer may have open on one connection; Istio announces the same. Peers open up to a hundred
/// before they have read our limit (ztunnel relies on that), and requests beyond a smaller limit would wait
/// in the peer for good. 200 streams cost no more memory on one connection than on several: each takes one of
/// its pod's connection slots, or is refused.
const PEER_STREAMS: u32 = 200;

/// Returns the flow-control window, bytes, of a connection with that many streams: the sum of theirs, so that
/// stopped readers never hold up the others. Memory is held only as a peer uses it: at most 200 MiB on a
/// connection that a peer opened, 64 MiB on ours.
const fn connection_window(streams: u32) -> u32 {
    STREAM_WINDOW * streams
}

/// Largest frame that we take, bytes. Ours are smaller; ztunnel sends up to 1 MiB if allowed.
const MAX_FRAME: u32 = 1024 * 1024;

/// Bytes of overhead that queued frames with little data may hold: 256 bytes each, so some 16,000 of them.
const DATA_OVERHEAD: usize = 4 * 1024 * 1024;

/// Most bytes of one stream that wait to be sent.
const SEND_BUFFER: usize = 256 * 1024;

/// Largest header list that our server takes, bytes.
const SERVER_HEADERS: u32 = 64 * 1024;

/// Largest header list that our client takes, bytes.
const CLIENT_HEADERS: u32 = 16 * 1024;
