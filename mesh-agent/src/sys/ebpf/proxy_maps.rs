//! The maps that the keeper hands to the proxy.

use std::os::fd::OwnedFd;

use aya::maps::MapData;

use super::deferred_accept::{Decisions, DeferredSyns};
use super::known_addresses::{KnownAddresses, RecentResults};
use super::veth::{CROWDED, DirectVeths, PodLinkMap, VETH_COUNTS, VETH_FLOWS, VETHS};
use super::{DirectKernel, EgressMap, Error, EventLog, PEER, PeerMap, map_error};

/// Names of the maps, in the order in which they are handed over.
pub const PROXY_MAPS: [&str; 18] = [
    "DESTINATIONS",
    "OPEN_PORTS",
    "LATELY",
    "DEFERRED_SYNS",
    "DECISIONS",
    PEER,
    "ROUTES",
    "PULSE",
    "DIRECT_FLOWS",
    "PROBES",
    "DIRECT_OPEN",
    "DIRECT_EVENTS",
    "EVENTS",
    VETHS,
    VETH_FLOWS,
    CROWDED,
    VETH_COUNTS,
    "EGRESS",
];

/// The maps, by descriptor.
pub struct ProxyMaps {
    destinations: OwnedFd,
    open_ports: OwnedFd,
    lately: OwnedFd,
    held: OwnedFd,
    decisions: OwnedFd,
    peer: OwnedFd,
    routes: OwnedFd,
    pulse: OwnedFd,
    direct_flows: OwnedFd,
    probes: OwnedFd,
    direct_open: OwnedFd,
    direct_events: OwnedFd,
    events: OwnedFd,
    veths: OwnedFd,
    veth_flows: OwnedFd,
    crowded: OwnedFd,
    veth_counts: OwnedFd,
    egress: OwnedFd,
}

impl ProxyMaps {
    /// Takes maps in the order of [`PROXY_MAPS`].
    pub fn new(maps: [OwnedFd; PROXY_MAPS.len()]) -> Self {
        let [
            destinations,
            open_ports,
            lately,
            held,
            decisions,
            peer,
            routes,
            pulse,
            direct_flows,
            probes,
            direct_open,
            direct_events,
            events,
            veths,
            veth_flows,
            crowded,
            veth_counts,
            egress,
        ] = maps;
        Self {
            destinations,
            open_ports,
            lately,
            held,
            decisions,
            peer,
            routes,
            pulse,
            direct_flows,
            probes,
            direct_open,
            direct_events,
            events,
            veths,
            veth_flows,
            crowded,
            veth_counts,
            egress,
        }
    }

    /// Returns one worker's handle. Errors: the map is of another kind.
    pub fn peer_map(&self) -> Result<PeerMap, Error> {
        let copy = self.peer.try_clone().map_err(|error| Error::Path { path: PEER.into(), error })?;
        PeerMap::new(copy)
    }

    /// Returns the map of how this node's pods are connected. Errors: the map is of another kind.
    pub fn pod_links(&self) -> Result<PodLinkMap, Error> {
        let copy = self.veths.try_clone().map_err(|error| Error::Path { path: VETHS.into(), error })?;
        PodLinkMap::new(map(VETHS, copy)?)
    }

    /// Returns the maps of connections' results and of decisions, and the deferred SYNs. Errors: a map is of
    /// another kind.
    pub fn outcomes(&self) -> Result<(RecentResults, Decisions, DeferredSyns), Error> {
        let copy = |name: &'static str, of: &OwnedFd| {
            let copy = of.try_clone().map_err(|error| Error::Path { path: name.into(), error })?;
            map(name, copy)
        };
        Ok((
            RecentResults::new(copy("LATELY", &self.lately)?)?,
            Decisions::new(copy("DECISIONS", &self.decisions)?)?,
            DeferredSyns::new(copy("DEFERRED_SYNS", &self.held)?)?,
        ))
    }

    /// Opens the other maps, and the programs' events. Call this inside a tokio runtime. Errors: a map is of
    /// another kind or can't be read.
    pub fn open(self) -> Result<(KnownAddresses, DirectKernel, EventLog, EgressMap), Error> {
        let open_ports = map("OPEN_PORTS", self.open_ports)?;
        Ok((
            KnownAddresses::new(map("DESTINATIONS", self.destinations)?, open_ports)?,
            DirectKernel::new(
                map("ROUTES", self.routes)?,
                map("PULSE", self.pulse)?,
                map("DIRECT_FLOWS", self.direct_flows)?,
                map("PROBES", self.probes)?,
                map("DIRECT_OPEN", self.direct_open)?,
                map("DIRECT_EVENTS", self.direct_events)?,
                DirectVeths::new(
                    map(VETH_FLOWS, self.veth_flows)?,
                    map(CROWDED, self.crowded)?,
                    map(VETH_COUNTS, self.veth_counts)?,
                )?,
            )?,
            EventLog::new(map("EVENTS", self.events)?)?,
            EgressMap::new(map("EGRESS", self.egress)?)?,
        ))
    }
}

pub(super) fn map(name: &'static str, descriptor: OwnedFd) -> Result<MapData, Error> {
    MapData::from_fd(descriptor).map_err(map_error(name))
}
