//! The maps about the veths of pods: how pods are connected, and the flows from veth to veth.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsFd;
use std::path::Path;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData, MapError};
use mesh_common::address::Address;
use mesh_common::maps::AddressPort;
use mesh_common::veth::{
    COUNT_OF_ALL_CLIENTS, CROWDED_FOR_NOW, FlowDirection, MAX_VETH_FLOWS, NEIGHBOUR_SLOTS, PodLinkKind,
    PodVeth, VethFlow, VethObstacle, neighbour_slot,
};

use super::attach;
use super::map_helpers::{ignore_missing, take_map};
use super::{Error, map_error};
use crate::sys::Connection;

/// Names of the maps.
pub(super) const VETH_FLOWS: &str = "VETH_FLOWS";
pub(super) const VETHS: &str = "VETHS";
pub(super) const CROWDED: &str = "CROWDED";
pub(super) const VETH_COUNTS: &str = "VETH_COUNTS";

/// The maps that the keeper writes.
pub(super) struct VethMaps {
    veths: HashMap<MapData, u64, PodVeth>,
    neighbours: Array<MapData, u64>,
}

impl VethMaps {
    pub fn take(ebpf: &mut Ebpf) -> Result<Self, Error> {
        // The proxy gets the first map as well.
        let veths = Map::HashMap(copy(ebpf, VETHS).ok_or(Error::Missing(VETHS))?);
        Ok(Self {
            veths: veths.try_into().map_err(map_error(VETHS))?,
            neighbours: take_map(ebpf, "NEIGHBOURS")?,
        })
    }

    /// Sets how a pod is connected. Errors: a map can't be written.
    pub fn set_link(
        &mut self,
        cookie: u64,
        ifindex: Option<u32>,
        link: PodLinkKind,
        obstacle: VethObstacle,
    ) -> Result<(), Error> {
        // If its veth is no longer visible, the last one is where its connections went.
        let last = || self.veths.get(&cookie, 0).map_or(0, |veth| veth.ifindex);
        let ifindex = ifindex.unwrap_or_else(last);
        let veth = PodVeth { ifindex, link: link as u16, obstacle: obstacle as u16 };
        self.veths.insert(cookie, veth, 0).map_err(map_error("VETHS"))
    }

    /// Stops filing connections of a pod. Returns the index of the node's end of its veth.
    /// Errors: a map can't be written.
    pub fn remove_pod(&mut self, cookie: u64) -> Result<Option<u32>, Error> {
        let veth = self.veths.get(&cookie, 0).ok();
        ignore_missing(self.veths.remove(&cookie)).map_err(map_error("VETHS"))?;
        Ok(veth.map(|veth| veth.ifindex))
    }

    /// Returns the pods that have an entry.
    pub fn pod_cookies(&self) -> Vec<u64> {
        self.veths.keys().flatten().collect()
    }

    /// Allows packets to these addresses to be part of filed flows. Errors: a map can't be written.
    pub fn allow_flow_addresses(&mut self, addresses: &[IpAddr]) -> Result<(), Error> {
        addresses.iter().try_for_each(|address| {
            let (entry, bit) = entry_of(*address);
            let slots = self.neighbours.get(&entry, 0).map_err(map_error("NEIGHBOURS"))?;
            self.neighbours.set(entry, slots | bit, 0).map_err(map_error("NEIGHBOURS"))
        })
    }

    /// Allows packets to `addresses`, and to no others, to be part of filed flows. Errors: a map can't be
    /// written.
    pub fn replace_flow_addresses(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
        let mut wanted = vec![0_u64; NEIGHBOUR_SLOTS as usize / 64];
        for address in addresses {
            let (entry, bit) = entry_of(address);
            wanted[entry as usize] |= bit;
        }
        for (entry, slots) in (0..).zip(wanted) {
            if self.neighbours.get(&entry, 0).map_err(map_error("NEIGHBOURS"))? != slots {
                self.neighbours.set(entry, slots, 0).map_err(map_error("NEIGHBOURS"))?;
            }
        }
        Ok(())
    }
}

