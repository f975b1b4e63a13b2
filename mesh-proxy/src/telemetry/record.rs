//! One connection, from its acceptance to its one outcome.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::access::Entry;
use super::open::OpenConnection;
use super::parties::Parties;
use super::response_flag::ResponseFlag;
use super::worker::{Traffic, WorkerMetrics};

/// A connection that is being handled. Dropping it without [`ConnectionRecord::end`] records that it was
/// abandoned, so there is always one outcome.
pub struct ConnectionRecord {
    metrics: Arc<WorkerMetrics>,
    /// Its two ends; filled in as they become known.
    pub parties: Parties,
    /// Smoothed round-trip time to the server, where the kernel told it.
    pub rtt: Option<Duration>,
    since: Instant,
    opened: Option<(u64, Arc<Traffic>)>,
    ended: bool,
}

/// How a connection ended.
#[derive(Debug)]
pub enum Outcome {
    /// Both sides closed it.
    Closed,
    /// One side broke it after it was open, or it was ended on purpose.
    Broken(String),
    /// It had its time, and was ended on purpose.
    Expired(Expiry),
    /// It was refused or could not be made, and the reason in words.
    Failed(ResponseFlag, String),
}

/// Which of a `DestinationRule`'s bounds a connection has come to, and what it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Expiry {
    /// No bytes either way for so long.
    #[error("idleTimeout of DestinationRule: no bytes for {}", humantime::format_duration(*.0))]
    Idle(Duration),
    /// It was open for so long.
    #[error("maxConnectionDuration of DestinationRule: open for {}", humantime::format_duration(*.0))]
    Age(Duration),
}

impl ConnectionRecord {
    /// Starts the record of an accepted connection.
    pub fn new(metrics: &Arc<WorkerMetrics>, parties: Parties) -> Self {
        Self {
            metrics: Arc::clone(metrics),
            parties,
            rtt: None,
            since: Instant::now(),
            opened: None,
            ended: false,
        }
    }

    /// Both ends are connected: the connection counts as open, and its bytes are to be added to the answer.
    pub fn open(&mut self) -> Arc<Traffic> {
        let traffic = self.metrics.traffic(&self.parties.labels);
        traffic.opened.fetch_add(1, Ordering::Relaxed);
        let open = OpenConnection { parties: self.parties.clone(), since: self.since };
        let id = self.metrics.open.add(open);
        self.opened = Some((id, Arc::clone(&traffic)));
        traffic
    }

    /// The one outcome, with the bytes from the client and to it.
    pub fn end(mut self, outcome: &Outcome, bytes: (u64, u64)) {
        self.finish(outcome, bytes, self.since.elapsed());
    }

    /// The same of a connection that lasted so long, of which the proxy heard later.
    pub fn end_after(mut self, lasted: Duration, outcome: &Outcome, bytes: (u64, u64)) {
        self.finish(outcome, bytes, lasted);
    }

    /// Another proxy records it from here on.
    pub fn hand_off(mut self) {
        self.ended = true;
        if let Some((id, _)) = self.opened.take() {
            self.metrics.open.remove(id);
        }
    }

    fn finish(&mut self, outcome: &Outcome, bytes: (u64, u64), duration: Duration) {
        self.ended = true;
        if let Outcome::Failed(flag, _) = outcome {
            self.parties.labels.response_flag = Some(*flag);
            self.metrics.traffic(&self.parties.labels).failed.fetch_add(1, Ordering::Relaxed);
        }
        if let Outcome::Expired(expiry) = outcome {
            self.metrics.expired(*expiry);
        }
        if let Some((id, traffic)) = self.opened.take() {
            traffic.closed.fetch_add(1, Ordering::Relaxed);
            self.metrics.open.remove(id);
        }
        self.metrics.log.write(|| Entry {
            parties: &self.parties,
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
            let outcome = Outcome::Broken("abandoned: the proxy stopped".to_owned());
            self.finish(&outcome, (0, 0), self.since.elapsed());
        }
    }
}
