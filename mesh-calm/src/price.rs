//! What a frame costs and gives: the one table of how much a peer may ask for.
//!
//! *Work* counts for the turn: about a microsecond a point. *Cost* counts for the peer's patience. Honest
//! peers are far from the bounds: data costs nothing; each frame of data that we send pays for the
//! `WINDOW_UPDATE`s and the PINGs that come for it (two of the first, of a peer that measures the bandwidth
//! one of the second each round trip), each answer for its request and for the `RST_STREAM` with which a
//! client ends it, an answer that refuses (it has `END_STREAM`) for no more than these. Time pays for the
//! rest.

use crate::head::{ACK, END_STREAM, Head, PADDED, kind};
use crate::patience::Patience;

/// What a connection begins with and has at most: a client may open a hundred streams before it has seen our
/// SETTINGS, and give up as many when an application hangs.
const MOST: u32 = 4000;

/// What each second gives: some hundred streams that are given up, or thousands of frames that mean nothing.
const EACH_SECOND: u32 = 2000;

/// Which end we are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The peer opened the connection.
    Server,
    /// We did.
    Client,
}

/// What a frame that is received comes to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Price {
    /// Of the peer's patience.
    pub cost: u32,
    /// Given to it.
    pub earned: u32,
    /// Of the turn.
    pub work: u32,
}

/// The patience that a connection begins with.
pub fn patience() -> Patience {
    Patience::new(MOST, EACH_SECOND)
}

/// Of a frame that the peer sent.
pub fn received(head: Head) -> Price {
    let acknowledges = head.flags & ACK != 0;
    let padded = head.flags & PADDED != 0;
    let (cost, work) = match head.kind {
        // Padding is of no use, and how much of a frame is padding the header does not say.
        kind::DATA if padded => (1 + head.length / 1024, 1),
        kind::DATA if head.length == 0 => (1, 1),
        kind::DATA => return Price { cost: 0, earned: head.length / 1024, work: 1 },
        kind::HEADERS => (4 + of_bytes(head), 8 + of_bytes(head)),
        kind::RST_STREAM => (8, 4),
        // Changes the windows of all streams, and has to be answered.
        kind::SETTINGS if !acknowledges => (16 + of_bytes(head), 8 + of_bytes(head)),
        kind::PING if !acknowledges => (2, 2),
        kind::SETTINGS | kind::PING | kind::WINDOW_UPDATE | kind::PRIORITY => (1, 1),
        kind::CONTINUATION => (4 + of_bytes(head), 4 + of_bytes(head)),
        kind::PUSH_PROMISE | kind::GOAWAY => (16 + of_bytes(head), 8 + of_bytes(head)),
        // To be ignored, whatever it is (RFC 9113, section 4.1).
        _ => (2 + of_bytes(head), 1),
    };
    Price { cost, earned: 0, work }
}

/// What a frame that we send gives the peer.
pub fn sent(head: Head) -> u32 {
    match head.kind {
        kind::DATA => 2 + head.length / 1024,
        // A refusal, or trailers: what a peer asks for without end must not pay for a flood beside.
        kind::HEADERS if head.flags & END_STREAM != 0 => 12,
        // A request, or its answer.
        kind::HEADERS => 24,
        // To be acknowledged; what acknowledges is none of its merits.
        kind::SETTINGS | kind::PING if head.flags & ACK == 0 => 2,
        _ => 0,
    }
}

/// Bytes that are not data cost as well.
fn of_bytes(head: Head) -> u32 {
    head.length / 256
}
