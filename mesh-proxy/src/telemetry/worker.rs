//! The counters of one worker.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::access::AccessLog;
use super::labels::{Key, Labels};
use super::open_connections::OpenConnections;
use super::record::Expiry;

/// Upper bounds of the duration histograms, seconds: from loopback to a lost network.
pub(super) const BOUNDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 10.0];

/// Counters of one label set, written by one worker and read by scrapes.
#[derive(Debug, Default)]
pub struct Traffic {
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

/// Durations, counted by [`BOUNDS`].
#[derive(Debug, Default)]
pub(super) struct Durations {
    pub buckets: [AtomicU64; BOUNDS.len() + 1],
    pub microseconds: AtomicU64,
}

/// The metrics of one worker. Nobody else writes them, so only a scrape ever contends for their locks.
pub struct WorkerMetrics {
    traffic: Mutex<HashMap<Key, Counted>>,
    pub(super) connects: Durations,
    pub(super) handshakes: Durations,
    pub(super) accept_errors: AtomicU64,
    pub(super) revoked: AtomicU64,
    pub(super) over_limit: AtomicU64,
    pub(super) idle: AtomicU64,
    pub(super) aged: AtomicU64,
    pub(super) handshake_over_limit: AtomicU64,
    pub(super) window_capped: AtomicU64,
    pub(super) open: OpenConnections,
    pub(super) log: AccessLog,
}

struct Counted {
    labels: Labels,
    traffic: Arc<Traffic>,
    used: Instant,
}

impl WorkerMetrics {
    /// Creates a worker's metrics; its access log lines go to `log`.
    pub fn new(log: AccessLog) -> Arc<Self> {
        Arc::new(Self {
            traffic: Mutex::default(),
            connects: Durations::default(),
            handshakes: Durations::default(),
            accept_errors: AtomicU64::new(0),
            revoked: AtomicU64::new(0),
            over_limit: AtomicU64::new(0),
            idle: AtomicU64::new(0),
            aged: AtomicU64::new(0),
            handshake_over_limit: AtomicU64::new(0),
            window_capped: AtomicU64::new(0),
            open: OpenConnections::default(),
            log,
        })
    }

    /// Returns the counters of a label set. A connection looks them up once.
    pub fn traffic(&self, labels: &Labels) -> Arc<Traffic> {
        let mut traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        let counted = traffic.entry(labels.key()).or_insert_with(|| Counted {
            labels: labels.clone(),
            traffic: Arc::default(),
            used: Instant::now(),
        });
        counted.used = Instant::now();
        Arc::clone(&counted.traffic)
    }

    /// Observes how long it took to reach an endpoint.
    pub fn connected(&self, took: Duration) {
        self.connects.observe(took);
    }

    /// Observes how long a TLS handshake took.
    pub fn handshake(&self, took: Duration) {
        self.handshakes.observe(took);
    }

    /// Counts an `accept` that failed for lack of a resource.
    pub fn accept_failed(&self) {
        self.accept_errors.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that was refused because its pod has as many as it may.
    pub fn over_limit(&self) {
        self.over_limit.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that found no place for its handshake, or lost it to a newcomer: too many have not
    /// proved their identity yet.
    pub fn handshake_over_limit(&self) {
        self.handshake_over_limit.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a stream's window that could not grow, because its pod's budget is used up.
    pub fn window_capped(&self) {
        self.window_capped.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts a connection that reached a bound of its lifetime.
    pub(super) fn expired(&self, expiry: Expiry) {
        let counter = match expiry {
            Expiry::Idle(_) => &self.idle,
            Expiry::Age(_) => &self.aged,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }

    /// Counts connections that were closed because a policy changed.
    pub fn revoked(&self, connections: usize) {
        self.revoked.fetch_add(connections as u64, Ordering::Relaxed);
    }

    /// Forgets label sets that nothing used for `idle` and that no open connection holds, so that they do not
    /// add up as pods come and go.
    pub fn forget_unused(&self, idle: Duration) {
        let now = Instant::now();
        self.traffic.lock().unwrap_or_else(PoisonError::into_inner).retain(|_, counted| {
            Arc::strong_count(&counted.traffic) > 1 || now.duration_since(counted.used) < idle
        });
    }

    /// Returns every label set and its counters. The worker waits only while they are listed, not for what is
    /// made of them.
    pub(super) fn all_traffic(&self) -> Vec<(Labels, Arc<Traffic>)> {
        let traffic = self.traffic.lock().unwrap_or_else(PoisonError::into_inner);
        traffic.values().map(|counted| (counted.labels.clone(), Arc::clone(&counted.traffic))).collect()
    }
}

impl Durations {
    fn observe(&self, took: Duration) {
        let seconds = took.as_secs_f64();
        let bucket = BOUNDS.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        let microseconds = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.microseconds.fetch_add(microseconds, Ordering::Relaxed);
    }
}
