//! Waiting for something, but not for ever.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};

const PAUSE: Duration = Duration::from_millis(100);

/// Asks `attempt` again and again until it has a value. An error of it counts as "not yet" and is told at the
/// deadline.
pub fn until<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let start = Instant::now();
    loop {
        let outcome = attempt();
        if let Ok(Some(value)) = outcome {
            return Ok(value);
        }
        if start.elapsed() >= deadline {
            let late = format!("waited {} s for {what}", deadline.as_secs());
            return Err(match outcome {
                Err(error) => error.context(late),
                Ok(_) => anyhow!(late),
            });
        }
        sleep(PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gives_the_value_or_tells_the_last_error() {
        let mut left = 2;
        let value = until("a countdown", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some("done"))
        });
        assert_eq!(value.unwrap(), "done");
        let late = until::<()>("luck", Duration::ZERO, || Err(anyhow!("no luck"))).unwrap_err();
        assert_eq!(format!("{late:#}"), "waited 0 s for luck: no luck");
    }
}
