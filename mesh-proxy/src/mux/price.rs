//! Limits frames without data: what a frame costs its sender, as [`mesh_calm::price`] has it for HTTP/2.
//!
//! Data costs nothing. CREDIT, which data causes, is paid for by the data sent; frames that end a stream are
//! paid for when it is opened and answered. Time pays for the rest.

use mesh_calm::Patience;

use super::frame::{Frame, Skipped};

/// Patience of a new connection, and the most it can have: enough for some hundred streams that are given up
/// before they are answered.
const MOST: u32 = 4000;

/// Patience earned each second.
const EACH_SECOND: u32 = 2000;

/// Returns the patience of a new connection.
pub fn patience() -> Patience {
    Patience::new(MOST, EACH_SECOND)
}

/// Returns what a frame of the peer costs of its patience, and of the turn.
pub fn cost(frame: &Frame) -> (u32, u32) {
    match frame {
        Frame::Open(..) => (4, 16),
        Frame::Accept(..) | Frame::Refuse(..) => (1, 4),
        Frame::Credit(..) | Frame::End(_) | Frame::Pong(_) => (1, 1),
        Frame::Reset(..) => (8, 4),
        Frame::Ping(_) => (4, 2),
        Frame::GoAway(..) => (64, 8),
    }
}

/// Returns what the peer earns by sending `bytes` of data.
pub fn earned_by_data(bytes: usize) -> u32 {
    kibibytes(bytes)
}

/// Returns what frames of unknown kinds cost.
pub fn cost_of_skipped(Skipped { frames, bytes }: Skipped) -> u32 {
    u32::try_from(bytes.div_ceil(128).saturating_add(frames)).unwrap_or(u32::MAX)
}

/// Returns what the peer earns when we send a frame: its answers are paid for.
pub fn earned_by_sending(frame: &Frame) -> u32 {
    match frame {
        // To be answered, and then ended or reset.
        Frame::Open(..) => 24,
        Frame::Accept(..) => 16,
        // As much as the OPEN cost: asking without end for what is refused must not pay for a flood.
        Frame::Refuse(..) => 4,
        Frame::End(_) | Frame::Ping(_) => 2,
        _ => 0,
    }
}

/// Returns what the peer earns when we send `bytes` of data: its CREDIT is paid for.
pub fn earned_by_sending_data(bytes: usize) -> u32 {
    2 + kibibytes(bytes)
}

fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
}
