//! Maps of where enrolled pods' connections may lead: the addresses that the mesh knows, and the ports that
//! have endpoints.

use std::collections::{BTreeSet, HashMap as StdHashMap, HashSet};
use std::net::IpAddr;

use aya::maps::{HashMap, Map, MapData, MapError};
use mesh_api::plan::KnownServedPorts;
use mesh_common::address::Address;
use mesh_common::maps::{AddressPort, DESTINATION_ANY_PORT, DESTINATION_OPEN_PORTS};

use super::map_helpers::ignore_missing;
use super::{Error, map_error};

/// The addresses that the mesh knows, and the ports of services that have endpoints.
pub struct DestinationMaps {
    known: HashMap<MapData, Address, u32>,
    ports: HashMap<MapData, AddressPort, u32>,
}

impl DestinationMaps {
    pub(super) fn new(known: MapData, ports: MapData) -> Result<Self, Error> {
        Ok(Self {
            known: Map::HashMap(known).try_into().map_err(map_error("DESTINATIONS"))?,
            ports: Map::HashMap(ports).try_into().map_err(map_error("OPEN_PORTS"))?,
        })
    }

    /// Replaces all addresses. One that stays is never missing meanwhile. Errors: not all are known, for lack
    /// of room.
    pub fn replace_all(
        &mut self,
        wanted: impl Iterator<Item = (IpAddr, KnownServedPorts)>,
    ) -> Result<(), Error> {
        let mut stale: StdHashMap<Address, u32> =
            self.known.iter().collect::<Result<_, _>>().map_err(map_error("DESTINATIONS"))?;
        let mut stale_ports: HashSet<AddressPort> =
            self.ports.keys().collect::<Result<_, _>>().map_err(map_error("OPEN_PORTS"))?;
        let mut told = Ok(());
        for (ip, reach) in wanted {
            let was = stale.remove(&Address::from(ip));
            if let KnownServedPorts::Only(ports) = &reach {
                endpoints(ip, ports).for_each(|port| {
                    stale_ports.remove(&port);
                });
            }
            if (was, &reach) != (Some(DESTINATION_ANY_PORT), &KnownServedPorts::Unknown) {
                told = told.and(self.set(ip, &reach));
            }
        }
        // Outdated entries are removed in any case: that makes room for the next attempt.
        let gone = stale.keys().try_for_each(|address| ignore_missing(self.known.remove(address)));
        gone.map_err(map_error("DESTINATIONS"))?;
        self.close(stale_ports.into_iter())?;
        told
    }

    /// Applies changes of reachability: the address, what it was, and what it is; none if it was not known,
    /// or is no longer. Errors: not all are known, for lack of room.
    pub fn apply_changes(
        &mut self,
        mut changes: Vec<(IpAddr, Option<KnownServedPorts>, Option<KnownServedPorts>)>,
    ) -> Result<(), Error> {
        // Removing first makes room.
        changes.sort_by_key(|(_, _, is)| is.is_some());
        for (ip, was, is) in &changes {
            match is {
                Some(reach) => self.set(*ip, reach)?,
                None => ignore_missing(self.known.remove(&Address::from(*ip)))
                    .map_err(map_error("DESTINATIONS"))?,
            }
            let (before, after) = (ports_of(was.as_ref()), ports_of(is.as_ref()));
            self.close(endpoints(*ip, &before.difference(after).copied().collect()))?;
        }
        Ok(())
    }

    fn set(&mut self, ip: IpAddr, reach: &KnownServedPorts) -> Result<(), Error> {
        let value = match reach {
            KnownServedPorts::Unknown => DESTINATION_ANY_PORT,
            // All of them each time: some may have found no room before.
            KnownServedPorts::Only(ports) => {
                let open = endpoints(ip, ports).try_for_each(|port| self.ports.insert(port, 1, 0));
                if open.is_ok() { DESTINATION_OPEN_PORTS } else { DESTINATION_ANY_PORT }
            }
        };
        self.known.insert(Address::from(ip), value, 0).map_err(map_error("DESTINATIONS"))
    }

    fn close(&mut self, mut ports: impl Iterator<Item = AddressPort>) -> Result<(), Error> {
        let closed: Result<(), MapError> =
            ports.try_for_each(|port| ignore_missing(self.ports.remove(&port)));
        closed.map_err(map_error("OPEN_PORTS"))
    }
}

fn endpoints(ip: IpAddr, ports: &BTreeSet<u16>) -> impl Iterator<Item = AddressPort> {
    ports.iter().map(move |port| AddressPort::new(ip.into(), *port))
}

fn ports_of(reach: Option<&KnownServedPorts>) -> &BTreeSet<u16> {
    static NONE: BTreeSet<u16> = BTreeSet::new();
    match reach {
        Some(KnownServedPorts::Only(ports)) => ports,
        Some(KnownServedPorts::Unknown) | None => &NONE,
    }
}