/// Stops filing connections by the programs of all agents that pinned below a directory.
pub fn clear_pinned_veth_maps(root: &Path) {
    /// Time after which a program that has looked just before is done.
    const DONE: Duration = Duration::from_millis(5);
    for (_, layout) in attach::list_pins(root) {
        let map = MapData::from_pin(layout.join("maps").join(VETHS)).ok().map(Map::HashMap);
        let Some(mut veths) = map.and_then(|map| HashMap::<_, u64, PodVeth>::try_from(map).ok()) else {
            continue;
        };
        let cookies: Vec<u64> = veths.keys().flatten().collect();
        for cookie in cookies {
            if let Err(error) = ignore_missing(veths.remove(&cookie)) {
                tracing::warn!(netns = cookie, %error, "direct connections of a pod go on being made");
            }
        }
    }
    std::thread::sleep(DONE);
}

fn entry_of(address: IpAddr) -> (u32, u64) {
    let slot = neighbour_slot(&Address::from(address));
    (slot >> 6, 1 << (slot & 63))
}

/// The map of how this node's pods are connected, as the proxy reads it.
pub struct PodLinkMap(HashMap<MapData, u64, PodVeth>);

impl PodLinkMap {
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        Ok(Self(Map::HashMap(map).try_into().map_err(map_error(VETHS))?))
    }

    /// Returns a pod's link, by the cookie of its network namespace, if it is connected.
    pub fn link_of(&self, pod: u64) -> Option<PodVeth> {
        self.0.get(&pod, 0).ok()
    }
}

/// The maps of flows that the proxy writes: it removes stale flows, and marks clients that have as many as
/// they may.
pub(super) struct VethFlowMaps {
    flows: VethFlows,
    over_limit: HashMap<MapData, u64, u32>,
    counts: HashMap<MapData, u32, u32>,
    told: HashSet<u64>,
}

impl VethFlowMaps {
    pub fn new(flows: MapData, over_limit: MapData, counts: MapData) -> Result<Self, Error> {
        let flows: HashMap<_, FlowDirection, VethFlow> =
            Map::HashMap(flows).try_into().map_err(map_error(VETH_FLOWS))?;
        let over_limit: HashMap<_, u64, u32> =
            Map::HashMap(over_limit).try_into().map_err(map_error(CROWDED))?;
        let counts: HashMap<_, u32, u32> = Map::HashMap(counts).try_into().map_err(map_error(VETH_COUNTS))?;
        let told = over_limit.keys().flatten().collect();
        let mut veths = Self { flows: VethFlows(flows), over_limit, counts, told };
        veths.put_counts_right();
        Ok(veths)
    }

    /// Removes stale flows, see [`VethFlows::remove_stale`]. Clients that found no room may try again.
    pub fn sweep_flows(&mut self, now: u64) {
        self.flows.remove_stale(now);
        self.put_counts_right();
        let over = |(client, value): &(u64, u32)| *value == CROWDED_FOR_NOW && !self.told.contains(client);
        let over: Vec<_> = self.over_limit.iter().flatten().filter(over).collect();
        for (client, _) in over {
            // If it stays the client's connections go on through the proxy.
            let _tried_again = self.over_limit.remove(&client);
        }
    }

    fn put_counts_right(&mut self) {
        if let Err(error) = self.count_again() {
            tracing::error!(%error, "direct connections of clients are not counted");
        }
    }

    /// Corrects counts that two processors changed at once, or a predecessor left.
    fn count_again(&mut self) -> Result<(), Error> {
        let mut wanted = std::collections::HashMap::from([(COUNT_OF_ALL_CLIENTS, 0_u32)]);
        for interface in self.flows.of_clients() {
            // Interfaces without flows have none.
            for of in HashSet::from([interface, COUNT_OF_ALL_CLIENTS]) {
                *wanted.entry(of).or_default() += 1;
            }
        }
        let gone: Vec<_> = self.counts.keys().flatten().filter(|it| !wanted.contains_key(it)).collect();
        for interface in gone {
            ignore_missing(self.counts.remove(&interface)).map_err(map_error(VETH_COUNTS))?;
        }
        for (interface, count) in wanted {
            self.counts.insert(interface, count, 0).map_err(map_error(VETH_COUNTS))?;
        }
        Ok(())
    }

