//! From `tracing` to lines: every event of the program and of its libraries, in one form.

use std::fmt::{Debug, Write as _};
use std::sync::Arc;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::Context;

use crate::line::{Format, Line};
use crate::repeats::Source;
use crate::sink::Sink;

/// Fields that name who caused a line: a client, whoever is at the other end, the namespace of a pod.
const WHO: [&str; 3] = ["client", "peer", "netns"];

/// Fields that tell lines of one cause apart, and none of which a peer makes up.
const WHAT: [&str; 5] = ["message", "pod", "port", "policy", "type"];

/// The start of the targets of our own lines.
const OURS: &str = "mesh_";

/// Makes a line of each event.
pub(crate) struct Events {
    pub format: Format,
    pub sink: Arc<Sink>,
}

impl<S: Subscriber> Layer<S> for Events {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        // Seen once: an event of the `log` crate carries its target as a field.
        let mut seen = Seen::default();
        event.record(&mut seen);
        match seen.source(event) {
            Some(source) => self.sink.push_of(source, || line(self.format, event, &seen)),
            None => self.sink.push(line(self.format, event, &seen)),
        }
    }
}

fn line(format: Format, event: &Event<'_>, seen: &Seen) -> Line {
    let metadata = event.metadata();
    let target = seen.log_target.as_deref().unwrap_or(metadata.target());
    let mut line = Line::of_event(format, *metadata.level(), target);
    event.record(&mut Fields(&mut line));
    line
}

/// What decides whether a line is one of those that a peer can cause at will.
#[derive(Default)]
struct Seen {
    who: Option<String>,
    what: String,
    log_target: Option<String>,
    log_line: Option<u64>,
}

impl Seen {
    /// Whoever asks for details gets all of them. A library's lines name nobody, so that those of one place
    /// count as one cause.
    fn source(&self, event: &Event<'_>) -> Option<Source> {
        let metadata = event.metadata();
        if *metadata.level() > Level::INFO {
            return None;
        }
        let place = metadata.callsite();
        match (&self.who, &self.log_target) {
            (Some(who), _) => Some(Source::new(place, who, &self.what)),
            (None, Some(target)) => Some(Source::new((target, self.log_line), "", "")),
            (None, None) if !metadata.target().starts_with(OURS) => Some(Source::new(place, "", "")),
            (None, None) => None,
        }
    }
}

impl Visit for Seen {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if WHO.contains(&field.name()) {
            self.who.get_or_insert_with(|| format!("{value:?}"));
        } else if WHAT.contains(&name(field)) {
            // What does not show as a character can't stand in any of them.
            let _written = write!(self.what, "{value:?}\0");
        } else if field.name() == "log.target" {
            self.log_target = Some(format!("{value:?}"));
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if field.name() == "log.line" {
            self.log_line = Some(value);
        } else {
            self.record_debug(field, &value);
        }
    }
}

/// Writes an event's fields into a line.
struct Fields<'a>(&'a mut Line);

impl Visit for Fields<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        match name(field) {
            "message" => self.0.message(&format!("{value:?}")),
            // Where the `log` crate puts what every line has.
            name if name.starts_with("log.") => {}
            name => self.0.show(name, format_args!("{value:?}")),
        }
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        if !field.name().starts_with("log.") {
            self.0.number(name(field), value);
        }
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.0.number(name(field), value);
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.0.flag(name(field), value);
    }
}

/// A field's name as it was meant: `type` can only be written as a raw identifier.
fn name(field: &Field) -> &'static str {
    field.name().strip_prefix("r#").unwrap_or(field.name())
}

#[cfg(test)]
mod tests {
    use std::io::{self, Write};
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;

    use tracing::{info, warn};
    use tracing_subscriber::layer::SubscriberExt;

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

    /// What is logged meanwhile, without its times.
    fn logged(format: Format, work: impl FnOnce()) -> Vec<String> {
        let written = Written::default();
        let loss = move |_| Line::of_event(format, Level::WARN, "test");
        let sink = Arc::new(Sink::start("test", written.clone(), Duration::ZERO, loss).unwrap());
        let events = Events { format, sink: Arc::clone(&sink) };
        tracing::subscriber::with_default(tracing_subscriber::registry().with(events), work);
        assert!(sink.flush(Duration::from_secs(10)));
        let text = String::from_utf8(written.0.lock().unwrap().clone()).unwrap();
        let without_time = |line: &str| match format {
            Format::Text => line.split_once("Z ").unwrap().1.to_owned(),
            Format::Json => line.to_owned(),
        };
        text.lines().map(without_time).collect()
    }

    #[test]
    fn an_event_is_a_line_in_which_nothing_is_forged() {
        let bye = "bye\n2026-11-29T00:00:00.000000Z  WARN mesh_agent: FORGED policy=x";
        let say = || {
            let after = Duration::from_millis(5);
            warn!(target: "mesh_x", error = %bye, r#type = "a b", number = 7, ?after, known = true, "it {}", "ended");
        };
        let expected = r#" WARN mesh_x: it ended error="bye\n2026-11-29T00:00:00.000000Z  WARN mesh_agent: FORGED policy=x" type="a b" number=7 after=5ms known=true"#;
        assert_eq!(logged(Format::Text, say), [expected]);
        let lines = logged(Format::Json, say);
        let read: serde_json::Value = serde_json::from_str(&lines.concat()).unwrap();
        assert_eq!((&read["level"], &read["target"]), (&"WARN".into(), &"mesh_x".into()));
        assert!(read["timestamp"].as_str().unwrap().ends_with('Z'));
        let expected = serde_json::json!({
            "message": "it ended", "error": bye, "type": "a b", "number": 7, "after": "5ms", "known": true
        });
        assert_eq!(read["fields"], expected);
    }

    #[test]
    fn what_names_a_peer_is_one_line_for_each_peer_pod_port_and_reason() {
        let lines = logged(Format::Text, || {
            for attempt in 0..100 {
                let peer = format!("10.0.0.{}:{}", attempt % 2, 1000 + attempt);
                warn!(target: "mesh_x", %peer, pod = "shop/web", port = 80, "denied");
            }
            for reason in ["one policy", "another"] {
                warn!(target: "mesh_x", peer = "10.0.0.0:9", pod = "shop/web", port = 80, "{reason}");
            }
        });
        let denied = |line: &&String| line.contains("denied") && line.ends_with("count=49");
        assert_eq!(lines.iter().filter(denied).count(), 2, "{lines:?}");
        assert_eq!(lines.len(), 6, "{lines:?}");
    }

    #[test]
    fn lines_of_ours_that_name_no_peer_and_details_are_all_written() {
        let lines = logged(Format::Text, || {
            for at in 0..50 {
                info!(target: "mesh_x", at, "certificate signed");
                tracing::debug!(target: "mesh_x", at, peer = "10.0.0.1:1", "detail");
            }
        });
        assert_eq!(lines.len(), 100);
    }

    #[test]
    fn what_a_library_says_over_and_over_is_counted() {
        let lines = logged(Format::Text, || {
            (0..50).for_each(|at| warn!(target: "library", at, "again"));
        });
        assert_eq!(lines, [" WARN library: again at=0", " WARN library: again at=1 count=49"]);
    }
}
