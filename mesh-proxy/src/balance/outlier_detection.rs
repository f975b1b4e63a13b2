//! Outlier detection on failed connects and, of HTTP requests that are read, on 5xx and missing responses
//! (`DestinationRule`'s `outlierDetection`), shared by the workers. It is used only where a service has the
//! policy.

use std::collections::HashMap;
use std::fmt::Display;
use std::num::NonZeroU32;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use mesh_api::plan::{Endpoint, EndpointId, Endpoints, OutlierDetection, PortPolicy};

use super::excluded_endpoints::EndpointsToSkip;

/// Longest ejection, however often the endpoint failed and whatever its policy says.
const LONGEST_REST: Duration = Duration::from_hours(24 * 365);

/// Counts failures of endpoints, and which are ejected for them.
#[derive(Debug, Default)]
pub struct OutlierDetector {
    endpoints: Mutex<HashMap<EndpointId, State>>,
}

#[derive(Debug)]
struct State {
    /// Failures in a row of each kind.
    failures: Failures,
    ejections: u32,
    until: Option<Instant>,
    last_change: Instant,
}

/// Failures of an endpoint in a row.
#[derive(Debug, Default)]
struct Failures {
    errors: u32,
    /// Of these, and without another in between, 502, 503 and 504.
    gateway_errors: u32,
    /// Of local origin, where they are counted apart.
    local_origin: u32,
}

/// What came of a connect or request.
#[derive(Clone, Copy, Debug)]
enum Outcome {
    /// A connection was made, for which there is no response.
    Connected,
    /// There is no connection, or no response.
    LocalOriginFailure,
    /// There is a response of this status.
    Response(u16),
}

impl Outcome {
    /// Whether it is a failure.
    fn is_failure(self, limits: &OutlierDetection) -> bool {
        match self {
            Self::Connected => false,
            Self::LocalOriginFailure => true,
            Self::Response(status) if limits.http_error_statuses.is_empty() => (500..600).contains(&status),
            Self::Response(status) => limits.http_error_statuses.contains(&status),
        }
    }

    /// Whether it is one as gateways report it: no connection is as good as 503.
    fn is_gateway_failure(self) -> bool {
        !matches!(self, Self::Response(status) if !(502..=504).contains(&status))
    }
}

impl Failures {
    /// Counts an outcome. Returns whether it makes too many failures of some kind.
    fn count(&mut self, outcome: Outcome, limits: &OutlierDetection) -> bool {
        let reaches = |count: u32, most: Option<NonZeroU32>| most.is_some_and(|most| count >= most.get());
        let next = |count: u32, is_one: bool| if is_one { count.saturating_add(1) } else { 0 };
        let is_failure = outcome.is_failure(limits);
        if limits.splits_local_origin_errors {
            let is_local = !matches!(outcome, Outcome::Response(_));
            self.local_origin = next(self.local_origin, is_local && is_failure);
            if is_local {
                return is_failure && reaches(self.local_origin, limits.consecutive_local_origin_failures);
            }
        }
        self.errors = next(self.errors, is_failure);
        self.gateway_errors = next(self.gateway_errors, is_failure && outcome.is_gateway_failure());
        is_failure
            && (reaches(self.errors, limits.consecutive_errors)
                || reaches(self.gateway_errors, limits.consecutive_gateway_errors))
    }
}

impl State {
    fn is_ejected(&self, now: Instant) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

impl OutlierDetector {
    /// Returns which of a service's endpoints are ejected now by its policy; none of them where the share of
    /// healthy ones is below the policy's least.
    pub fn ejected_endpoints(&self, among: &Endpoints, policy: &PortPolicy, now: Instant) -> EndpointsToSkip {
        let Some(limits) = &policy.outlier else { return EndpointsToSkip::default() };
        let states = self.states();
        let ejected = |endpoint: &Endpoint| states.get(&endpoint.key()).is_some_and(|it| it.is_ejected(now));
        let out: Vec<_> = if states.is_empty() { Vec::new() } else { positions(among, ejected) };
        let healthy = among.len() - out.len();
        if percent(healthy, among.len()) < usize::from(limits.min_health_percent) {
            return EndpointsToSkip::default();
        }
        out.into_iter().collect()
    }

    /// Reports the result of a connect to an endpoint, by the proxy or by the kernel; `failure` says why it
    /// failed; none if it did not. Counts only where the service's policy says so. An endpoint that fails too
    /// often in a row is ejected for a while, which is logged.
    pub fn report_result(
        &self,
        endpoint: &EndpointId,
        among: &Endpoints,
        policy: &PortPolicy,
        failure: Option<&dyn Display>,
        now: Instant,
    ) {
        let Some(limits) = &policy.outlier else { return };
        let outcome = failure.map_or(Outcome::Connected, |_| Outcome::LocalOriginFailure);
        if self.count(endpoint, among, limits, outcome, now)
            && let Some(failure) = failure
        {
            tracing::warn!(endpoint = %endpoint.address, error = %failure, "endpoint ejected after failures");
        }
    }

