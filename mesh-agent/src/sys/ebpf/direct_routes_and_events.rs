//! The maps of direct connections: routes are written, events are read.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use mesh_common::direct::{
    DIRECT_FLOW_TTL_NS, DirectEventKind, DirectFlowEntry, DirectFlowKey, DirectRoute, DirectRouteKey,
    MAX_DIRECT_FLOWS, NO_SERVER, NOTE_PROBE,
};
use mesh_common::ring_records;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

use super::fault_ring::register_ring;
use super::map_helpers::ignore_missing;
use super::veth_flow_maps::VethFlowMaps;
use super::{Error, map_error};

/// `BPF_EXIST` of `linux/bpf.h`: the entry must be there already.
const BPF_EXIST: u64 = 2;

/// Bytes of an event.
const RECORD: usize = size_of::<mesh_common::direct::DirectEvent>();

/// TCP states of `include/net/tcp_states.h` that a connection may end in.
mod state {
    pub(super) const FIN_WAIT2: u32 = 5;
    pub(super) const TIME_WAIT: u32 = 6;
    pub(super) const CLOSE_WAIT: u32 = 8;
    pub(super) const LAST_ACK: u32 = 9;
    pub(super) const CLOSING: u32 = 11;
}

/// Connections whose SYN was sent, with where they may arrive.
type Filings = HashMap<MapData, DirectFlowKey, DirectFlowEntry>;

/// The maps of direct connections.
pub struct DirectMaps {
    routes: HashMap<MapData, DirectRouteKey, DirectRoute>,
    pulse: Array<MapData, u64>,
    flows: Filings,
    probes: Filings,
    open: HashMap<MapData, u64, [u8; RECORD]>,
    events: AsyncFd<RingBuf<MapData>>,
    veths: VethFlowMaps,
}

/// A direct connection whose SYN was sent and whose handshake is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PendingDirectConnection {
    /// Cookie of the client's network namespace.
    pub client_netns: u64,
    /// Cookie of the network namespace that it may arrive in.
    pub server_netns: u64,
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The server's own address and port.
    pub server: SocketAddr,
}

/// An event of a direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectEvent {
    /// Kind of the event.
    pub kind: DirectEventKind,
    /// Smoothed round-trip time, microseconds.
    pub rtt: u32,
    /// The kernel's cookie of the client's socket.
    pub socket: u64,
    /// Cookie of the client's network namespace.
    pub client_netns: u64,
    /// Cookie of the network namespace that it may arrive in.
    pub server_netns: u64,
    /// Time since it was opened.
    pub lasted: Duration,
    /// Its bytes, once it is over.
    pub totals: ByteTotals,
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The server's own address and port.
    pub server: SocketAddr,
    /// Address and port that the application asked for.
    pub destination: SocketAddr,
    /// Whether it is a probe of the node.
    pub probe: bool,
}

/// Bytes that a connection has carried.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ByteTotals {
    /// From the client.
    pub sent: u64,
    /// To the client.
    pub received: u64,
}

impl DirectMaps {
    /// Wraps the maps, without the routes that a predecessor left: who decided on them is gone. Call this
    /// inside a tokio runtime. Errors: a map is of another kind or can't be written.
    pub(super) fn new(
        routes: MapData,
        pulse: MapData,
        flows: MapData,
        probes: MapData,
        open: MapData,
        events: MapData,
        veths: VethFlowMaps,
    ) -> Result<Self, Error> {
        let mut kernel = Self {
            routes: Map::HashMap(routes).try_into().map_err(map_error("ROUTES"))?,
            pulse: Map::Array(pulse).try_into().map_err(map_error("PULSE"))?,
            flows: Map::HashMap(flows).try_into().map_err(map_error("DIRECT_FLOWS"))?,
            probes: Map::HashMap(probes).try_into().map_err(map_error("PROBES"))?,
            open: Map::HashMap(open).try_into().map_err(map_error("DIRECT_OPEN"))?,
            events: register_ring(Map::RingBuf(events).try_into().map_err(map_error("DIRECT_EVENTS"))?)?,
            veths,
        };
        let left: Vec<DirectRouteKey> =
            kernel.routes.keys().collect::<Result<_, _>>().map_err(map_error("ROUTES"))?;
        left.iter().try_for_each(|key| kernel.remove_route(key))?;
        Ok(kernel)
    }

