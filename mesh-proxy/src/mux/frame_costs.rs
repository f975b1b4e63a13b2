//! Limits frames without data: what a frame costs its sender, as [`mesh_calm::price`] has it for HTTP/2.
//!
//! Data costs nothing. CREDIT, which data causes, is paid for by the data sent; frames that end a stream are
//! paid for when it is opened and answered. Time pays for the rest.

use mesh_calm::Patience;

use super::frame::{ControlFrame, SkippedFrames};

/// Patience of a new connection, and the most it can have: enough for some hundred streams that are given up
/// before they are answered.
const MOST: u32 = 4000;

/// Patience earned each second.
const EACH_SECOND: u32 = 2000;

/// Returns the patience of a new connection.
pub fn initial_allowance() -> Patience {
    Patience::new(MOST, EACH_SECOND)
}

/// Returns what a frame of the peer costs of its patience, and of the turn.
pub fn frame_cost(frame: &ControlFrame) -> (u32, u32) {
    match frame {
        ControlFrame::Open(..) => (4, 16),
        ControlFrame::Accept(..) | ControlFrame::Refuse(..) => (1, 4),
        ControlFrame::Credit(..) | ControlFrame::End(_) | ControlFrame::Pong(_) => (1, 1),
        ControlFrame::Reset(..) => (8, 4),
        ControlFrame::Ping(_) => (4, 2),
        ControlFrame::GoAway(..) => (64, 8),
    }
}

/// Returns what the peer earns by sending `bytes` of data.
pub fn allowance_for_received_data(bytes: usize) -> u32 {
    kibibytes(bytes)
}

/// Returns what frames of unknown kinds cost.
pub fn skipped_frames_cost(SkippedFrames { frames, bytes }: SkippedFrames) -> u32 {
    u32::try_from(bytes.div_ceil(128).saturating_add(frames)).unwrap_or(u32::MAX)
}

/// Returns what the peer earns when we send a frame: its answers are paid for.
pub fn allowance_earned_by_sent_frame(frame: &ControlFrame) -> u32 {
    match frame {
        // To be answered, and then ended or reset.
        ControlFrame::Open(..) => 24,
        ControlFrame::Accept(..) => 16,
        // As much as the OPEN cost: asking without end for what is refused must not pay for a flood.
        ControlFrame::Refuse(..) => 4,
        ControlFrame::End(_) | ControlFrame::Ping(_) => 2,
        _ => 0,
    }
}

/// Returns what the peer earns when we send `bytes` of data: its CREDIT is paid for.
pub fn allowance_earned_by_sent_data(bytes: usize) -> u32 {
    2 + kibibytes(bytes)
}

fn kibibytes(bytes: usize) -> u32 {
    u32::try_from(bytes / 1024).unwrap_or(u32::MAX)
}