    /// Reports the status of an endpoint's response to a request, as [`OutlierDetector::report_result`] does
    /// what came of a connect.
    pub fn report_response(
        &self,
        endpoint: &EndpointId,
        among: &Endpoints,
        policy: &PortPolicy,
        status: u16,
        now: Instant,
    ) {
        let Some(limits) = &policy.outlier else { return };
        if self.count(endpoint, among, limits, Outcome::Response(status), now) {
            tracing::warn!(endpoint = %endpoint.address, status, "endpoint ejected after failures");
        }
    }

    /// Forgets endpoints for which `keep` returns false.
    pub fn retain(&self, keep: impl Fn(&EndpointId) -> bool) {
        self.states().retain(|key, _| keep(key));
    }

    /// Counts an outcome. Returns whether the endpoint is ejected for it.
    fn count(
        &self,
        endpoint: &EndpointId,
        among: &Endpoints,
        limits: &OutlierDetection,
        outcome: Outcome,
        now: Instant,
    ) -> bool {
        let mut states = self.states();
        if !outcome.is_failure(limits) {
            // Nothing is kept of an endpoint that never fails.
            if let Some(state) = states.get_mut(endpoint) {
                state.failures.count(outcome, limits);
            }
            return false;
        }
        let is_out = |other: &Endpoint| states.get(&other.key()).is_some_and(|state| state.is_ejected(now));
        let out_now = positions(among, is_out).len();
        let new = State { failures: Failures::default(), ejections: 0, until: None, last_change: now };
        let state = states.entry(endpoint.clone()).or_insert(new);
        let reaches_limit = state.failures.count(outcome, limits);
        let too_many = percent(out_now + 1, among.len()) > usize::from(limits.max_ejection_percent);
        if !reaches_limit || state.is_ejected(now) || too_many {
            return false;
        }
        let rested = intervals(now.saturating_duration_since(state.last_change), limits.interval);
        state.ejections = state.ejections.saturating_sub(rested).saturating_add(1);
        state.failures = Failures::default();
        state.last_change = now;
        state.until = Some(now + limits.base_ejection_time.saturating_mul(state.ejections).min(LONGEST_REST));
        true
    }

