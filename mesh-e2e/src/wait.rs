//! Waiting for what a cluster does in its own time.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

/// How long a change may take to reach every node of a busy machine.
pub const SOON: Duration = Duration::from_mins(1);
const PAUSE: Duration = Duration::from_millis(200);

/// Tries until it succeeds; after `deadline` the error tells what `attempt` said last.
pub fn eventually<T>(what: &str, deadline: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if start.elapsed() > deadline => {
                return Err(error).with_context(|| format!("not within {} s: {what}", deadline.as_secs()));
            }
            Err(_) => thread::sleep(PAUSE),
        }
    }
}

/// Looks for all of `time` that `attempt` goes on to fail.
pub fn never_within<T>(what: &str, time: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < time {
        ensure!(attempt().is_err(), "after {} ms: {what}", start.elapsed().as_millis());
        thread::sleep(PAUSE);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn the_last_state_is_in_the_message() {
        let mut tries = 0;
        let error = eventually::<()>("a miracle", Duration::from_millis(300), || {
            tries += 1;
            bail!("state {tries}")
        });
        let message = format!("{:#}", error.unwrap_err());
        assert_eq!(message, format!("not within 0 s: a miracle: state {tries}"));
    }

    #[test]
    fn what_must_not_happen_is_noticed() {
        let error = never_within("it happened", Duration::from_secs(1), || Ok(()));
        assert!(error.unwrap_err().to_string().ends_with("it happened"));
        never_within::<()>("nothing", Duration::from_millis(1), || bail!("no")).unwrap();
    }
}
