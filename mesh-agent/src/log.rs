//! The log of both processes: lines on standard error, leaving standard output to the access log.

use std::error::Error;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, reload};

use crate::admin::SetLogFilter;
use crate::config::{Config, LogFormat};

/// Starts it. Answers how to change what is logged.
pub fn start(config: &Config) -> Result<SetLogFilter, Box<dyn Error>> {
    let (filter, handle) = reload::Layer::new(filter(&config.log)?);
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false);
    let registry = tracing_subscriber::registry().with(filter);
    match config.log_format {
        LogFormat::Text => registry.with(lines).try_init()?,
        LogFormat::Json => registry.with(lines.json()).try_init()?,
    }
    Ok(Box::new(move |text| {
        let filter = self::filter(text).map_err(|error| error.to_string())?;
        handle.reload(filter).map_err(|error| error.to_string())
    }))
}

/// Has the first panic of any thread logged and end the process. A runtime goes on without a task that panicked: nobody
/// would accept connections, or hold them to policy, and nobody would notice. The keeper starts another proxy.
pub fn end_with_a_panic() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        // Lines are written as they are logged: none is lost.
        tracing::error!(thread = thread.name(), "{panic}");
        std::process::abort();
    }));
}

/// The Kubernetes client's own lines say again, with less, what is logged where it matters.
fn filter(text: &str) -> Result<EnvFilter, Box<dyn Error>> {
    Ok(EnvFilter::try_new(text)?.add_directive("kube_client=off".parse()?))
}