    fn states(&self) -> MutexGuard<'_, HashMap<EndpointId, State>> {
        // Nothing below panics under the lock.
        self.endpoints.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn positions(among: &Endpoints, is_one: impl Fn(&Endpoint) -> bool) -> Vec<usize> {
    let all = among.iter().enumerate();
    all.filter(|(_, endpoint)| is_one(endpoint)).map(|(index, _)| index).collect()
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
    use super::super::fixture::weighted_endpoints;
    use super::*;

    const LIMITS: OutlierDetection = OutlierDetection {
        consecutive_errors: NonZeroU32::new(3),
        consecutive_gateway_errors: None,
        splits_local_origin_errors: false,
        consecutive_local_origin_failures: None,
        http_error_statuses: Vec::new(),
        interval: Duration::from_secs(10),
        base_ejection_time: Duration::from_secs(30),
        max_ejection_percent: 50,
        min_health_percent: 0,
    };

    fn policy(limits: OutlierDetection) -> PortPolicy {
        PortPolicy { outlier: Some(limits), ..PortPolicy::default() }
    }

    /// Whether one of the endpoints `a` and `b` is ejected when it fails so often.
    fn fail(
        outliers: &OutlierDetector,
        name: &str,
        times: u32,
        limits: &OutlierDetection,
        now: Instant,
    ) -> bool {
        let all = weighted_endpoints(&[("a", 1), ("b", 1)]);
        let key = all.iter().find(|endpoint| *endpoint.workload.uid == *name).unwrap().key();
        (0..times).any(|_| outliers.count(&key, &all, limits, Outcome::LocalOriginFailure, now))
    }

    /// Whether the endpoints of these names are ejected.
    fn ejected(
        outliers: &OutlierDetector,
        names: &[&str],
        limits: OutlierDetection,
        now: Instant,
    ) -> Vec<bool> {
        let all: Vec<_> = names.iter().map(|name| (*name, 1)).collect();
        let out = outliers.ejected_endpoints(&weighted_endpoints(&all), &policy(limits), now);
        (0..names.len()).map(|index| out.contains(index)).collect()
    }

    #[test]
    fn ejects_after_failures_in_a_row_and_lets_back() {
        let (outliers, now) = (OutlierDetector::default(), Instant::now());
        let all = weighted_endpoints(&[("a", 1), ("b", 1)]);
        let report = |failure: Option<&dyn Display>| {
            outliers.report_result(&all[0].key(), &all, &policy(LIMITS), failure, now);
        };
        report(Some(&"refused"));
        report(Some(&"refused"));
        report(None);
        report(Some(&"refused"));
        report(Some(&"refused"));
        assert!(
            outliers.ejected_endpoints(&all, &policy(LIMITS), now).is_empty(),
            "a success starts the count anew"
        );
        report(Some(&"refused"));
        assert_eq!(ejected(&outliers, &["a", "b"], LIMITS, now), [true, false]);
        assert_eq!(ejected(&outliers, &["a", "b"], LIMITS, now + Duration::from_secs(31)), [false, false]);
        assert!(
            outliers.ejected_endpoints(&all, &PortPolicy::default(), now).is_empty(),
            "not every service wants it"
        );
    }

    #[test]
    fn each_ejection_is_longer() {
        let (outliers, now) = (OutlierDetector::default(), Instant::now());
        assert!(fail(&outliers, "a", 3, &LIMITS, now));
        let again = now + Duration::from_secs(31);
        let limits = OutlierDetection { interval: Duration::from_secs(1000), ..LIMITS };
        assert!(fail(&outliers, "a", 3, &limits, again));
        assert_eq!(ejected(&outliers, &["a"], LIMITS, again + Duration::from_secs(59)), [true]);
        assert_eq!(ejected(&outliers, &["a"], LIMITS, again + Duration::from_secs(61)), [false]);
    }

    #[test]
    fn however_long_users_write_it_there_is_an_end() {
        let (outliers, now) = (OutlierDetector::default(), Instant::now());
        let limits = OutlierDetection { base_ejection_time: Duration::MAX, ..LIMITS };
        assert!(fail(&outliers, "a", 3, &limits, now));
        assert_eq!(ejected(&outliers, &["a"], limits, now + LONGEST_REST), [false]);
    }

    #[test]
    fn never_more_than_the_percentage() {
        let (outliers, now) = (OutlierDetector::default(), Instant::now());
        assert!(fail(&outliers, "a", 3, &LIMITS, now));
        assert!(!fail(&outliers, "b", 9, &LIMITS, now), "both would be out");
        let none = OutlierDetection { max_ejection_percent: 10, ..LIMITS };
        assert!(!fail(&OutlierDetector::default(), "a", 9, &none, now), "half of two is more than a tenth");
    }

    #[test]
    fn too_few_healthy_ones_means_all() {
        let (outliers, now) = (OutlierDetector::default(), Instant::now());
        assert!(fail(&outliers, "a", 3, &LIMITS, now));
        let panic = OutlierDetection { min_health_percent: 60, ..LIMITS };
        assert_eq!(ejected(&outliers, &["a", "b"], panic, now), [false, false]);
    }

    #[test]
    fn zero_switches_it_off() {
        let off = OutlierDetection { consecutive_errors: None, ..LIMITS };
        assert!(!fail(&OutlierDetector::default(), "a", 100, &off, Instant::now()));
    }
    /// After how many of these outcomes, `0` for no connection and `1` for one, an endpoint is ejected.
    fn ejected_after(limits: &OutlierDetection, outcomes: &[u16]) -> Option<usize> {
        let (outliers, all) = (OutlierDetector::default(), weighted_endpoints(&[("a", 1), ("b", 1)]));
        let outcome = |it: u16| match it {
            0 => Outcome::LocalOriginFailure,
            1 => Outcome::Connected,
            status => Outcome::Response(status),
        };
        let count = |it: &u16| outliers.count(&all[0].key(), &all, limits, outcome(*it), Instant::now());
        outcomes.iter().position(count).map(|index| index + 1)
    }

    #[test]
    fn gateway_errors_have_a_limit_of_their_own() {
        let limits = OutlierDetection { consecutive_gateway_errors: NonZeroU32::new(2), ..LIMITS };
        assert_eq!(ejected_after(&limits, &[502, 504]), Some(2));
        assert_eq!(ejected_after(&limits, &[503, 0]), Some(2), "no connection is as good as 503");
        assert_eq!(ejected_after(&limits, &[503, 500, 503]), Some(3), "all are 5xx");
        assert_eq!(ejected_after(&limits, &[503, 200, 503, 404, 503]), None);
        let alone = OutlierDetection { consecutive_errors: None, ..limits };
        assert_eq!(ejected_after(&alone, &[500, 503, 500, 503, 500]), None, "not in a row");
    }

    #[test]
    fn failures_of_local_origin_are_counted_apart_where_they_are_split_off() {
        let limits = OutlierDetection {
            splits_local_origin_errors: true,
            consecutive_local_origin_failures: NonZeroU32::new(2),
            ..LIMITS
        };
        assert_eq!(ejected_after(&limits, &[500, 0, 500, 0, 500]), Some(5), "three of 5xx in a row");
        assert_eq!(ejected_after(&limits, &[0, 0]), Some(2));
        assert_eq!(ejected_after(&limits, &[0, 1, 0, 200, 0]), None);
        let off = OutlierDetection { consecutive_local_origin_failures: None, ..limits };
        assert_eq!(ejected_after(&off, &[0; 9]), None);
        assert_eq!(ejected_after(&LIMITS, &[0, 500, 0]), Some(3), "together where they are not");
    }

    #[test]
    fn other_statuses_may_be_failures() {
        let limits = OutlierDetection { http_error_statuses: vec![429, 503], ..LIMITS };
        assert_eq!(ejected_after(&limits, &[429, 503, 429]), Some(3));
        assert_eq!(ejected_after(&limits, &[429, 429, 500, 429]), None, "500 is none then");
        assert_eq!(ejected_after(&limits, &[429, 0, 429]), Some(3), "no connection always is one");
    }
}