    /// Adds or replaces a client's route. Errors: there is no room or memory.
    pub fn put_route(&mut self, key: &DirectRouteKey, route: &DirectRoute) -> Result<(), Error> {
        self.routes.insert(key, route, 0).map_err(map_error("ROUTES"))
    }

    /// Removes a route: connections go through the proxy again. Errors: the map can't be written.
    pub fn remove_route(&mut self, key: &DirectRouteKey) -> Result<(), Error> {
        ignore_missing(self.routes.remove(key)).map_err(map_error("ROUTES"))
    }

    /// Tells that the agent lives, which keeps the routes in force for a while. Errors: the map can't be
    /// written.
    pub fn write_heartbeat(&mut self) -> Result<(), Error> {
        self.pulse.set(0, monotonic_nanos(), 0).map_err(map_error("PULSE"))
    }

    /// Refuses connections whose handshake is under way, unless `may_arrive` says that they may arrive.
    /// Returns how many. Errors: the map can't be read or written.
    pub fn refuse_pending_unless(
        &mut self,
        may_arrive: impl Fn(&PendingDirectConnection) -> bool,
    ) -> Result<usize, Error> {
        let is_taken_back = |flow: &DirectFlowKey, filed: &DirectFlowEntry| {
            filed.server != NO_SERVER && !may_arrive(&PendingDirectConnection::new(flow, filed))
        };
        let taken_back = filed(&self.flows, is_taken_back).map_err(map_error("DIRECT_FLOWS"))?;
        for (flow, filed) in &taken_back {
            // Only in place of an entry: by now it may have arrived, and its entry be gone.
            let refused = DirectFlowEntry { server: NO_SERVER, ..*filed };
            ignore_missing(self.flows.insert(flow, refused, BPF_EXIST)).map_err(map_error("DIRECT_FLOWS"))?;
        }
        Ok(taken_back.len())
    }

    /// Forgets handshakes whose end was never told. Errors: the map can't be read or written.
    pub fn sweep_handshakes(&mut self) -> Result<(), Error> {
        let now = monotonic_nanos();
        for (name, filings) in [("DIRECT_FLOWS", &mut self.flows), ("PROBES", &mut self.probes)] {
            let is_left = |_: &DirectFlowKey, filed: &DirectFlowEntry| {
                filed.at.saturating_add(DIRECT_FLOW_TTL_NS) < now
            };
            for (flow, _) in filed(filings, is_left).map_err(map_error(name))? {
                ignore_missing(filings.remove(&flow)).map_err(map_error(name))?;
            }
        }
        Ok(())
    }

    /// Forgets connections from veth to veth that are over.
    pub fn sweep_veth_flows(&mut self) {
        self.veths.sweep_and_recount_flows(monotonic_nanos());
    }

    /// Sends all connections of these clients, by the cookies of their namespaces, through the proxy; other
    /// clients are no longer held back for that reason. Errors: the map can't be written.
    pub fn set_clients_over_limit(&mut self, clients: HashSet<u64>) -> Result<(), Error> {
        self.veths.set_clients_over_limit(clients)
    }

    /// Returns the connections that are open now, each as the event with which it began.
    pub fn list_open_connections(&self) -> Vec<DirectEvent> {
        self.open.iter().filter_map(Result::ok).filter_map(|(_, record)| decode(&record)).collect()
    }

    /// Whether a connection, by the cookie of the client's socket, is open, or that can't be told.
    pub fn is_open_or_unknown(&self, socket: u64) -> bool {
        !matches!(self.open.get(&socket, 0), Err(MapError::KeyNotFound))
    }

