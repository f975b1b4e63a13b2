//! Deferred accepts ([`mesh_common::deferred_accept`]) as the proxy sees them: connections whose SYN waits at
//! its outbound listeners.

use std::io;
use std::os::fd::AsFd;
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, Map, MapData, RingBuf};
use mesh_common::deferred_accept::{DECISION_TTL_NS, DeferredSyn, SynDecision};
use mesh_common::maps::NetnsConnection;
use mesh_common::ring_records;
use rustix::event::{PollFd, PollFlags, poll};

use super::direct_routes_and_events::monotonic_nanos;
use super::{Error, map_error};

/// Age of a SYN, nanoseconds, from which it is not handled: its kernel sends it again soon. It came before
/// there was a proxy to ask.
const STALE: u64 = 1_000_000_000;

/// The deferred SYNs, as they come.
pub struct DeferredSyns(RingBuf<MapData>);

impl DeferredSyns {
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        Ok(Self(Map::RingBuf(map).try_into().map_err(map_error("DEFERRED_SYNS"))?))
    }

    /// Waits for SYNs, and calls `told` with each. Call this on a thread that may block. Errors: those of
    /// `poll(2)`.
    pub fn wait_for_syns(&mut self, mut told: impl FnMut(DeferredSyn)) -> io::Result<()> {
        let mut readable = [PollFd::from_borrowed_fd(self.0.as_fd(), PollFlags::IN)];
        match poll(&mut readable, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        while let Some(item) = self.0.next() {
            if let Some(syn) = ring_records::parse_deferred_syn(&item)
                && monotonic_nanos() < syn.at + STALE
            {
                told(syn);
            }
        }
        Ok(())
    }
}

/// The map of what becomes of deferred SYNs.
pub struct SynDecisions(Mutex<HashMap<MapData, NetnsConnection, SynDecision>>);

impl SynDecisions {
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        Ok(Self(Mutex::new(Map::LruHashMap(map).try_into().map_err(map_error("DECISIONS"))?)))
    }

    /// Decides on the SYN that is about to be sent again for this connection: it is let through, or refused.
    /// Errors: the map can't be written.
    pub fn set_decision(&self, connection: &NetnsConnection, refused: bool) -> Result<(), Error> {
        let mut decisions = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let decision = SynDecision::new(monotonic_nanos() + DECISION_TTL_NS, refused);
        decisions.insert(connection, decision, 0).map_err(map_error("DECISIONS"))
    }
}
