//! Outlier detection on connect failures (`DestinationRule`'s `outlierDetection`), shared by the workers: it
//! is touched when a service has the policy and when a connect fails, not otherwise.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::plan::OutlierDetection;

/// The longest that an endpoint is left out, however often it failed and whatever its policy says.
const LONGEST_REST: Duration = Duration::from_hours(24 * 365);

/// Health of endpoints, by key.
pub struct Health<K> {
    endpoints: Mutex<HashMap<K, State>>,
}

#[derive(Debug)]
struct State {
    failures: u32,
    ejections: u32,
    until: Option<Instant>,
    last_change: Instant,
}

impl<K> Default for Health<K> {
    fn default() -> Self {
        Self { endpoints: Mutex::default() }
    }
}

impl<K: Hash + Eq + Clone> Health<K> {
    /// Which of `candidates` are to be left out now.
    pub fn ejected(&self, candidates: &[K], limits: &OutlierDetection, now: Instant) -> Vec<bool> {
        let endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let out: Vec<bool> = candidates
            .iter()
            .map(|key| endpoints.get(key).and_then(|state| state.until).is_some_and(|until| until > now))
            .collect();
        let healthy = out.iter().filter(|out| !**out).count();
        if percent(healthy, candidates.len()) < usize::from(limits.min_health_percent) {
            return vec![false; candidates.len()];
        }
        out
    }

    /// Notes that a connect succeeded.
    pub fn succeeded(&self, key: &K) {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(state) = endpoints.get_mut(key) {
            state.failures = 0;
        }
    }

    /// Notes that a connect failed; answers whether the endpoint was ejected for it. `all` are the service's
    /// endpoints.
    pub fn failed(&self, key: &K, all: &[K], limits: &OutlierDetection, now: Instant) -> bool {
        let mut endpoints = self.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        let out_now = all
            .iter()
            .filter(|other| {
                endpoints.get(*other).and_then(|state| state.until).is_some_and(|until| until > now)
            })
            .count();
        let state = endpoints.entry(key.clone()).or_insert(State {
            failures: 0,
            ejections: 0,
            until: None,
            last_change: now,
        });
        state.failures += 1;
        let already_out = state.until.is_some_and(|until| until > now);
        let too_many = percent(out_now + 1, all.len()) > usize::from(limits.max_ejection_percent);
        if limits.consecutive_errors.is_none_or(|most| state.failures < most.get()) || already_out || too_many
        {
            return false;
        }
        let rested = intervals(now.saturating_duration_since(state.last_change), limits.interval);
        state.ejections = state.ejections.saturating_sub(rested).saturating_add(1);
        state.failures = 0;
        state.last_change = now;
        state.until = Some(now + limits.base_ejection_time.saturating_mul(state.ejections).min(LONGEST_REST));
        true
    }

    /// Forgets endpoints that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner).retain(|key, _| keep(key));
    }
}

fn percent(part: usize, whole: usize) -> usize {
    (part * 100).checked_div(whole).unwrap_or(0)
}

fn intervals(passed: Duration, interval: Duration) -> u32 {
    let whole = passed.as_millis().checked_div(interval.as_millis()).unwrap_or(0);
    u32::try_from(whole).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::num::NonZeroU32;

    use super::*;

    const LIMITS: OutlierDetection = OutlierDetection {
        consecutive_errors: NonZeroU32::new(3),
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 50,
        min_health_percent: 0,
    };

    fn fail(
        health: &Health<&'static str>,
        key: &'static str,
        times: u32,
        limits: &OutlierDetection,
        now: Instant,
    ) -> bool {
        (0..times).any(|_| health.failed(&key, &["a", "b"], limits, now))
    }

    #[test]
    fn ejects_after_failures_in_a_row_and_lets_back() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(!fail(&health, "a", 2, &LIMITS, now));
        health.succeeded(&"a");
        assert!(!fail(&health, "a", 2, &LIMITS, now), "a success starts the count anew");
        assert!(fail(&health, "a", 1, &LIMITS, now));
        assert_eq!(health.ejected(&["a", "b"], &LIMITS, now), [true, false]);
        assert_eq!(health.ejected(&["a", "b"], &LIMITS, now + Duration::from_secs(31)), [false, false]);
    }

    #[test]
    fn each_ejection_is_longer() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(fail(&health, "a", 3, &LIMITS, now));
        let again = now + Duration::from_secs(31);
        let limits = OutlierDetection { interval: Duration::from_secs(1000), ..LIMITS };
        assert!(fail(&health, "a", 3, &limits, again));
        assert_eq!(health.ejected(&["a"], &LIMITS, again + Duration::from_secs(59)), [true]);
        assert_eq!(health.ejected(&["a"], &LIMITS, again + Duration::from_secs(61)), [false]);
    }

    #[test]
    fn however_long_users_write_it_there_is_an_end() {
        let (health, now) = (Health::default(), Instant::now());
        let limits = OutlierDetection { base_ejection_time: Duration::MAX, ..LIMITS };
        assert!(fail(&health, "a", 3, &limits, now));
        assert_eq!(health.ejected(&["a"], &limits, now + LONGEST_REST), [false]);
    }

    #[test]
    fn never_more_than_the_percentage() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(fail(&health, "a", 3, &LIMITS, now));
        assert!(!fail(&health, "b", 9, &LIMITS, now), "both would be out");
        let none = OutlierDetection { max_ejection_percent: 10, ..LIMITS };
        assert!(!fail(&Health::default(), "a", 9, &none, now), "half of two is more than a tenth");
    }

    #[test]
    fn too_few_healthy_ones_means_all() {
        let (health, now) = (Health::default(), Instant::now());
        assert!(fail(&health, "a", 3, &LIMITS, now));
        let panic = OutlierDetection { min_health_percent: 60, ..LIMITS };
        assert_eq!(health.ejected(&["a", "b"], &panic, now), [false, false]);
    }

    #[test]
    fn zero_switches_it_off() {
        let off = OutlierDetection { consecutive_errors: None, ..LIMITS };
        assert!(!fail(&Health::default(), "a", 100, &off, Instant::now()));
    }
}
