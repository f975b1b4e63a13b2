//! The kernel's side of direct connections: routes go in, events come out.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, MapError, RingBuf};
use mesh_common::direct::{
    DirectFlow, DirectRoute, FILED_LASTS, Filed, Happened, MAX_DIRECT_FLOWS, NO_SERVER, NOTE_PROBE, RouteKey,
};
use mesh_common::record;
use rustix::time::{ClockId, clock_gettime};
use tokio::io::unix::AsyncFd;

use super::events::register;
use super::map::absent_is_fine;
use super::veth::DirectVeths;
use super::{Error, map_error};

/// `BPF_EXIST` of `linux/bpf.h`: the entry must be there already.
const BPF_EXIST: u64 = 2;

/// Bytes of an event.
const RECORD: usize = size_of::<mesh_common::direct::DirectEvent>();

/// TCP states of `include/net/tcp_states.h`, as which a connection may have ended.
mod state {
    pub(super) const FIN_WAIT2: u32 = 5;
    pub(super) const TIME_WAIT: u32 = 6;
    pub(super) const CLOSE_WAIT: u32 = 8;
    pub(super) const LAST_ACK: u32 = 9;
    pub(super) const CLOSING: u32 = 11;
}

/// Connections whose SYN has left, and where they may arrive.
type Filings = HashMap<MapData, DirectFlow, Filed>;

/// The maps of direct connections.
pub struct DirectKernel {
    routes: HashMap<MapData, RouteKey, DirectRoute>,
    pulse: Array<MapData, u64>,
    flows: Filings,
    probes: Filings,
    open: HashMap<MapData, u64, [u8; RECORD]>,
    events: AsyncFd<RingBuf<MapData>>,
    veths: DirectVeths,
}

/// A direct connection whose SYN has left and whose handshake is not over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// Cookie of the client's network namespace.
    pub client_netns: u64,
    /// Cookie of the network namespace that it may arrive in.
    pub server_netns: u64,
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The server's own address and port.
    pub server: SocketAddr,
}

/// Something that happened to a direct connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DirectEvent {
    /// What.
    pub happened: Happened,
    /// Smoothed round-trip time in microseconds.
    pub rtt: u32,
    /// The kernel's cookie of the client's socket.
    pub socket: u64,
    /// Cookie of the client's network namespace.
    pub client_netns: u64,
    /// Cookie of the network namespace that it may arrive in.
    pub server_netns: u64,
    /// How long it has lasted.
    pub lasted: Duration,
    /// Bytes, when it is over.
    pub totals: Totals,
    /// The client's own address and port.
    pub client: SocketAddr,
    /// The server's own address and port.
    pub server: SocketAddr,
    /// Address and port that the application asked for.
    pub destination: SocketAddr,
    /// It is one of the node's probes.
    pub probe: bool,
}

/// Bytes of a connection.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    /// From the client.
    pub sent: u64,
    /// To the client.
    pub received: u64,
}

impl DirectKernel {
    /// These maps, without the routes that a predecessor left: who decided them is gone. Must be called
    /// inside a tokio runtime.
    pub(super) fn new(
        routes: MapData,
        pulse: MapData,
        flows: MapData,
        probes: MapData,
        open: MapData,
        events: MapData,
        veths: DirectVeths,
    ) -> Result<Self, Error> {
        let mut kernel = Self {
            routes: Map::HashMap(routes).try_into().map_err(map_error("ROUTES"))?,
            pulse: Map::Array(pulse).try_into().map_err(map_error("PULSE"))?,
            flows: Map::HashMap(flows).try_into().map_err(map_error("DIRECT_FLOWS"))?,
            probes: Map::HashMap(probes).try_into().map_err(map_error("PROBES"))?,
            open: Map::HashMap(open).try_into().map_err(map_error("DIRECT_OPEN"))?,
            events: register(Map::RingBuf(events).try_into().map_err(map_error("DIRECT_EVENTS"))?)?,
            veths,
        };
        let left: Vec<RouteKey> =
            kernel.routes.keys().collect::<Result<_, _>>().map_err(map_error("ROUTES"))?;
        left.iter().try_for_each(|key| kernel.remove(key))?;
        Ok(kernel)
    }

    /// From now on a client's connections may go this way.
    pub fn put(&mut self, key: &RouteKey, route: &DirectRoute) -> Result<(), Error> {
        self.routes.insert(key, route, 0).map_err(map_error("ROUTES"))
    }

    /// They go through the proxy again.
    pub fn remove(&mut self, key: &RouteKey) -> Result<(), Error> {
        absent_is_fine(self.routes.remove(key)).map_err(map_error("ROUTES"))
    }

    /// Says that the agent lives, which keeps the routes in force for a while.
    pub fn beat(&mut self) -> Result<(), Error> {
        self.pulse.set(0, now(), 0).map_err(map_error("PULSE"))
    }

