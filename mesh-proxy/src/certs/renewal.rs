//! Renews certificates at half of their life, and retries when that fails.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rand::RngExt;
use tokio::time::{Instant, sleep, timeout};

use super::ca_client::{CaError, Subject};
use super::clock_jump::ClockJumpDetector;
use super::store::Shared;

/// First and longest back-off after failures (docs/wire.md, Certificates).
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(150);
/// Longest back-off without a valid certificate: without one a pod is cut off, and an agent without its own
/// hears nothing from the control plane.
const LONGEST_RETRY_WITHOUT: Duration = Duration::from_secs(5);
/// Shortest back-off, however near the end is.
const SHORTEST_RETRY: Duration = Duration::from_millis(200);
/// Shortest life that is reckoned with: certificates that live for seconds (in tests) are renewed no faster.
const SHORTEST_LIFE: Duration = Duration::from_millis(500);

/// How often the clock is checked for jumps while waiting: one that is set twice within a second looks as if
/// it had not been.
const LOOK_AT_CLOCK: Duration = Duration::from_secs(30);

/// Time over which replacements are spread when a root changes, so that not all are requested at once.
const SPREAD: Duration = Duration::from_secs(1);

/// How often the file of roots, which is small, is read, and the clock checked.
const LOOK: Duration = Duration::from_secs(1);
/// How often the authority is asked for its roots where the file does not have them.
const ASK_FOR_ROOTS: Duration = Duration::from_secs(15);

/// Keeps one certificate fresh until the task is aborted.
pub(super) async fn keep_renewed(shared: Arc<Shared>, subject: Subject) {
    let mut expires = shared.current_expiry(&subject);
    let mut failures = Failures::default();
    loop {
        let now = SystemTime::now();
        let result = shared.renew(&subject).await;
        shared.note_renewal_result(&subject, result.as_ref().err().map(ToString::to_string));
        match result {
            Ok(not_after) => {
                expires = Some(not_after);
                failures.over(&shared, &subject);
                let life = not_after.duration_since(now).unwrap_or_default();
                wait_until(&shared, &subject, now + half_life(life, random())).await;
            }
            Err(error) => {
                // A certificate may have been inherited since.
                expires = expires.or_else(|| shared.current_expiry(&subject));
                let left = expires.map(|expires| expires.duration_since(now).unwrap_or_default());
                failures.add(&subject, &error, left);
                let pause = retry_after(failures.count, left, &subject, random());
                let retried = async {
                    tokio::select! {
                        () = shared.retry.notified() => {}
                        () = refresh(&shared, &subject) => {}
                    }
                };
                // Either way the next try follows.
                let _ = timeout(pause, retried).await;
            }
        }
    }
}

/// Notices new roots between renewals and has the authority asked for them, and notices a clock that was set,
/// by which certificates may have begun or expired.
pub(super) async fn watch_roots_and_clock(shared: Arc<Shared>) {
    let mut asked = Instant::now();
    let mut clock = ClockJumpDetector::start();
    loop {
        sleep(LOOK).await;
        let set = clock.has_jumped();
        if set {
            tracing::warn!(
                "the clock was set, or the machine was suspended: certificates are looked at again"
            );
            shared.trust.notify_clock_jump();
        }
        let due = !shared.trust.file_matches_ca_roots() && asked.elapsed() >= ASK_FOR_ROOTS;
        if shared.trust.reload_file_if_changed() || due || set {
            shared.refresh.notify_one();
            asked = Instant::now();
        }
    }
}

/// Returns at `when` by the wall clock, or earlier if the certificate is to be replaced.
async fn wait_until(shared: &Shared, subject: &Subject, when: SystemTime) {
    let mut changes = shared.trust.subscribe_root_and_clock_changes();
    while let Ok(left) = when.duration_since(SystemTime::now()) {
        tokio::select! {
            () = outdated(shared, subject) => return,
            () = sleep(left.min(LOOK_AT_CLOCK)) => {}
            // The clock may have been set. The sender lives as long as `shared`.
            _ = changes.changed() => {}
        }
    }
}

/// Returns when a certificate is to be replaced before half of its life.
async fn outdated(shared: &Shared, subject: &Subject) {
    if let Subject::Workload(id) = subject {
        shared.wait_until_peers_refuse(id).await;
        return sleep(SPREAD.mul_f64(random())).await;
    }
    refresh(shared, subject).await;
}