    /// Waits until the ring should be read before it is full. Errors: the runtime's.
    pub async fn wait_for_events(&mut self) -> io::Result<()> {
        self.events.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// Returns the next event that was not read.
    pub fn try_next_event(&mut self) -> Option<DirectEvent> {
        loop {
            let item = self.events.get_mut().next()?;
            if let Some(event) = decode(&item) {
                return Some(event);
            }
        }
    }
}

fn filed(
    filings: &Filings,
    which: impl Fn(&DirectFlowKey, &DirectFlowEntry) -> bool,
) -> Result<Vec<(DirectFlowKey, DirectFlowEntry)>, MapError> {
    // The kernel begins again if an entry is removed that it has just returned.
    let entries = filings.iter().take(2 * MAX_DIRECT_FLOWS as usize);
    entries.filter(|entry| entry.as_ref().map_or(true, |(flow, filed)| which(flow, filed))).collect()
}

impl PendingDirectConnection {
    fn new(flow: &DirectFlowKey, filed: &DirectFlowEntry) -> Self {
        Self {
            client_netns: filed.client,
            server_netns: filed.server,
            client: flow.client.into(),
            server: flow.server.into(),
        }
    }
}

/// Returns nanoseconds of the clock that the programs read.
pub(super) fn monotonic_nanos() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Parses a record of the ring.
fn decode(item: &[u8]) -> Option<DirectEvent> {
    let (kind, event) = ring_records::parse_direct_event(item)?;
    Some(DirectEvent {
        kind,
        rtt: event.rtt,
        socket: event.socket,
        client_netns: event.client_netns,
        server_netns: event.server_netns,
        lasted: Duration::from_nanos(event.now.saturating_sub(event.opened)),
        totals: payload(event.sent, event.received, event.ended_in),
        client: event.client.into(),
        server: event.server.into(),
        destination: event.destination.into(),
        probe: event.destination.note == NOTE_PROBE,
    })
}

/// Returns a connection's bytes. The kernel counts sequence numbers (`tcp_snd_una_update`,
/// `tcp_rcv_nxt_update`), with SYN and FIN. Whether a connection that ended in `FIN_WAIT2` has got the other
/// end's FIN can't be told, so it may seem to have received one byte more than it did.
fn payload(acknowledged: u64, received: u64, ended_in: u32) -> ByteTotals {
    let own_fin = matches!(ended_in, state::FIN_WAIT2 | state::TIME_WAIT | state::LAST_ACK | state::CLOSING);
    let other_fin = matches!(ended_in, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING);
    ByteTotals {
        sent: acknowledged.saturating_sub(1 + u64::from(own_fin)),
        received: received.saturating_sub(u64::from(other_fin)),
    }
}

#[cfg(test)]
mod tests {
    use mesh_common::address::Address;

    use super::*;

    #[test]
    fn reads_what_the_programs_write_and_survives_what_is_short() {
        let mut bytes = Vec::new();
        bytes.extend((DirectEventKind::Closed as u32).to_ne_bytes());
        bytes.extend(250_u32.to_ne_bytes());
        for number in [7_u64, 8, 9, 1_000, 5_000, 102, 201] {
            bytes.extend(number.to_ne_bytes());
        }
        for (last, port) in [(1, 40_000_u16), (2, 8080), (3, 80)] {
            bytes.extend(Address::v4([10, 0, 0, last]).0);
            bytes.extend(port.to_ne_bytes());
            bytes.extend([0; 2]);
        }
        bytes.extend(state::LAST_ACK.to_ne_bytes());
        assert_eq!(bytes.len(), size_of::<mesh_common::direct::DirectEvent>());
        let event = decode(&bytes).unwrap();
        assert_eq!((event.kind, event.rtt, event.socket), (DirectEventKind::Closed, 250, 7));
        assert_eq!(event.lasted, Duration::from_micros(4));
        assert_eq!(event.totals, ByteTotals { sent: 100, received: 200 });
        assert_eq!(event.server.to_string(), "10.0.0.2:8080");
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(payload(0, 0, state::LAST_ACK), ByteTotals::default(), "no number below zero");
    }
}
