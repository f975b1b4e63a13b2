//! What a frame costs its sender and gives its receiver, as [`mesh_calm::price`] has it for HTTP/2.
//!
//! Data costs nothing. What comes for it (CREDIT) is paid by what was sent, what ends a stream by its having
//! been opened and answered. Time pays for the rest.

use mesh_calm::Patience;

use super::frame::{Frame, Skipped};

/// What a connection begins with and has at most: some hundred streams that are given up before they are
/// answered.
const MOST: u32 = 4000;

/// What each second gives.
const EACH_SECOND: u32 = 2000;

/// The patience that a connection begins with.
pub fn patience() -> Patience {
    Patience::new(MOST, EACH_SECOND)
}

/// What a frame that the peer sent costs of its patience, and of the turn.
pub fn received(frame: &Frame) -> (u32, u32) {
    match frame {
        Frame::Open(..) => (4, 16),
        Frame::Accept(..) | Frame::Refuse(..) => (1, 4),
        Frame::Credit(..) | Frame::End(_) | Frame::Pong(_) => (1, 1),
        Frame::Reset(..) => (8, 4),
        Frame::Ping(_) => (4, 2),
        Frame::GoAway(..) => (64, 8),
    }
}

/// What data that the peer sent gives it.
pub fn of_data(bytes: usize) -> u32 {
    kibibytes(bytes)
}

/// What frames of unknown kinds cost.
pub fn of_skipped(Skipped { frames, bytes }: Skipped) -> u32 {
    u32::try_from(bytes.div_ceil(128).saturating_add(frames)).unwrap_or(u32::MAX)
}

/// What a frame that is sent gives the peer.
pub fn sent(frame: &Frame) -> u32 {
    match frame {
        // To be answered, and then ended or reset.
        Frame::Open(..) => 24,
        Frame::Accept(..) => 16,
        // What it cost: who asks without end for what is refused must not have a flood beside for nothing.
        Frame::Refuse(..) => 4,
        Frame::End(_) | Frame::Ping(_) => 2,
        _ => 0,
    }
}

/// What data that is sent gives the peer: credit comes for it.
pub fn sent_data(bytes: usize) -> u32 {
    2 + kibibytes(bytes)
}

fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
}