/// Returns when the authority is to be asked for the roots, which the agent's own certificate is renewed for.
async fn refresh(shared: &Shared, subject: &Subject) {
    match subject {
        Subject::Agent { .. } => shared.refresh.notified().await,
        Subject::Workload(_) => std::future::pending().await,
    }
}

/// Returns a number between 0 and 1. The generator is this thread's own, so it must not live across an
/// `await`.
fn random() -> f64 {
    rand::rng().random()
}

/// Returns half of a life, give or take a tenth, so that certificates made together are not renewed together.
/// `random` is between 0 and 1.
fn half_life(life: Duration, random: f64) -> Duration {
    life.max(SHORTEST_LIFE).mul_f64(0.5 * (0.9 + 0.2 * random))
}

/// Returns the pause after the `count`th failure in a row. With a certificate in use it is at most a quarter
/// of what is `left` of its life: time for several tries, however short that is.
fn retry_after(count: u32, left: Option<Duration>, subject: &Subject, random: f64) -> Duration {
    let left = left.filter(|left| !left.is_zero());
    let longest = match (subject, left) {
        (Subject::Workload(_), Some(left)) => LONGEST_RETRY.min(left / 4),
        (Subject::Agent { .. }, Some(left)) => LONGEST_RETRY_WITHOUT.min(left / 4),
        (_, None) => LONGEST_RETRY_WITHOUT,
    };
    let doubled = FIRST_RETRY.saturating_mul(1 << count.saturating_sub(1).min(16)).min(longest);
    doubled.mul_f64(0.8 + 0.4 * random).max(SHORTEST_RETRY)
}

/// Counts failures in a row, and remembers which reason was logged.
#[derive(Default)]
struct Failures {
    count: u32,
    said: String,
}

impl Failures {
    /// Logs a failure once for each reason, and once more when the certificate has expired.
    fn add(&mut self, subject: &Subject, error: &CaError, left: Option<Duration>) {
        self.count = self.count.saturating_add(1);
        let consequence = match left {
            None => "there is none yet",
            Some(Duration::ZERO) => "it has expired: connections are refused until there is a new one",
            Some(_) => "the old one stays in use",
        };
        let text = format!("{consequence}: {error}");
        // The seconds by which a certificate is too old or not valid yet differ each time.
        let text = text.replace(|letter: char| letter.is_ascii_digit(), "");
        if text != self.said {
            tracing::warn!(identity = subject.as_str(), reason = %error, "no certificate from the authority; {consequence}");
            self.said = text;
        }
    }

    fn over(&mut self, shared: &Shared, subject: &Subject) {
        if std::mem::take(&mut self.count) > 0 {
            tracing::info!(identity = subject.as_str(), "the authority answers again");
            self.said.clear();
            shared.retry.notify_waiters();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workload() -> Subject {
        Subject::Workload("spiffe://td/ns/a/sa/b".parse().unwrap())
    }

    #[test]
    fn renewal_is_at_half_life_give_or_take_a_tenth() {
        let life = Duration::from_secs(1000);
        assert_eq!(half_life(life, 0.0), Duration::from_secs(450));
        assert_eq!(half_life(life, 0.5), Duration::from_secs(500));
        assert_eq!(half_life(life, 1.0), Duration::from_secs(550));
    }

    #[test]
    fn retries_double_up_to_a_bound() {
        let after = |count, left| retry_after(count, left, &workload(), 0.5);
        assert_eq!(after(1, None), Duration::from_millis(500));
        assert_eq!(after(2, None), Duration::from_secs(1));
        let week = Some(Duration::from_hours(7 * 24));
        assert_eq!(after(40, week), LONGEST_RETRY);
        assert_eq!(after(40, None), Duration::from_secs(5), "a pod without one is cut off");
        assert_eq!(
            after(40, Some(Duration::from_secs(100))),
            Duration::from_secs(25),
            "several tries are left"
        );
        assert_eq!(after(40, Some(Duration::ZERO)), Duration::from_secs(5), "expired");
        assert!(after(1, Some(Duration::from_millis(1))) >= SHORTEST_RETRY);
    }

    #[test]
    fn retries_of_many_are_spread() {
        let at = |random| retry_after(3, None, &workload(), random);
        assert_eq!((at(0.0), at(1.0)), (Duration::from_millis(1600), Duration::from_millis(2400)));
    }
}
