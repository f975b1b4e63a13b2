//! HTTP/2 (RFC 9113), as a proxy reads and writes it: heads in the form in which routes see those of HTTP/1,
//! and connections at both ends. The frames are the `h2` crate's.

mod client_stream;
mod head;
mod serve;
mod upstream;
mod window_shares;

pub(super) use self::client_stream::ClientStream;
pub(super) use self::head::{fields_of, header_map_of, http2_request, http2_response};
pub use self::serve::serve_http2;
pub(super) use self::upstream::{CountedStream, Http2Connection, ResponseEvent, UpstreamStream, was_refused};

/// Window of a stream: what may come before it is passed on.
const STREAM_WINDOW: u32 = 64 * 1024;
/// Most streams of a connection that are open at a time.
const MAX_STREAMS: u32 = 100;
/// Most bytes of a frame.
const MAX_FRAME: u32 = 16 * 1024;
/// Most bytes of a head, counted as RFC 9113, 6.5.2 does; as of HTTP/1.
const MAX_HEADER_LIST: u32 = 60 * 1024;
/// Bytes that a stream holds at most for a peer that does not read.
const SEND_BUFFER: usize = 16 * 1024;
/// Patience of a connection with frames of little data, in bytes (see `h2`'s `data_frame_budget`).
const DATA_OVERHEAD: usize = 1024 * 1024;
