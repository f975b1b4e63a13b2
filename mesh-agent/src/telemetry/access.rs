//! The access log: one line for each connection, when it ends (wire reference 8.2).
//!
//! Lines are formatted by the worker and written by a thread of their own. A log that nobody reads fast enough loses
//! lines, which are counted; it never holds up a worker.

use std::fmt::Write as _;
use std::io::{BufWriter, Write};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::time::{Duration, SystemTime};

use mesh_api::plan::Workload;
use serde_json::{Map, Value};

use super::labels::{Labels, Reporter};
use super::record::Ended;

/// Lines that may wait to be written.
const QUEUE: usize = 8192;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `key=value` pairs.
    Text,
    /// One JSON object.
    Json,
}

/// Where the workers' lines go.
#[derive(Clone)]
pub struct AccessLog {
    lines: Option<(Format, SyncSender<String>)>,
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
}

impl AccessLog {
    /// A log that writes to `output`.
    pub fn start(format: Format, output: impl Write + Send + 'static) -> std::io::Result<Self> {
        let (sender, receiver) = sync_channel(QUEUE);
        std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || write_lines(&receiver, BufWriter::new(output)))?;
        Ok(Self { lines: Some((format, sender)), lost: Arc::default() })
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
        let Some((format, lines)) = &self.lines else { return };
        let fields = entry().fields();
        let line = match format {
            Format::Text => text(&fields),
            Format::Json => Value::Object(fields.into_iter().collect::<Map<_, _>>()).to_string(),
        };
        if lines.try_send(line).is_err() {
            self.lost.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Writes until every worker is gone. What is queued goes out in one piece.
fn write_lines(lines: &Receiver<String>, mut output: impl Write) {
    while let Ok(first) = lines.recv() {
        let mut next = Some(first);
        while let Some(line) = next {
            // An output that is gone (a closed pipe) loses the line and nothing else.
            let _lost = writeln!(output, "{line}");
            next = lines.try_recv().ok();
        }
        let _lost = output.flush();
    }
}

impl Entry<'_> {
    fn fields(&self) -> Vec<(String, Value)> {
        let labels = self.labels;
        let mut fields = Fields(Vec::with_capacity(24));
        fields.add("time", timestamp());
        fields.add(
            "direction",
            match labels.reporter {
                Reporter::Source => "outbound",
                Reporter::Destination => "inbound",
            },
        );
        fields.add(
            "outcome",
            match self.ended {
                Ended::Closed => "closed",
                Ended::Broken(_) => "broken",
                Ended::Failed("DENY", _) => "denied",
                Ended::Failed(..) => "failed",
            },
        );
        fields.add("src.addr", self.client.to_string());
        fields.workload("src", labels.source.as_deref());
        fields.maybe("src.identity", labels.source_identity.as_ref().map(ToString::to_string));
        fields.add("dst.addr", self.destination.to_string());
        fields.maybe("dst.upstream", self.upstream.map(|it| it.to_string()));
        fields.maybe("dst.service", labels.service.as_ref().map(|it| it.hostname.to_string()));
        fields.workload("dst", labels.destination.as_deref());
        fields.maybe("dst.identity", labels.destination_identity.as_ref().map(ToString::to_string));
        fields.add("transport", self.transport);
        fields.maybe("policy", self.policy.map(str::to_owned));
        fields.add("bytes_sent", self.sent);
        fields.add("bytes_recv", self.received);
        fields.add("duration", format!("{}ms", self.duration.as_millis()));
        match self.ended {
            Ended::Closed => {}
            Ended::Broken(reason) => fields.add("error", reason.as_str()),
            Ended::Failed(flag, reason) => {
                fields.add("response_flags", *flag);
                fields.add("error", reason.as_str());
            }
        }
        fields.0
    }
}

struct Fields(Vec<(String, Value)>);

impl Fields {
    fn add(&mut self, name: &str, value: impl Into<Value>) {
        self.0.push((name.to_owned(), value.into()));
    }

    fn maybe(&mut self, name: &str, value: Option<String>) {
        if let Some(value) = value {
            self.add(name, value);
        }
    }

    fn workload(&mut self, end: &str, workload: Option<&Workload>) {
        let Some(workload) = workload else { return };
        self.add(&format!("{end}.workload"), workload.name.to_string());
        self.add(&format!("{end}.namespace"), workload.namespace.to_string());
    }
}

/// Values with spaces or quotes are quoted, as `logfmt` readers expect.
fn text(fields: &[(String, Value)]) -> String {
    let mut line = String::with_capacity(384);
    for (name, value) in fields {
        let separator = if line.is_empty() { "" } else { " " };
        // Writing to a string does not fail.
        let _written = match value {
            Value::String(plain) if !plain.is_empty() && !plain.contains([' ', '"', '=', '\n', '\\']) => {
                write!(line, "{separator}{name}={plain}")
            }
            other => write!(line, "{separator}{name}={other}"),
        };
    }
    line
}

/// Now, as RFC 3339 in UTC with milliseconds.
fn timestamp() -> String {
    humantime::format_rfc3339_millis(SystemTime::now()).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_is_quoted_where_it_must_be() {
        let fields = [
            ("plain".to_owned(), Value::from("10.0.0.1:80")),
            ("spaced".to_owned(), Value::from("denied by \"x\"\nnew")),
            ("number".to_owned(), Value::from(5_u64)),
        ];
        assert_eq!(text(&fields), r#"plain=10.0.0.1:80 spaced="denied by \"x\"\nnew" number=5"#);
    }
}
