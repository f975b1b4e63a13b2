//! The maps that the keeper hands to the proxy.

use std::os::fd::OwnedFd;

use aya::maps::MapData;

use super::deferred_syns_and_decisions::{DeferredSyns, SynDecisions};
use super::destination_maps::DestinationMaps;
use super::pod_link_maps::{PodLinkMap, VETHS};
use super::recent_connect_results::RecentConnectResults;
use super::veth_flow_maps::{CROWDED, VETH_COUNTS, VETH_FLOWS, VethFlowMaps};
use super::{DirectMaps, EgressMap, Error, FaultRing, PEER, SocketAddressMap, map_error};

/// Names of the maps, in the order in which they are handed over.
pub const PROXY_MAP_NAMES: [&str; 18] = [
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
pub struct MapsHandedToProxy {
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

impl MapsHandedToProxy {
    /// Takes maps in the order of [`PROXY_MAP_NAMES`].
    pub fn new(maps: [OwnedFd; PROXY_MAP_NAMES.len()]) -> Self {
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
    pub fn socket_address_map(&self) -> Result<SocketAddressMap, Error> {
        let copy = self.peer.try_clone().map_err(|error| Error::Path { path: PEER.into(), error })?;
        SocketAddressMap::new(copy)
    }

    /// Returns the map of how this node's pods are connected. Errors: the map is of another kind.
    pub fn pod_link_map(&self) -> Result<PodLinkMap, Error> {
        let copy = self.veths.try_clone().map_err(|error| Error::Path { path: VETHS.into(), error })?;
        PodLinkMap::new(map_from_fd(VETHS, copy)?)
    }

    /// Returns the maps of connections' results and of decisions, and the deferred SYNs. Errors: a map is of
    /// another kind.
    pub fn deferred_accept_maps(&self) -> Result<(RecentConnectResults, SynDecisions, DeferredSyns), Error> {
        let copy = |name: &'static str, of: &OwnedFd| {
            let copy = of.try_clone().map_err(|error| Error::Path { path: name.into(), error })?;
            map_from_fd(name, copy)
        };
        Ok((
            RecentConnectResults::new(copy("LATELY", &self.lately)?)?,
            SynDecisions::new(copy("DECISIONS", &self.decisions)?)?,
            DeferredSyns::new(copy("DEFERRED_SYNS", &self.held)?)?,
        ))
    }

    /// Opens the other maps, and the programs' events. Call this inside a tokio runtime. Errors: a map is of
    /// another kind or can't be read.
    pub fn open_remaining_maps(self) -> Result<(DestinationMaps, DirectMaps, FaultRing, EgressMap), Error> {
        let open_ports = map_from_fd("OPEN_PORTS", self.open_ports)?;
        Ok((
            DestinationMaps::new(map_from_fd("DESTINATIONS", self.destinations)?, open_ports)?,
            DirectMaps::new(
                map_from_fd("ROUTES", self.routes)?,
                map_from_fd("PULSE", self.pulse)?,
                map_from_fd("DIRECT_FLOWS", self.direct_flows)?,
                map_from_fd("PROBES", self.probes)?,
                map_from_fd("DIRECT_OPEN", self.direct_open)?,
                map_from_fd("DIRECT_EVENTS", self.direct_events)?,
                VethFlowMaps::new(
                    map_from_fd(VETH_FLOWS, self.veth_flows)?,
                    map_from_fd(CROWDED, self.crowded)?,
                    map_from_fd(VETH_COUNTS, self.veth_counts)?,
                )?,
            )?,
            FaultRing::new(map_from_fd("EVENTS", self.events)?)?,
            EgressMap::new(map_from_fd("EGRESS", self.egress)?)?,
        ))
    }
}

pub(super) fn map_from_fd(name: &'static str, descriptor: OwnedFd) -> Result<MapData, Error> {
    MapData::from_fd(descriptor).map_err(map_error(name))
}