    /// Refuses those connections that are under way and may not arrive. Returns how many.
    pub fn withdraw(&mut self, may_arrive: impl Fn(&UnderWay) -> bool) -> Result<usize, Error> {
        let is_taken_back = |flow: &DirectFlow, filed: &Filed| {
            filed.server != NO_SERVER && !may_arrive(&UnderWay::new(flow, filed))
        };
        let taken_back = filed(&self.flows, is_taken_back).map_err(map_error("DIRECT_FLOWS"))?;
        for (flow, filed) in &taken_back {
            // Only in place of what is there: by now it may have arrived, and be gone from here.
            let refused = Filed { server: NO_SERVER, ..*filed };
            absent_is_fine(self.flows.insert(flow, refused, BPF_EXIST)).map_err(map_error("DIRECT_FLOWS"))?;
        }
        Ok(taken_back.len())
    }

    /// Forgets what handshakes have left behind whose end was not heard of.
    pub fn sweep(&mut self) -> Result<(), Error> {
        let now = now();
        for (name, filings) in [("DIRECT_FLOWS", &mut self.flows), ("PROBES", &mut self.probes)] {
            let is_left = |_: &DirectFlow, filed: &Filed| filed.at.saturating_add(FILED_LASTS) < now;
            for (flow, _) in filed(filings, is_left).map_err(map_error(name))? {
                absent_is_fine(filings.remove(&flow)).map_err(map_error(name))?;
            }
        }
        Ok(())
    }

    /// Forgets what connections that went from veth to veth left behind.
    pub fn sweep_veths(&mut self) {
        self.veths.sweep(now());
    }

    /// The connections of these clients, by the cookies of their namespaces, go through the proxy from now
    /// on, and those of no others for that reason.
    pub fn set_over_limit(&mut self, clients: HashSet<u64>) -> Result<(), Error> {
        self.veths.set_over_limit(clients)
    }

    /// The events by which those connections began that are open now.
    pub fn open_connections(&self) -> Vec<DirectEvent> {
        self.open.iter().filter_map(Result::ok).filter_map(|(_, record)| decode(&record)).collect()
    }

    /// Whether a connection, by the cookie of the client's socket, is among these. Where that can't be told
    /// it counts as one.
    pub fn has_open(&self, socket: u64) -> bool {
        !matches!(self.open.get(&socket, 0), Err(MapError::KeyNotFound))
    }

    /// Waits until so many events have come that they should be read before the ring is full. Errors: the
    /// runtime's.
    pub async fn fills_up(&mut self) -> io::Result<()> {
        self.events.readable_mut().await?.clear_ready();
        Ok(())
    }

    /// The next event that has not been read.
    pub fn next_event(&mut self) -> Option<DirectEvent> {
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
    which: impl Fn(&DirectFlow, &Filed) -> bool,
) -> Result<Vec<(DirectFlow, Filed)>, MapError> {
    // The kernel begins again where an entry goes that it has just told of.
    let entries = filings.iter().take(2 * MAX_DIRECT_FLOWS as usize);
    entries.filter(|entry| entry.as_ref().map_or(true, |(flow, filed)| which(flow, filed))).collect()
}

impl UnderWay {
    fn new(flow: &DirectFlow, filed: &Filed) -> Self {
        Self {
            client_netns: filed.client,
            server_netns: filed.server,
            client: flow.client.into(),
            server: flow.server.into(),
        }
    }
}

/// Nanoseconds of the clock that the programs read.
pub(super) fn now() -> u64 {
    let now = clock_gettime(ClockId::Monotonic);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1_000_000_000 + u64::try_from(now.tv_nsec).unwrap_or(0)
}

/// Reads a record of the ring.
fn decode(item: &[u8]) -> Option<DirectEvent> {
    let (happened, event) = record::direct_event(item)?;
    Some(DirectEvent {
        happened,
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

/// The kernel counts sequence numbers (`tcp_snd_una_update`, `tcp_rcv_nxt_update`): SYN and FIN are among
/// them. Whether a connection that ended in `FIN_WAIT2` has got the other end's FIN can't be told, so it may
/// seem to have received a byte more than it did.
fn payload(acknowledged: u64, received: u64, ended_in: u32) -> Totals {
    let own_fin = matches!(ended_in, state::FIN_WAIT2 | state::TIME_WAIT | state::LAST_ACK | state::CLOSING);
    let other_fin = matches!(ended_in, state::CLOSE_WAIT | state::LAST_ACK | state::CLOSING);
    Totals {
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
        bytes.extend((Happened::Closed as u32).to_ne_bytes());
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
        assert_eq!((event.happened, event.rtt, event.socket), (Happened::Closed, 250, 7));
        assert_eq!(event.lasted, Duration::from_micros(4));
        assert_eq!(event.totals, Totals { sent: 100, received: 200 });
        assert_eq!(event.server.to_string(), "10.0.0.2:8080");
        for length in 0..bytes.len() {
            assert_eq!(decode(&bytes[..length]), None, "{length} bytes");
        }
        assert_eq!(payload(0, 0, state::LAST_ACK), Totals::default(), "no number below zero");
    }
}
