//! The counters of one worker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::access_log::AccessLog;
use super::connection_record::LifetimeExpiry;
use super::open_connections::OpenConnections;
use super::request_limit::RequestLimit;
use super::request_record::RequestOutcome;
use super::traffic_labels::{LabelKey, TrafficLabels};

/// Upper bounds of the duration histograms, seconds: from loopback to a lost network.
pub(super) const DURATION_BOUNDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

/// Counters of one label set, written by one worker and read by scrapes.
#[derive(Debug, Default)]
pub struct TrafficCounters {
    /// Connections opened.
    pub opened: AtomicU64,
    /// Connections closed.
    pub closed: AtomicU64,
    /// Connections that were refused or not made.
    pub failed: AtomicU64,
    /// Bytes from clients.
    pub received: AtomicU64,
    /// Bytes to clients.
    pub sent: AtomicU64,
}

/// Durations, counted by [`DURATION_BOUNDS`].
#[derive(Debug, Default)]
pub(super) struct DurationHistogram {
    pub buckets: [AtomicU64; DURATION_BOUNDS.len() + 1],
    pub microseconds: AtomicU64,
}

/// Upper bounds of the duration of requests, milliseconds, as Istio's.
pub(super) const REQUEST_BOUNDS: [f64; 20] = [
    0.5,
    1.0,
    5.0,
    10.0,
    25.0,
    50.0,
    100.0,
    250.0,
    500.0,
    1_000.0,
    2_500.0,
    5_000.0,
    10_000.0,
    30_000.0,
    60_000.0,
    300_000.0,
    600_000.0,
    1_800_000.0,
    3_600_000.0,
    f64::MAX,
];

/// What HTTP requests are counted by.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct RequestKey {
    labels: LabelKey,
    pub outcome: RequestOutcome,
}

/// The requests of one key.
#[derive(Clone, Debug)]
pub(super) struct RequestDurations {
    pub labels: TrafficLabels,
    /// By [`REQUEST_BOUNDS`].
    pub buckets: [u64; REQUEST_BOUNDS.len()],
    pub milliseconds: f64,
    used: Instant,
}

/// The metrics of one worker. Nobody else writes them, so only a scrape ever contends for their locks.
pub struct WorkerMetrics {
    traffic: Mutex<HashMap<LabelKey, Counted>>,
    requests: Mutex<HashMap<RequestKey, RequestDurations>>,
    pub(super) connects: DurationHistogram,
    pub(super) handshakes: DurationHistogram,
    pub(super) accept_errors: AtomicU64,
    pub(super) revoked: AtomicU64,
    pub(super) over_limit: AtomicU64,
    pub(super) idle: AtomicU64,
    pub(super) aged: AtomicU64,
    pub(super) handshake_over_limit: AtomicU64,
    pub(super) window_capped: AtomicU64,
    pub(super) copies: AtomicU64,
    pub(super) copies_failed: AtomicU64,
    /// In the order of [`RequestLimit::ALL`].
    pub(super) over_request_limit: [AtomicU64; RequestLimit::ALL.len()],
    pub(super) open: OpenConnections,
    pub(super) log: AccessLog,
}

struct Counted {
    labels: TrafficLabels,
    traffic: Arc<TrafficCounters>,
    used: Instant,
}

impl WorkerMetrics {
    /// Creates a worker's metrics; its access log lines go to `log`.
    pub fn new(log: AccessLog) -> Arc<Self> {
        Arc::new(Self {
            traffic: Mutex::default(),
            requests: Mutex::default(),
            connects: DurationHistogram::default(),
            handshakes: DurationHistogram::default(),
            accept_errors: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            over_limit: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            aged: AtomicU64::new(0),
            handshake_over_limit: AtomicU64::new(0),
            window_capped: AtomicU64::new(0),
            copies: AtomicU64::new(0),
            copies_failed: AtomicU64::new(0),
            over_request_limit: Default::default(),
            open: OpenConnections::default(),
            log,
        })
    }

