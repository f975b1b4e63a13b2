//! The access log: one line for each connection or HTTP request, when it ends (docs/wire.md, Access log).
//!
//! Lines are formatted by the worker and written by a thread of their own. A log that is not read fast enough
//! loses lines, which are counted; it never holds up a worker. Refused connections have one line for each
//! client, destination and second, with a count, since a client can make any number of them.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use http::StatusCode;
use mesh_api::plan::Workload;
use mesh_log::{Line, Sink, Source};

pub use mesh_log::Format;

use super::connection_details::ConnectionDetails;
use super::connection_record::ConnectionOutcome;
use super::request_record::{RequestFlag, RequestMessage};
use super::response_flag::ResponseFlag;

/// How long the writer gathers lines before it writes.
const GATHER: Duration = Duration::from_millis(50);

/// The access log that all workers write to.
#[derive(Clone)]
pub struct AccessLog {
    lines: Option<(Format, Arc<Sink>)>,
}

/// One connection that ended.
pub(super) struct ConnectionLogEntry<'a> {
    pub details: &'a ConnectionDetails,
    pub outcome: &'a ConnectionOutcome,
    pub sent: u64,
    pub received: u64,
    pub duration: Duration,
    pub rtt: Option<Duration>,
}

impl AccessLog {
    /// Starts the writer's thread. Errors: the thread can't be started.
    pub fn start(format: Format, output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let sink = Sink::start("access-log", output, GATHER, move |lines| {
            let mut line = begin(format);
            line.number("lost", lines);
            line
        })?;
        Ok(Self { lines: Some((format, Arc::new(sink))) })
    }

    /// Creates a log that writes nothing.
    pub fn disabled() -> Self {
        Self { lines: None }
    }

    /// Whether lines are written.
    pub(super) fn is_written(&self) -> bool {
        self.lines.is_some()
    }

    /// Returns the number of lines lost because they were not written fast enough.
    pub fn lost_line_count(&self) -> u64 {
        self.lines.as_ref().map_or(0, |(_, sink)| sink.lost())
    }

    pub(super) fn write_request<'a>(&self, entry: impl FnOnce() -> RequestLogEntry<'a>) {
        let Some((format, sink)) = &self.lines else { return };
        sink.push(entry().line(*format));
    }

    pub(super) fn write_entry<'a>(&self, entry: impl FnOnce() -> ConnectionLogEntry<'a>) {
        let Some((format, sink)) = &self.lines else { return };
        let entry = entry();
        match entry.refused() {
            Some(source) => sink.push_of(source, || entry.line(*format)),
            None => sink.push(entry.line(*format)),
        }
    }
}

/// One HTTP request that ended.
pub(super) struct RequestLogEntry<'a> {
    pub details: &'a ConnectionDetails,
    pub message: &'a RequestMessage,
    pub status: Option<StatusCode>,
    pub flag: Option<RequestFlag>,
    pub reason: &'a str,
    pub duration: Duration,
}

impl RequestLogEntry<'_> {
    fn line(&self, format: Format) -> Line {
        let Self { details, message, .. } = self;
        let mut line = begin(format);
        line.show("direction", details.labels.reporter.direction());
        line.show("protocol", if message.is_grpc { "grpc" } else { "http" });
        line.text("method", &message.method);
        line.text("authority", &message.authority);
        line.text("path", &message.path);
        line.number("status", self.status.map_or(0, |status| status.as_u16().into()));
        line.show("response_flags", self.flag.map_or("-", RequestFlag::as_str));
        if let Some(outcome) = message.grpc_status {
            line.number("grpc_status", u64::from(outcome));
        }
        if !message.route.is_empty() {
            line.text("route", &message.route);
        }
        ends(details, &mut line);
        line.show("transport", details.transport);
        if let Some(policy) = &details.policy {
            line.text("policy", policy);
        }
        line.number("attempts", u64::from(message.attempts));
        line.number("bytes_sent", message.body_bytes.0);
        line.number("bytes_recv", message.body_bytes.1);
        line.show("duration", format_args!("{}ms", self.duration.as_millis()));
        if !self.reason.is_empty() {
            line.text("error", self.reason);
        }
        line
    }
}

fn begin(format: Format) -> Line {
    let mut line = Line::of_fields(format);
    line.show("time", humantime::format_rfc3339_millis(SystemTime::now()));
    line
}

