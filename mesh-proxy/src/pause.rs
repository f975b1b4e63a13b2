//! Pauses between tries while something is used up that the whole process shares: descriptors, memory.

use std::time::Duration;

/// The first pause, and the longest.
pub const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);

/// Pauses that double, from [`FIRST`] up to one second.
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pause {
    /// Sleeps for the pause, and doubles the next one.
    pub async fn pass(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST);
    }
}
