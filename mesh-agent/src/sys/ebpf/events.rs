//! What the programs report: faults through a ring buffer, and debug lines through aya-log.

use std::io;
use std::net::{IpAddr, SocketAddr};

use aya::maps::{MapData, RingBuf};
use aya_log::{EbpfLogger, Level};
use mesh_common::fault::{Event, Fault};
use mesh_common::record;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::{Error, Programs, map_error};

/// The ring of faults. It is read on the runtime that it was made on.
pub struct EventLog {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl EventLog {
    /// Takes the ring out of the loaded object. Must be called inside a tokio runtime.
    pub fn new(programs: &mut Programs) -> Result<Self, Error> {
        let map = programs.object().take_map("EVENTS").ok_or(Error::Missing("EVENTS"))?;
        let ring = map.try_into().map_err(map_error("EVENTS"))?;
        Ok(Self { ring: register(ring)? })
    }

    /// Logs faults as they come and tells `counted` of each; ends only with an error of the runtime.
    pub async fn run(mut self, mut counted: impl FnMut(Fault)) -> io::Result<()> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            while let Some(item) = ready.get_inner_mut().next() {
                if let Some((fault, event)) = record::event(&item) {
                    report(fault, event);
                    counted(fault);
                }
            }
            ready.clear_ready();
        }
    }
}

fn report(fault: Fault, event: Event) {
    let destination = SocketAddr::new(IpAddr::from(event.destination.address), event.destination.port);
    warn!(netns = event.netns, %destination, verdict = ?fault.verdict(), "eBPF: {}", fault.describe());
}

/// The debug lines of the programs, passed on to the agent's own log.
pub struct Log {
    logger: AsyncFd<EbpfLogger<&'static dyn log::Log>>,
}

impl Log {
    /// Takes the log ring out of the loaded object. Must be called inside a tokio runtime.
    pub fn new(programs: &mut Programs) -> Result<Self, Error> {
        let logger = EbpfLogger::init(programs.object()).map_err(|_| Error::Missing("AYA_LOGS"))?;
        Ok(Self { logger: register(logger)? })
    }

    /// Passes lines on as they come; ends only with an error of the runtime.
    pub async fn run(mut self) -> io::Result<()> {
        loop {
            let mut ready = self.logger.readable_mut().await?;
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }
}

fn register<T: std::os::fd::AsRawFd>(source: T) -> Result<AsyncFd<T>, Error> {
    // SAFETY: called for the two ring types above only; both own their descriptor, keep it open until they are
    // dropped, always answer the same one, and are owned by the `AsyncFd` from here on. There is no safe way: the
    // safe constructors are deprecated as unsound for types that could break this promise.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(source, Interest::READABLE) };
    registered.map_err(|error| Error::Path { path: "epoll".into(), error: error.into() })
}

/// The level for the programs' own log: theirs is per connection, so only debug and below ask for it.
pub fn ebpf_log_level() -> Level {
    match tracing::level_filters::LevelFilter::current().into_level() {
        Some(tracing::Level::TRACE) => Level::Trace,
        Some(tracing::Level::DEBUG) => Level::Debug,
        _ => Level::Warn,
    }
}
