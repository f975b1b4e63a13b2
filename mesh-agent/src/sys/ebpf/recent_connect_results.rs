//! The map with the result of each pod's last connection to a destination.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, Map, MapData};
use mesh_common::deferred_accept::{RECENT_ACCEPT_TTL_NS, RecentResult};
use mesh_common::direct::DirectRouteKey;
use mesh_common::maps::{AddressPort, RECENT_REFUSAL_TTL_NS};

use super::direct_routes_and_events::monotonic_nanos;
use super::{Error, map_error};

/// The result of each pod's last connection to a destination. For a short time the kernel goes by it: it
/// refuses the next ones itself, or takes them to the proxy without having them wait.
pub struct RecentConnectResults(Mutex<HashMap<MapData, DirectRouteKey, RecentResult>>);

impl RecentConnectResults {
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        Ok(Self(Mutex::new(Map::LruHashMap(map).try_into().map_err(map_error("LATELY"))?)))
    }

    /// Notes that every endpoint of a destination that was tried refused the pod with this network namespace.
    pub fn note_refused(&self, client: u64, destination: SocketAddr) {
        self.note(client, destination, RecentResult::new(monotonic_nanos() + RECENT_REFUSAL_TTL_NS, true));
    }

    /// Notes that the destination has taken the pod's connection.
    pub fn note_accepted(&self, client: u64, destination: SocketAddr) {
        self.skip_deferral(client, destination, RECENT_ACCEPT_TTL_NS);
    }

    /// Has the pod's next connections there not be deferred for `lasts` nanoseconds.
    pub fn skip_deferral(&self, client: u64, destination: SocketAddr, lasts: u64) {
        self.note(client, destination, RecentResult::new(monotonic_nanos() + lasts, false));
    }

    fn note(&self, client: u64, destination: SocketAddr, lately: RecentResult) {
        let endpoint = AddressPort::new(destination.ip().to_canonical().into(), destination.port());
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = recent.insert(DirectRouteKey::new(client, endpoint), lately, 0) {
            tracing::debug!(%destination, %error, "what became of a connection is not remembered");
        }
    }
}
