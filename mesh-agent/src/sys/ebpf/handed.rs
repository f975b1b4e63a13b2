//! The maps that the keeper hands to the proxy.

use std::collections::HashSet;
use std::os::fd::OwnedFd;

use aya::maps::{HashMap, Map, MapData};
use mesh_common::address::Address;

use super::map::{change, replace};
use super::veth::{CROWDED, DirectVeths, Links, VETH_COUNTS, VETH_FLOWS, VETHS};
use super::{DirectKernel, EgressMap, Error, EventLog, FlowMap, PEER, map_error};

/// What is handed over, in this order.
pub const HANDED_OVER: [&str; 14] = [
    "DESTINATIONS",
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
pub struct Handed {
    destinations: OwnedFd,
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

/// The addresses that the mesh knows.
pub struct Destinations(HashMap<MapData, Address, u32>);

impl Handed {
    /// Maps in the order of [`HANDED_OVER`].
    pub fn new(maps: [OwnedFd; HANDED_OVER.len()]) -> Self {
        let [
            destinations,
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

    /// A handle for one worker.
    pub fn flow_map(&self) -> Result<FlowMap, Error> {
        let copy = self.peer.try_clone().map_err(|error| Error::Path { path: PEER.into(), error })?;
        FlowMap::new(copy)
    }

    /// How this node's pods are connected.
    pub fn links(&self) -> Result<Links, Error> {
        let copy = self.veths.try_clone().map_err(|error| Error::Path { path: VETHS.into(), error })?;
        Links::new(map(VETHS, copy)?)
    }

    /// What the rest is for, and the events of the programs. Must be called inside a tokio runtime.
    pub fn open(self) -> Result<(Destinations, DirectKernel, EventLog, EgressMap), Error> {
        let destinations = Map::HashMap(map("DESTINATIONS", self.destinations)?);
        Ok((
            Destinations(destinations.try_into().map_err(map_error("DESTINATIONS"))?),
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

impl Destinations {
    /// Replaces the set of addresses that the mesh knows. What stays is never missing.
    pub fn replace(&mut self, wanted: HashSet<Address>) -> Result<(), Error> {
        replace(&mut self.0, wanted).map_err(map_error("DESTINATIONS"))
    }

    /// Changes that set.
    pub fn change(
        &mut self,
        come: impl Iterator<Item = Address>,
        gone: impl Iterator<Item = Address>,
    ) -> Result<(), Error> {
        change(&mut self.0, come, gone).map_err(map_error("DESTINATIONS"))
    }
}

pub(super) fn map(name: &'static str, descriptor: OwnedFd) -> Result<MapData, Error> {
    MapData::from_fd(descriptor).map_err(map_error(name))
}
