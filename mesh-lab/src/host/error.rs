//! What can go wrong with the machine; all of it is the operator's to mend.

use std::io;

/// The machine refused something.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A system call failed.
    #[error("could not {doing}: {source}")]
    Os {
        /// What was being done, as the rest of "could not …".
        doing: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// A program such as `ip` or `nft` ended with a failure.
    #[error("`{program}` failed ({status}): {stderr}")]
    Program {
        /// Which.
        program: &'static str,
        /// How it ended.
        status: std::process::ExitStatus,
        /// What it complained of.
        stderr: String,
    },
    /// Processes outlived their kill.
    #[error("processes of {cgroup} are still there after {seconds} s; see its cgroup.procs")]
    StillRunning {
        /// The cgroup.
        cgroup: String,
        /// How long was waited.
        seconds: u64,
    },
}

/// Says what was being done when an [`io::Error`] came up.
pub trait During<T> {
    /// Wraps the error; `doing` is the rest of "could not …".
    fn during(self, doing: impl FnOnce() -> String) -> Result<T, HostError>;
}

impl<T, E: Into<io::Error>> During<T> for Result<T, E> {
    fn during(self, doing: impl FnOnce() -> String) -> Result<T, HostError> {
        self.map_err(|error| HostError::Os { doing: doing(), source: error.into() })
    }
}
