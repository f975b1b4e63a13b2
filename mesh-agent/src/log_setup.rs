//! Starts the log of either process: lines on standard error; standard output is the access log's.

use mesh_log::{Error, Format};

use crate::admin::SetLogFilterFn;
use crate::config::{Config, LogFormat};

/// Starts the log, with a thread that writes its lines. Returns how to change the filter. Errors: the filter
/// is not valid, or the thread can't be started.
pub fn start_with_filter_setter(config: &Config) -> Result<SetLogFilterFn, Error> {
    let format = match config.log_format {
        LogFormat::Text => Format::Text,
        LogFormat::Json => Format::Json,
    };
    let log = mesh_log::start(&config.log, format)?;
    Ok(Box::new(move |filter| log.set_filter(filter).map_err(|error| error.to_string())))
}
