//! The record of one connection, from its acceptance to its one outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::access_log::ConnectionLogEntry;
use super::connection_details::ConnectionDetails;
use super::open_connections::OpenConnection;
use super::response_flag::ResponseFlag;
use super::worker_metrics::{TrafficCounters, WorkerMetrics};

/// The record of a connection that is being served. Dropping it records the connection as abandoned, so there
/// is always one outcome; only [`ConnectionRecord::end_without_outcome`] leaves that to another proxy.
pub struct ConnectionRecord {
    metrics: Arc<WorkerMetrics>,
    /// Who talks to whom; filled in as it becomes known.
    pub details: ConnectionDetails,
    /// Smoothed round-trip time to the server, where the kernel told it.
    pub rtt: Option<Duration>,
    since: Instant,
    opened: Option<(u64, Arc<TrafficCounters>)>,
    ended: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub enum ConnectionOutcome {
    /// Both sides closed it.
    Closed,
    /// One end broke it after it was open, or it was ended on purpose.
    Broken(String),
    /// It reached a bound of its lifetime and was ended.
    Expired(LifetimeExpiry),
    /// It was refused or could not be made, and why in words.
    Failed(ResponseFlag, String),
}

/// The bound of a `DestinationRule` that a connection has reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LifetimeExpiry {
    /// No bytes either way for that long.
    #[error("idleTimeout of DestinationRule: no bytes for {}", humantime::format_duration(*.0))]
    Idle(Duration),
    /// Open for that long.
    #[error("maxConnectionDuration of DestinationRule: open for {}", humantime::format_duration(*.0))]
    Age(Duration),
}

impl ConnectionRecord {
    /// Starts the record of an accepted connection.
    pub fn new(metrics: &Arc<WorkerMetrics>, details: ConnectionDetails) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            details,
            rtt: None,
            since: Instant::now(),
            opened: None,
            ended: false,
        }
    }

    /// Counts the connection as open, once both ends are connected. Returns the counts to add its bytes to.
    pub fn record_opened(&mut self) -> Arc<TrafficCounters> {
        let traffic = self.metrics.traffic_counters(&self.details.labels);
        traffic.opened.fetch_add(1, Ordering::Relaxed);
        let open = OpenConnection { details: self.details.clone(), since: self.since };
        let id = self.metrics.open.add(open);
        self.opened = Some((id, Arc::clone(&traffic)));
        traffic
    }

    /// Records the outcome, with the bytes from the client and those to it.
    pub fn record_outcome(mut self, outcome: &ConnectionOutcome, bytes: (u64, u64)) {
        self.finish(outcome, bytes, self.since.elapsed());
    }

    /// Records the outcome of a connection that the proxy heard of after it had ended; `lasted` is its
    /// duration.
    pub fn record_outcome_with_duration(
        mut self,
        lasted: Duration,
        outcome: &ConnectionOutcome,
        bytes: (u64, u64),
    ) {
        self.finish(outcome, bytes, lasted);
    }

    /// Ends the record without an outcome: another proxy records the connection from here on.
    pub fn end_without_outcome(mut self) {
        self.ended = true;
        if let Some((id, _)) = self.opened.take() {
            self.metrics.open.remove(id);
        }
    }

    fn finish(&mut self, outcome: &ConnectionOutcome, bytes: (u64, u64), duration: Duration) {
        self.ended = true;
        if let ConnectionOutcome::Failed(flag, _) = outcome {
            self.details.labels.response_flag = Some(*flag);
            self.metrics.traffic_counters(&self.details.labels).failed.fetch_add(1, Ordering::Relaxed);
        }
        if let ConnectionOutcome::Expired(expiry) = outcome {
            self.metrics.count_expired(*expiry);
        }
        if let Some((id, traffic)) = self.opened.take() {
            traffic.closed.fetch_add(1, Ordering::Relaxed);
            self.metrics.open.remove(id);
        }
        self.metrics.log.write_entry(|| ConnectionLogEntry {
            details: &self.details,
            outcome,
            sent: bytes.0,
            received: bytes.1,
            duration,
            rtt: self.rtt,
        });
    }
}

impl Drop for ConnectionRecord {
    fn drop(&mut self) {
        if !self.ended {
            let outcome = ConnectionOutcome::Broken("abandoned: the proxy stopped".to_owned());
            self.finish(&outcome, (0, 0), self.since.elapsed());
        }
    }
}