    /// Returns the counters of a label set. A connection looks them up once.
    pub fn traffic_counters(&self, labels: &TrafficLabels) -> Arc<TrafficCounters> {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = traffic.entry(labels.counter_key()).or_insert_with(|| Counted {
            labels: labels.clone(),
            traffic: Arc::default(),
            used: Instant::now(),
        });
        counted.used = Instant::now();
        Arc::clone(&counted.traffic)
    }

    /// Counts a request that ended.
    pub(super) fn count_request(&self, labels: &TrafficLabels, outcome: RequestOutcome, took: Duration) {
        let key = RequestKey { labels: labels.counter_key(), outcome };
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = requests.entry(key).or_insert_with(|| RequestDurations {
            labels: labels.clone(),
            buckets: [0; REQUEST_BOUNDS.len()],
            milliseconds: 0.0,
            used: Instant::now(),
        });
        let milliseconds = took.as_secs_f64() * 1e3;
        let bucket = REQUEST_BOUNDS.iter().position(|bound| milliseconds <= *bound);
        counted.buckets[bucket.unwrap_or(REQUEST_BOUNDS.len() - 1)] += 1;
        counted.milliseconds += milliseconds;
        counted.used = Instant::now();
    }

    /// Returns what was counted of requests.
    pub(super) fn all_requests(&self) -> Vec<(RequestKey, RequestDurations)> {
        let requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.iter().map(|(key, counted)| (key.clone(), counted.clone())).collect()
    }

    /// Observes how long it took to reach an endpoint.
    pub fn observe_connect_time(&self, took: Duration) {
        self.connects.observe(took);
    }

    /// Observes how long a TLS handshake took.
    pub fn observe_handshake_time(&self, took: Duration) {
        self.handshakes.observe(took);
    }

    /// Counts an `accept` that failed for lack of a resource.
    pub fn count_accept_error(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was refused because its pod has as many as it may.
    pub fn count_over_limit(&self) {
        self.over_limit.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that found no place for its handshake, or lost it to a newcomer, since too many
    /// have not proved their identity yet; or whose peer was cut off for a flood a moment ago.
    pub fn count_refused_handshake(&self) {
        self.handshake_over_limit.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream's window that could not grow, because its pod's budget is used up.
    pub fn count_window_capped(&self) {
        self.window_capped.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a copy of a request to a mirror, and whether the mirror answered it.
    pub fn count_copy(&self, is_answered: bool) {
        let counter = if is_answered { &self.copies } else { &self.copies_failed };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a request, or a retry, that a limit of its service's port has not let through.
    pub fn count_over_request_limit(&self, limit: RequestLimit) {
        self.over_request_limit[limit as usize].fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that reached a bound of its lifetime.
    pub(super) fn count_expired(&self, expiry: LifetimeExpiry) {
        let counter = match expiry {
            LifetimeExpiry::Idle(_) => &self.idle,
            LifetimeExpiry::Age(_) => &self.aged,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts connections that were closed because a policy changed.
    pub fn count_revoked(&self, connections: usize) {
        self.revoked.fetch_add(connections as u64, Ordering::Relaxed);
    }

    /// Forgets label sets that nothing used for `idle` and that no open connection holds, so that they do not
    /// add up as pods come and go.
    pub fn remove_unused_labels(&self, idle: Duration) {
        let now = Instant::now();
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, counted| {
            Arc::strong_count(&counted.traffic) > 1 || now.duration_since(counted.used) < idle
        });
        let mut requests = self.requests.lock().unwrap_or_else(PoisonError::into_inner);
        requests.retain(|_, counted| now.duration_since(counted.used) < idle);
    }

    /// Returns every label set and its counters. The worker waits only while they are listed, not for what is
    /// made of them.
    pub(super) fn all_traffic_counters(&self) -> Vec<(TrafficLabels, Arc<TrafficCounters>)> {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.values().map(|counted| (counted.labels.clone(), Arc::clone(&counted.traffic))).collect()
    }
}

impl DurationHistogram {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket =
            DURATION_BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(DURATION_BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }
}
