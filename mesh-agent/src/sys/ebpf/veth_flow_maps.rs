//! The maps of the flows from veth to veth: the flows themselves, how many clients have, and which clients
//! have as many as they may.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::Path;

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};
use mesh_common::maps::AddressPort;
use mesh_common::veth::{COUNT_OF_ALL_CLIENTS, CROWDED_FOR_NOW, FlowDirection, MAX_VETH_FLOWS, VethFlow};

use super::attach;
use super::map_helpers::{dup_hash_map_handle, ignore_missing};
use super::{Error, map_error};
use crate::sys::Connection;

/// Names of the maps.
pub(super) const VETH_FLOWS: &str = "VETH_FLOWS";
pub(super) const CROWDED: &str = "CROWDED";
pub(super) const VETH_COUNTS: &str = "VETH_COUNTS";

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

    /// Removes stale flows, see [`VethFlows::remove_ended_flows`]. Clients that found no room may try again.
    pub fn sweep_and_recount_flows(&mut self, now: u64) {
        self.flows.remove_ended_flows(now);
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
    pub fn open_all_pinned_below(root: &Path) -> Vec<Self> {
        attach::list_pins(root).iter().filter_map(|(_, layout)| Self::open_pinned_in(layout)).collect()
    }

    pub(super) fn open_pinned_in(layout: &Path) -> Option<Self> {
        Self::from_map(MapData::from_pin(layout.join("maps").join(VETH_FLOWS)).ok()?)
    }

    pub(super) fn from_map(map: MapData) -> Option<Self> {
        Map::HashMap(map).try_into().ok().map(Self)
    }

    pub(super) fn from_object(ebpf: &Ebpf) -> Option<Self> {
        Self::from_map(dup_hash_map_handle(ebpf, VETH_FLOWS)?)
    }

    /// Returns the two sockets of each flow over an interface, or of all flows: the client's, and the
    /// server's if there is one already.
    pub fn client_and_server_sockets_over(
        &self,
        interface: Option<u32>,
    ) -> Vec<(Connection, Option<Connection>)> {
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
    pub fn remove_ended_flows(&mut self, now: u64) {
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
