//! The access log: one line for each connection, when it ends (wire reference 8.2).
//!
//! Lines are formatted by the worker and written by a thread of their own. A log that nobody reads fast enough loses
//! lines, which are counted; it never holds up a worker.

mod line;
mod sink;

use std::io::Write;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use mesh_api::plan::Workload;

pub use line::Format;

use self::line::Line;
use self::sink::Sink;
use super::labels::{Labels, Reporter};
use super::record::Ended;

/// Where the workers' lines go.
#[derive(Clone)]
pub struct AccessLog {
    lines: Option<(Format, Arc<Sink>)>,
    lost: Arc<AtomicU64>,
}

/// One connection that ended.
pub(super) struct Entry<'a> {
    pub labels: &'a Labels,
    pub client: SocketAddr,
    pub destination: SocketAddr,
    pub upstream: Option<SocketAddr>,
    pub transport: &'static str,
    pub policy: Option<&'a str>,
    pub ended: &'a Ended,
    pub sent: u64,
    pub received: u64,
    pub duration: Duration,
    pub rtt: Option<Duration>,
}

impl AccessLog {
    /// A log that writes to `output`.
    pub fn start(format: Format, output: impl Write + Send + 'static) -> std::io::Result<Self> {
        Ok(Self { lines: Some((format, Arc::new(Sink::start(output)?))), lost: Arc::default() })
    }

    /// No log.
    pub fn off() -> Self {
        Self { lines: None, lost: Arc::default() }
    }

    /// Lines lost because they were not written fast enough.
    pub fn lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    pub(super) fn write<'a>(&self, entry: impl FnOnce() -> Entry<'a>) {
        let Some((format, sink)) = &self.lines else { return };
        if !sink.push(&entry().line(*format)) {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl Entry<'_> {
    fn line(&self, format: Format) -> String {
        let mut line = Line::new(format);
        line.plain("time", humantime::format_rfc3339_millis(SystemTime::now()));
        line.plain("direction", self.direction());
        line.plain("outcome", self.outcome());
        self.ends(&mut line);
        line.plain("transport", self.transport);
        line.plain("path", self.labels.path.as_str());
        if let Some(policy) = self.policy {
            line.text("policy", policy);
        }
        line.number("bytes_sent", self.sent);
        line.number("bytes_recv", self.received);
        line.plain("duration", format_args!("{}ms", self.duration.as_millis()));
        if let Some(rtt) = self.rtt {
            line.plain("rtt", format_args!("{}us", rtt.as_micros()));
        }
        match self.ended {
            Ended::Closed => {}
            Ended::Broken(reason) => line.text("error", reason),
            Ended::Failed(flag, reason) => {
                line.plain("response_flags", flag);
                line.text("error", reason);
            }
        }
        line.finish()
    }

    fn direction(&self) -> &'static str {
        match self.labels.reporter {
            Reporter::Source => "outbound",
            Reporter::Destination => "inbound",
        }
    }

    fn outcome(&self) -> &'static str {
        match self.ended {
            Ended::Closed => "closed",
            Ended::Broken(_) => "broken",
            Ended::Failed("DENY", _) => "denied",
            Ended::Failed(..) => "failed",
        }
    }

    fn ends(&self, line: &mut Line) {
        let labels = self.labels;
        line.plain("src.addr", self.client);
        workload(line, ["src.workload", "src.namespace"], labels.source.as_deref());
        if let Some(identity) = &labels.source_identity {
            line.text("src.identity", identity.as_str());
        }
        line.plain("dst.addr", self.destination);
        if let Some(upstream) = self.upstream {
            line.plain("dst.upstream", upstream);
        }
        if let Some(service) = &labels.service {
            line.text("dst.service", &service.hostname);
        }
        workload(line, ["dst.workload", "dst.namespace"], labels.destination.as_deref());
        if let Some(identity) = &labels.destination_identity {
            line.text("dst.identity", identity.as_str());
        }
    }
}

fn workload(line: &mut Line, [name, namespace]: [&str; 2], workload: Option<&Workload>) {
    if let Some(workload) = workload {
        line.text(name, &workload.name);
        line.text(namespace, &workload.namespace);
    }
}
