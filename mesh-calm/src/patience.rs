//! How much a peer may ask for that is of no use.

use std::time::{Duration, Instant};

/// Points that a peer's connection has. What it sends without a use costs some, what is of use gives some,
/// and so does time. The clock is looked at only when they have run out.
#[derive(Debug)]
pub struct Patience {
    left: u32,
    most: u32,
    each_second: u32,
    counted_at: Instant,
}

impl Patience {
    /// `most` points, now and at any time, and `each_second` so many more.
    pub fn new(most: u32, each_second: u32) -> Self {
        Self { left: most, most, each_second, counted_at: Instant::now() }
    }

    /// The peer did something of use.
    pub fn earn(&mut self, points: u32) {
        self.left = self.left.saturating_add(points).min(self.most);
    }

    /// The peer asks for something that costs so much. Returns whether there is patience for it.
    #[must_use]
    pub fn spend(&mut self, points: u32) -> bool {
        if self.left < points {
            let now = Instant::now();
            self.earn(self.since(now));
            self.counted_at = now;
        }
        let left = self.left.checked_sub(points);
        self.left = left.unwrap_or(0);
        left.is_some()
    }

    fn since(&self, now: Instant) -> u32 {
        let passed = now.saturating_duration_since(self.counted_at).min(Duration::from_hours(1));
        let points = passed.as_millis() * u128::from(self.each_second) / 1000;
        u32::try_from(points).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_out_and_comes_back_with_time_and_use() {
        let mut patience = Patience::new(10, 100);
        assert!(patience.spend(10));
        patience.counted_at = Instant::now() + Duration::from_mins(1);
        assert!(!patience.spend(1), "none left, and no time has passed");
        patience.earn(3);
        assert!(patience.spend(3));
        patience.counted_at = Instant::now().checked_sub(Duration::from_millis(51)).unwrap();
        assert!(patience.spend(5), "a twentieth of a second");
        patience.counted_at = Instant::now().checked_sub(Duration::from_hours(2)).unwrap();
        assert!(!patience.spend(11), "never more than the most");
    }

    #[test]
    fn many_small_amounts_of_time_add_up_to_no_more_than_the_whole() {
        let mut patience = Patience::new(5, 1000);
        let begun = Instant::now();
        let mut spent = 0_u32;
        while begun.elapsed() < Duration::from_millis(50) {
            spent += u32::from(patience.spend(1));
        }
        assert!(spent <= 5 + 60, "{spent}");
    }
}
