//! What to do when `accept` fails: which errors are of one connection, and pauses for the others.

use std::io;
use std::time::Duration;

/// Pauses between tries while something is used up that the whole process shares: descriptors, memory. They
/// double, from [`ExhaustionBackoff::FIRST`] up to one second, and have no jitter: they are not for what many
/// ask of one server.
#[derive(Debug)]
pub struct ExhaustionBackoff(Duration);

impl Default for ExhaustionBackoff {
    fn default() -> Self {
        Self(Self::FIRST)
    }
}

impl ExhaustionBackoff {
    /// The first pause.
    pub const FIRST: Duration = Duration::from_millis(5);

    const LONGEST: Duration = Duration::from_secs(1);

    /// Returns the next pause.
    pub fn pause(&self) -> Duration {
        self.0
    }

    /// Sleeps for the pause, and doubles the next one.
    pub async fn sleep_and_double(&mut self) {
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LONGEST);
    }
}

/// Whether an error of `accept` is that of one connection, which broke in the queue (accept(2)): the next may
/// be accepted at once.
pub fn is_of_one_connection(error: &io::Error) -> bool {
    use io::ErrorKind::{
        ConnectionAborted, ConnectionRefused, ConnectionReset, HostUnreachable, NetworkUnreachable,
        NotConnected, TimedOut,
    };
    matches!(
        error.kind(),
        ConnectionAborted
            | ConnectionRefused
            | ConnectionReset
            | HostUnreachable
            | NetworkUnreachable
            | NotConnected
            | TimedOut
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pauses_double_up_to_a_second() {
        let mut backoff = ExhaustionBackoff::default();
        let begun = std::time::Instant::now();
        for _ in 0..3 {
            backoff.sleep_and_double().await;
        }
        assert!(begun.elapsed() >= ExhaustionBackoff::FIRST * 7);
        assert_eq!(backoff.pause(), ExhaustionBackoff::FIRST * 8);
        let mut longest = ExhaustionBackoff(Duration::from_millis(600));
        longest.sleep_and_double().await;
        assert_eq!(longest.pause(), ExhaustionBackoff::LONGEST);
    }

    #[test]
    fn what_is_used_up_is_no_ones_connection() {
        assert!(is_of_one_connection(&io::ErrorKind::ConnectionAborted.into()));
        // EMFILE of `asm-generic/errno-base.h`.
        assert!(!is_of_one_connection(&io::Error::from_raw_os_error(24)));
    }
}
