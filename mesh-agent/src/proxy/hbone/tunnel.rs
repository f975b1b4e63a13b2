//! An open stream: after the 200 its DATA frames are the raw bytes, END_STREAM is FIN, RST_STREAM is RST.

use bytes::Bytes;
use h2::{RecvStream, SendStream};

/// Both directions of a stream.
pub struct Tunnel {
    /// To the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub receive: RecvStream,
}
