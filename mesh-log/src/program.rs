//! The log of a whole program: on standard error, from its start to its last words.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tracing::Level;
use tracing_subscriber::filter::ParseError;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::{SubscriberInitExt, TryInitError};
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::events::Events;
use crate::line::{Format, Line};
use crate::sink::Sink;

/// How long the end of a program waits for whoever reads its log.
const LAST_WRITE: Duration = Duration::from_secs(1);

/// The program's log, once it has begun.
static SINK: OnceLock<Arc<Sink>> = OnceLock::new();

/// Why there is no log.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The filter can't be understood.
    #[error(transparent)]
    Filter(#[from] ParseError),
    /// Standard error can't be used, or no thread be started.
    #[error("standard error: {0}")]
    Output(#[from] io::Error),
    /// It was started before.
    #[error(transparent)]
    Twice(#[from] TryInitError),
    /// It is over.
    #[error(transparent)]
    Gone(#[from] reload::Error),
}

/// Changes what is logged.
pub struct Log(reload::Handle<EnvFilter, Registry>);

/// Starts the program's log on standard error. `filter` is a level, or a filter such as
/// `info,mesh_proxy=debug`. The thread that writes has the caller's privileges and signal mask, so these come
/// first.
pub fn start(filter: &str, format: Format) -> Result<Log, Error> {
    let (filter, handle) = reload::Layer::new(parse(filter)?);
    let sink = Arc::new(standard_error(format)?);
    tracing_subscriber::registry()
        .with(filter)
        .with(Events { format, sink: Arc::clone(&sink) })
        .try_init()?;
    let _the_first = SINK.set(sink);
    Ok(Log(handle))
}

impl Log {
    /// Changes what is logged from now on.
    pub fn set_filter(&self, filter: &str) -> Result<(), Error> {
        Ok(self.0.reload(parse(filter)?)?)
    }
}

/// The Kubernetes client's own lines say again, with less, what is logged where it matters.
fn parse(filter: &str) -> Result<EnvFilter, Error> {
    Ok(EnvFilter::try_new(filter)?.add_directive("kube_client=off".parse()?))
}

/// Lines of the program's log that were lost because nobody read it fast enough.
pub fn lost() -> u64 {
    SINK.get().map_or(0, |sink| sink.lost())
}

/// Writes what waits, for so long as whoever reads may be expected to. To be called before the program ends.
pub fn flush() {
    if let Some(sink) = SINK.get() {
        let _in_time = sink.flush(LAST_WRITE);
    }
}

/// Says something, and waits until it is out, if it comes out at all: why a program ends, before it has a log
/// too.
pub fn call_out(lines: &[String]) {
    let tell = |sink: &Sink| {
        lines.iter().for_each(|line| sink.push(Line::of_words(line)));
        let _in_time = sink.flush(LAST_WRITE);
    };
    match SINK.get() {
        Some(sink) => tell(sink),
        // Without a thread nothing could be waited for in time.
        None => standard_error(Format::Text).iter().for_each(tell),
    }
}

/// Has panics of any thread logged, and then `end` called. The library's own way writes to standard error at
/// once, and waits for it.
pub fn log_panics(end: impl Fn() + Send + Sync + 'static) {
    std::panic::set_hook(Box::new(move |panic| {
        let thread = std::thread::current();
        tracing::error!(thread = thread.name(), "{panic}");
        flush();
        end();
    }));
}

/// Lines of the two processes of an agent are few: each is written as it comes.
fn standard_error(format: Format) -> io::Result<Sink> {
    // A descriptor of its own: whoever writes by the library's handle would wait for the writer's lock on it.
    // The open file stays as it is, since others have it as well: made non-blocking it would be so for them.
    let output = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    Sink::start("log", output, Duration::ZERO, move |lines| {
        let mut line = Line::of_event(format, Level::WARN, env!("CARGO_CRATE_NAME"));
        line.message("lines of the log were lost: nobody read them in time");
        line.number("lines", lines);
        line
    })
}
