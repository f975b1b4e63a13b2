//! Pauses between tries while something is used up that the whole process shares: descriptors, memory. They
//! have no jitter, and so are not for what many ask of one server.

use std::time::Duration;

/// The first pause, and the longest.
pub const FIRST_DELAY: Duration = Duration::from_millis(5);
const LONGEST_DELAY: Duration = Duration::from_secs(1);

/// Pauses that double, from [`FIRST_DELAY`] up to one second.
pub struct Backoff(Duration);

impl Default for Backoff {
    fn default() -> Self {
        Self(FIRST_DELAY)
    }
}

impl Backoff {
    /// Sleeps for the pause, and doubles the next one.
    pub async fn sleep_and_double(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST_DELAY);
    }
}
