//! Pauses between tries, after something has run out that the whole process shares: descriptors, memory.

use std::time::Duration;

/// The first, and the longest.
pub const FIRST: Duration = Duration::from_millis(5);
const LONGEST: Duration = Duration::from_secs(1);

/// The next pause: twice the one before. A new one begins with the shortest.
pub struct Pause(Duration);

impl Default for Pause {
    fn default() -> Self {
        Self(FIRST)
    }
}

impl Pause {
    /// Lets it pass.
    pub async fn pass(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(LONGEST);
    }
}