impl ConnectionLogEntry<'_> {
    /// Returns what lines of refused connections are counted by; none if the connection was not refused.
    fn refused(&self) -> Option<Source> {
        let ConnectionOutcome::Failed(flag, _) = self.outcome else { return None };
        Some(Source::new(
            (self.details.labels.reporter.direction(), flag.as_str()),
            &self.details.client.to_string(),
            self.details.destination,
        ))
    }

    fn line(&self, format: Format) -> Line {
        let mut line = begin(format);
        line.show("direction", self.details.labels.reporter.direction());
        line.show("outcome", self.outcome());
        ends(self.details, &mut line);
        line.show("transport", self.details.transport);
        line.show("path", self.details.labels.path.as_str());
        if let Some(policy) = &self.details.policy {
            line.text("policy", policy);
        }
        line.number("bytes_sent", self.sent);
        line.number("bytes_recv", self.received);
        line.show("duration", format_args!("{}ms", self.duration.as_millis()));
        if let Some(rtt) = self.rtt {
            line.show("rtt", format_args!("{}us", rtt.as_micros()));
        }
        match self.outcome {
            ConnectionOutcome::Closed => {}
            ConnectionOutcome::Broken(reason) => line.text("error", reason),
            ConnectionOutcome::Expired(expiry) => line.text("error", &expiry.to_string()),
            ConnectionOutcome::Failed(flag, reason) => {
                line.show("response_flags", flag);
                line.text("error", reason);
            }
        }
        line
    }

    fn outcome(&self) -> &'static str {
        match self.outcome {
            ConnectionOutcome::Closed => "closed",
            ConnectionOutcome::Broken(_) => "broken",
            ConnectionOutcome::Expired(_) => "expired",
            ConnectionOutcome::Failed(ResponseFlag::Denied, _) => "denied",
            ConnectionOutcome::Failed(..) => "failed",
        }
    }
}

/// Writes who talks to whom.
fn ends(details: &ConnectionDetails, line: &mut Line) {
    let ConnectionDetails { labels, client, destination, upstream, .. } = details;
    line.show("src.addr", client);
    workload(line, ["src.workload", "src.namespace"], labels.source.as_deref());
    if let Some(identity) = &labels.source_identity {
        line.text("src.identity", identity.as_str());
    }
    line.show("dst.addr", destination);
    if let Some(upstream) = upstream {
        line.show("dst.upstream", upstream);
    }
    if let Some(service) = &labels.service {
        line.text("dst.service", &service.hostname);
    }
    workload(line, ["dst.workload", "dst.namespace"], labels.destination.as_deref());
    if let Some(identity) = &labels.destination_identity {
        line.text("dst.identity", identity.as_str());
    }
}

fn workload(line: &mut Line, [name, namespace]: [&str; 2], workload: Option<&Workload>) {
    if let Some(workload) = workload {
        line.text(name, &workload.name);
        line.text(namespace, &workload.namespace);
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::net::SocketAddr;
    use std::sync::{Mutex, PoisonError};

    use super::super::connection_record::ConnectionRecord;
    use super::super::traffic_labels::Reporter;
    use super::super::worker_metrics::WorkerMetrics;
    use super::*;

    #[derive(Clone, Default)]
    struct Written(Arc<Mutex<Vec<u8>>>);

    impl Write for Written {
        fn write(&mut self, piece: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).extend_from_slice(piece);
            Ok(piece.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn refused_connections_are_counted_and_others_have_a_line_each() {
        let written = Written::default();
        let worker = WorkerMetrics::new(AccessLog::start(Format::Text, written.clone()).unwrap());
        for port in 1..=100 {
            let client = SocketAddr::new("10.0.0.1".parse().unwrap(), port);
            let destination = "10.0.0.2:80".parse().unwrap();
            let details = ConnectionDetails::new(Reporter::Destination, client, destination);
            ConnectionRecord::new(&worker, details.clone()).record_outcome(
                &ConnectionOutcome::Failed(ResponseFlag::Denied, "by\npolicy".to_owned()),
                (0, 0),
            );
            ConnectionRecord::new(&worker, details).record_outcome(&ConnectionOutcome::Closed, (1, 1));
        }
        drop(worker);
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let lines = |outcome: &str| text.lines().filter(|line| line.contains(outcome)).collect::<Vec<_>>();
        assert_eq!(lines("outcome=closed").len(), 100);
        let denied = lines("outcome=denied");
        assert!(denied.len() == 2 && denied[1].ends_with(r#" error="by\npolicy" count=99"#), "{denied:?}");
    }
}
