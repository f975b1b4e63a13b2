//! The ring buffer in which the programs report faults.

use std::io;
use std::net::SocketAddr;

use aya::maps::{Map, MapData, RingBuf};
use mesh_common::fault::{Fault, FaultEvent};
use mesh_common::ring_records;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tracing::warn;

use super::{Error, map_error};

/// The ring of faults, read on the runtime that it was made on.
pub struct FaultRing {
    ring: AsyncFd<RingBuf<MapData>>,
}

impl FaultRing {
    /// Opens the ring of a map. Call this inside a tokio runtime.
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        let ring = Map::RingBuf(map).try_into().map_err(map_error("EVENTS"))?;
        Ok(Self { ring: register_ring(ring)? })
    }

    /// Logs faults as they come, without refusals on purpose, and calls `notify` for each. Ends only with an
    /// error of the runtime.
    pub async fn log_faults_and_pass_on(
        mut self,
        mut notify: impl FnMut(Fault, FaultEvent),
    ) -> io::Result<()> {
        loop {
            let mut ready = self.ring.readable_mut().await?;
            while let Some(item) = ready.get_inner_mut().next() {
                if let Some((fault, event)) = ring_records::parse_fault_event(&item) {
                    // Refusals on purpose are logged elsewhere.
                    if !matches!(fault, Fault::EgressRefused | Fault::NobodyThere | Fault::RefusedLately) {
                        report(fault, event);
                    }
                    notify(fault, event);
                }
            }
            ready.clear_ready();
        }
    }
}

fn report(fault: Fault, event: FaultEvent) {
    let destination = SocketAddr::from(event.destination);
    warn!(netns = event.netns, %destination, verdict = ?fault.fail_mode(), "eBPF: {}", fault.describe());
}

/// Registers a ring buffer with the current runtime, to wait until it can be read. Errors: the runtime's.
pub(super) fn register_ring(ring: RingBuf<MapData>) -> Result<AsyncFd<RingBuf<MapData>>, Error> {
    // SAFETY: the ring owns its descriptor, keeps it open until it is dropped, always returns the same one,
    // and is owned by the `AsyncFd` from here on. There is no safe way: the safe constructors are deprecated
    // as unsound for types that could break this promise.
    #[allow(unsafe_code)]
    let registered = unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) };
    registered.map_err(|error| Error::Path { path: "epoll".into(), error: error.into() })
}
