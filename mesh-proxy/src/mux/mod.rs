//! The mesh's own protocol between nodes (`docs/protocol.md`): many streams on one TLS connection, with a few
//! bytes of header. Chosen by ALPN; other peers get HBONE.
//!
//! Reading order: [`frame`] and [`open_frame`] (bytes, without I/O), `connection_state` (state that the
//! streams of a connection share), `stream` (one of them), `autotuned_receive_window` (credit of its peer),
//! `pod_receive_budget` (bytes that a pod's windows share), `flood_limit` (limits of frames without data),
//! `driver` (the task that receives and sends for all streams), [`Connection`] and [`ServerConnection`] (the
//! two ends). `relay::relay_mux` joins a stream with an application's socket.

mod autotuned_receive_window;
mod client;
mod connection_state;
mod driver;
pub mod frame;
mod frame_costs;
mod incoming_streams;
pub mod open_frame;
mod pod_receive_budget;
mod stream;

#[cfg(test)]
mod tests;

use tokio::net::TcpStream;

pub use client::{Connection, OpenError, traced_open_frame};
pub use incoming_streams::{IncomingStream, ServerConnection};
pub use pod_receive_budget::PodReceiveBudget;
pub use stream::{ResetReasonSetter, Stream, StreamError};

/// Bytes that a client has sent before its stream is opened.
#[derive(Clone, Copy)]
pub enum EarlyData<'a> {
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
const EARLY_CREDIT: usize = 16 * 1024;

/// Most bytes that a stream sends in one turn: bounds how long it keeps the others of its worker waiting.
///
/// Encrypted they are two packets as the kernel passes them to a device (64 KiB with all headers, in whole
/// segments of any usual size). A little more would need a third, small packet, which costs as much as a
/// large one.
pub(crate) const MAX_BYTES_PER_TURN: usize = 120 * 1024;

/// Streams that our client puts on one connection.
const MAX_STREAMS: usize = 256;

/// Streams that our server lets a peer open on one connection. More than our client uses, since a stream may
/// be over for the client before it is for the server.
const MAX_PEER_STREAMS: usize = 512;