    /// Sends the connections of these clients, and of no others, through the proxy from now on.
    pub fn set_clients_over_limit(&mut self, clients: HashSet<u64>) -> Result<(), Error> {
        for client in self.told.difference(&clients) {
            ignore_missing(self.over_limit.remove(client)).map_err(map_error(CROWDED))?;
        }
        for client in clients.difference(&self.told) {
            self.over_limit.insert(client, CROWDED_FOR_NOW, 0).map_err(map_error(CROWDED))?;
        }
        self.told = clients;
        Ok(())
    }
}

/// The connections from veth to veth, in the map of one agent.
pub struct VethFlows(HashMap<MapData, FlowDirection, VethFlow>);

impl VethFlows {
    /// Returns those of each agent that pinned below a directory, whatever its layout of other maps.
    pub fn pinned_below(root: &Path) -> Vec<Self> {
        attach::list_pins(root).iter().filter_map(|(_, layout)| Self::pinned_in(layout)).collect()
    }

    pub(super) fn pinned_in(layout: &Path) -> Option<Self> {
        Self::from_map(MapData::from_pin(layout.join("maps").join(VETH_FLOWS)).ok()?)
    }

    pub(super) fn from_map(map: MapData) -> Option<Self> {
        Map::HashMap(map).try_into().ok().map(Self)
    }

    pub(super) fn from_object(ebpf: &Ebpf) -> Option<Self> {
        Self::from_map(copy(ebpf, VETH_FLOWS)?)
    }

    /// Returns the two sockets of each flow over an interface, or of all flows: the client's, and the
    /// server's if there is one already.
    pub fn socket_pairs(&self, interface: Option<u32>) -> Vec<(Connection, Option<Connection>)> {
        let is_its = |flow: &VethFlow| interface.is_none_or(|it| flow.in_if == it || flow.out_if == it);
        let ends = |(FlowDirection { from, to }, flow): (FlowDirection, VethFlow)| {
            let (from, to) = (SocketAddr::from(from), SocketAddr::from(to));
            let client = Connection { cookie: flow.client, local: from, remote: to };
            let server = Connection { cookie: flow.server, local: to, remote: from };
            (client, (flow.server != 0).then_some(server))
        };
        self.clients().into_iter().filter(|(_, flow)| is_its(flow)).map(ends).collect()
    }

    /// Iterates over the veths of the flows' clients, by the index of the node's end.
    fn of_clients(&self) -> impl Iterator<Item = u32> {
        self.clients().into_values().map(|flow| flow.in_if)
    }

    /// Returns each flow by its client's direction.
    fn clients(&self) -> std::collections::HashMap<FlowDirection, VethFlow> {
        // The kernel begins again if an entry is removed that it has just returned.
        let all = self.0.iter().take(2 * MAX_VETH_FLOWS as usize).filter_map(Result::ok);
        all.filter(|(direction, flow)| flow.of_client != 0 && !direction.is_half_closed_key()).collect()
    }

    /// Removes stale flows, on which nothing can be sent any more. `now` is `CLOCK_MONOTONIC`, nanoseconds.
    pub fn remove_stale(&mut self, now: u64) {
        let all = self.0.keys().take(2 * MAX_VETH_FLOWS as usize).filter_map(Result::ok);
        let half_closed: HashSet<FlowDirection> = all.filter(FlowDirection::is_half_closed_key).collect();
        for note in half_closed {
            let direction = FlowDirection { from: AddressPort { note: 0, ..note.from }, to: note.to };
            let gone = match self.0.get(&direction, 0) {
                Ok(flow) => flow.is_stale(true, now),
                Err(MapError::KeyNotFound) => true,
                Err(_) => false,
            };
            if gone {
                for key in [direction, direction.reversed(), note] {
                    // It may have been removed meanwhile, which is the same.
                    let _gone = self.0.remove(&key);
                }
            }
        }
    }
}

/// Opens a map by a new descriptor.
fn copy(ebpf: &Ebpf, name: &str) -> Option<MapData> {
    let Map::HashMap(data) = ebpf.map(name)? else { return None };
    MapData::from_fd(data.fd().as_fd().try_clone_to_owned().ok()?).ok()
}
