//! The maps of pods' veths: how each pod is connected, and the addresses that flows from veth to veth may
//! have. The keeper writes them; the proxy reads how pods are connected.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Array, HashMap, Map, MapData};
use mesh_common::address::Address;
use mesh_common::veth::{NEIGHBOUR_SLOTS, PodLinkKind, PodVeth, VethObstacle, neighbour_slot};

use super::attach;
use super::map_helpers::{dup_hash_map_handle, ignore_missing, take_map};
use super::{Error, map_error};

/// Name of the map of how pods are connected.
pub(super) const VETHS: &str = "VETHS";

/// The maps of pods' veths, as the keeper writes them.
pub(super) struct PodVethMaps {
    veths: HashMap<MapData, u64, PodVeth>,
    neighbours: Array<MapData, u64>,
}

impl PodVethMaps {
    /// Takes the maps out of the loaded object. Errors: one is missing or of another kind.
    pub fn from_loaded_object(ebpf: &mut Ebpf) -> Result<Self, Error> {
        // The proxy gets the first map as well.
        let veths = Map::HashMap(dup_hash_map_handle(ebpf, VETHS).ok_or(Error::Missing(VETHS))?);
        Ok(Self {
            veths: veths.try_into().map_err(map_error(VETHS))?,
            neighbours: take_map(ebpf, "NEIGHBOURS")?,
        })
    }

    /// Sets how a pod is connected. Errors: a map can't be written.
    pub fn set_pod_link(
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

    /// Removes a pod's entry, so that no connection of it is filed any more, and returns the index of the
    /// node's end of its veth; `None` if it had no entry. Errors: a map can't be written.
    pub fn take_veth_ifindex(&mut self, cookie: u64) -> Result<Option<u32>, Error> {
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
    pub fn replace_allowed_flow_addresses(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<(), Error> {
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

/// Removes how pods are connected from the maps of all agents that pinned below a directory, so that their
/// programs file no more connections.
pub fn clear_pinned_pod_links(root: &Path) {
    clear_pod_links_of_layouts(attach::list_pins(root).into_iter().map(|(_, layout)| layout));
}

/// Does the same for layouts by the directories of their pins.
pub(super) fn clear_pod_links_of_layouts(layouts: impl IntoIterator<Item = PathBuf>) {
    /// Time after which a program that has looked just before is done.
    const DONE: Duration = Duration::from_millis(5);
    for layout in layouts {
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
