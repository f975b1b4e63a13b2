//! Maps of where enrolled pods' connections may lead: the addresses that the mesh knows, and the ports that
//! have endpoints.

use std::collections::{BTreeSet, HashMap as StdHashMap, HashSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Mutex, PoisonError};

use aya::maps::{HashMap, Map, MapData, MapError};
use mesh_api::plan::Reachability;
use mesh_common::address::Address;
use mesh_common::deferred_accept::{Lately, TAKEN_FOR};
use mesh_common::direct::RouteKey;
use mesh_common::maps::{BY_PORT, Endpoint, REFUSED_FOR, TO_BE_TRIED};

use super::direct::now;
use super::map::absent_is_fine;
use super::{Error, map_error};

/// The addresses that the mesh knows, and the ports of services that have endpoints.
pub struct KnownAddresses {
    known: HashMap<MapData, Address, u32>,
    ports: HashMap<MapData, Endpoint, u32>,
}

impl KnownAddresses {
    pub(super) fn new(known: MapData, ports: MapData) -> Result<Self, Error> {
        Ok(Self {
            known: Map::HashMap(known).try_into().map_err(map_error("DESTINATIONS"))?,
            ports: Map::HashMap(ports).try_into().map_err(map_error("OPEN_PORTS"))?,
        })
    }

    /// Replaces all addresses. One that stays is never missing meanwhile. Errors: not all are known, for lack
    /// of room.
    pub fn replace(&mut self, wanted: impl Iterator<Item = (IpAddr, Reachability)>) -> Result<(), Error> {
        let mut stale: StdHashMap<Address, u32> =
            self.known.iter().collect::<Result<_, _>>().map_err(map_error("DESTINATIONS"))?;
        let mut stale_ports: HashSet<Endpoint> =
            self.ports.keys().collect::<Result<_, _>>().map_err(map_error("OPEN_PORTS"))?;
        let mut told = Ok(());
        for (ip, reach) in wanted {
            let was = stale.remove(&Address::from(ip));
            if let Reachability::Ports(ports) = &reach {
                endpoints(ip, ports).for_each(|port| {
                    stale_ports.remove(&port);
                });
            }
            if (was, &reach) != (Some(TO_BE_TRIED), &Reachability::Unknown) {
                told = told.and(self.set(ip, &reach));
            }
        }
        // Outdated entries are removed in any case: that makes room for the next attempt.
        let gone = stale.keys().try_for_each(|address| absent_is_fine(self.known.remove(address)));
        gone.map_err(map_error("DESTINATIONS"))?;
        self.close(stale_ports.into_iter())?;
        told
    }

    /// Applies changes of reachability: the address, what it was, and what it is; none if it was not known,
    /// or is no longer. Errors: not all are known, for lack of room.
    pub fn change(
        &mut self,
        mut changes: Vec<(IpAddr, Option<Reachability>, Option<Reachability>)>,
    ) -> Result<(), Error> {
        // Removing first makes room.
        changes.sort_by_key(|(_, _, is)| is.is_some());
        for (ip, was, is) in &changes {
            match is {
                Some(reach) => self.set(*ip, reach)?,
                None => absent_is_fine(self.known.remove(&Address::from(*ip)))
                    .map_err(map_error("DESTINATIONS"))?,
            }
            let (before, after) = (ports_of(was.as_ref()), ports_of(is.as_ref()));
            self.close(endpoints(*ip, &before.difference(after).copied().collect()))?;
        }
        Ok(())
    }

    fn set(&mut self, ip: IpAddr, reach: &Reachability) -> Result<(), Error> {
        let value = match reach {
            Reachability::Unknown => TO_BE_TRIED,
            // All of them each time: some may have found no room before.
            Reachability::Ports(ports) => {
                let open = endpoints(ip, ports).try_for_each(|port| self.ports.insert(port, 1, 0));
                if open.is_ok() { BY_PORT } else { TO_BE_TRIED }
            }
        };
        self.known.insert(Address::from(ip), value, 0).map_err(map_error("DESTINATIONS"))
    }

    fn close(&mut self, mut ports: impl Iterator<Item = Endpoint>) -> Result<(), Error> {
        let closed: Result<(), MapError> =
            ports.try_for_each(|port| absent_is_fine(self.ports.remove(&port)));
        closed.map_err(map_error("OPEN_PORTS"))
    }
}

fn endpoints(ip: IpAddr, ports: &BTreeSet<u16>) -> impl Iterator<Item = Endpoint> {
    ports.iter().map(move |port| Endpoint::new(ip.into(), *port))
}

fn ports_of(reach: Option<&Reachability>) -> &BTreeSet<u16> {
    static NONE: BTreeSet<u16> = BTreeSet::new();
    match reach {
        Some(Reachability::Ports(ports)) => ports,
        Some(Reachability::Unknown) | None => &NONE,
    }
}

/// The result of each pod's last connection to a destination. For a short time the kernel goes by it: it
/// refuses the next ones itself, or takes them to the proxy without having them wait.
pub struct RecentResults(Mutex<HashMap<MapData, RouteKey, Lately>>);

impl RecentResults {
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        Ok(Self(Mutex::new(Map::LruHashMap(map).try_into().map_err(map_error("LATELY"))?)))
    }

    /// Notes that every endpoint of a destination that was tried refused the pod with this network namespace.
    pub fn refused(&self, client: u64, destination: SocketAddr) {
        self.note(client, destination, Lately::new(now() + REFUSED_FOR, true));
    }

    /// Notes that the destination has taken the pod's connection.
    pub fn taken(&self, client: u64, destination: SocketAddr) {
        self.let_through(client, destination, TAKEN_FOR);
    }

    /// Has the pod's next connections there not be deferred for `lasts` nanoseconds.
    pub fn let_through(&self, client: u64, destination: SocketAddr, lasts: u64) {
        self.note(client, destination, Lately::new(now() + lasts, false));
    }

    fn note(&self, client: u64, destination: SocketAddr, lately: Lately) {
        let endpoint = Endpoint::new(destination.ip().to_canonical().into(), destination.port());
        let mut recent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = recent.insert(RouteKey::new(client, endpoint), lately, 0) {
            tracing::debug!(%destination, %error, "what became of a connection is not remembered");
        }
    }
}
