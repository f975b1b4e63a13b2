//! Limits that processes hand on to those that they start.

use rustix::process::{Resource, getrlimit, setrlimit};

use super::{During, HostError};

/// Lets this process, and those that it starts, open as many files as the machine allows: a load generator or
/// a server with ten thousand connections needs them.
pub fn raise_open_files() -> Result<(), HostError> {
    let mut files = getrlimit(Resource::Nofile);
    files.current = files.maximum;
    setrlimit(Resource::Nofile, files).during(|| "raise the limit of open files".to_owned())
}
