//! Detects jumps of the wall clock, by which certificates begin and expire. It may be set, and it goes on
//! while the machine is suspended, when timers stand still.

use std::time::{Duration, Instant, SystemTime};

/// Smallest jump that counts. A clock that is only corrected gains or loses less between two checks.
const SET: Duration = Duration::from_secs(2);

/// The wall clock and a steady one at the last check.
pub(super) struct ClockJumpDetector {
    wall: SystemTime,
    steady: Instant,
}

impl ClockJumpDetector {
    /// Reads both clocks.
    pub fn start() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Whether the wall clock was set, or the machine suspended, since the last check.
    pub fn has_jumped(&mut self) -> bool {
        let before = std::mem::replace(self, Self::start());
        self.jumped_since(&before)
    }

    fn jumped_since(&self, before: &Self) -> bool {
        let passed = self.steady.saturating_duration_since(before.steady);
        let expected = before.wall + passed;
        // An error is by how much it is behind.
        let off = self.wall.duration_since(expected).unwrap_or_else(|behind| behind.duration());
        off > SET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_is_corrected() {
        let before = ClockJumpDetector::start();
        let seconds = Duration::from_secs;
        let later = |wall| ClockJumpDetector { wall, steady: before.steady + seconds(10) };
        let right = before.wall + seconds(10);
        assert!(!later(right).jumped_since(&before));
        assert!(!later(right + seconds(1)).jumped_since(&before), "corrected");
        assert!(!later(right - seconds(1)).jumped_since(&before), "corrected");
        assert!(later(right + seconds(60)).jumped_since(&before), "set, or the machine slept");
        assert!(later(right - seconds(60)).jumped_since(&before), "set back");
    }
}
