//! The wall clock, by which certificates begin and end. It may be set, and it goes on while the machine is
//! suspended, when those who wait for a time do not.

use std::time::{Duration, Instant, SystemTime};

/// More than a clock that is only corrected gains or loses between two looks at it.
const SET: Duration = Duration::from_secs(2);

/// The clocks at the last look.
pub(super) struct Clock {
    wall: SystemTime,
    steady: Instant,
}

impl Clock {
    /// As they are now.
    pub fn now() -> Self {
        Self { wall: SystemTime::now(), steady: Instant::now() }
    }

    /// Whether the wall clock was set, or the machine suspended, since the last look.
    pub fn was_set(&mut self) -> bool {
        let before = std::mem::replace(self, Self::now());
        self.jumped_since(&before)
    }

    fn jumped_since(&self, before: &Self) -> bool {
        let passed = self.steady.saturating_duration_since(before.steady);
        let expected = before.wall + passed;
        // The error is how far it is behind.
        let off = self.wall.duration_since(expected).unwrap_or_else(|behind| behind.duration());
        off > SET
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_set_is_told_from_one_that_is_corrected() {
        let before = Clock::now();
        let seconds = Duration::from_secs;
        let later = |wall| Clock { wall, steady: before.steady + seconds(10) };
        let right = before.wall + seconds(10);
        assert!(!later(right).jumped_since(&before));
        assert!(!later(right + seconds(1)).jumped_since(&before), "corrected");
        assert!(!later(right - seconds(1)).jumped_since(&before), "corrected");
        assert!(later(right + seconds(60)).jumped_since(&before), "set, or the machine slept");
        assert!(later(right - seconds(60)).jumped_since(&before), "set back");
    }
}
