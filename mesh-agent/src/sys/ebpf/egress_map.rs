//! The map of strict egress: pods that may connect only to destinations that the mesh knows, and their
//! exceptions.

use aya::maps::lpm_trie::{Key, LpmTrie};
use aya::maps::{Map, MapData};
use ipnet::IpNet;
use mesh_common::strict_egress::{
    ANY_PORT, EGRESS_EXCEPTED, EGRESS_REFUSED, EgressKey, PREFIX_BITS_BEFORE_ADDRESS, PREFIX_BITS_OF_POD,
    refuse_all_key,
};

use super::map_helpers::ignore_missing;
use super::{Error, map_error};

const NAME: &str = "EGRESS";

/// The kernel's map of strict egress.
pub struct EgressMap(LpmTrie<MapData, EgressKey, u32>);

/// An entry: a pod's refusal, or one of its exceptions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EgressEntry {
    prefix: u32,
    key: EgressKey,
}

impl EgressEntry {
    /// Refuses every destination that the pod with this network namespace has no exception for.
    pub fn refuse_all(netns: u64) -> Self {
        Self { prefix: PREFIX_BITS_OF_POD, key: refuse_all_key(netns) }
    }

    /// Excepts a network, on one port or all of them.
    pub fn exception(netns: u64, net: IpNet, port: Option<u16>) -> Self {
        let length = u32::from(net.prefix_len()) + if net.addr().is_ipv4() { 96 } else { 0 };
        let key = EgressKey::new(netns, net.network().into(), port.unwrap_or(ANY_PORT));
        Self { prefix: PREFIX_BITS_BEFORE_ADDRESS + length, key }
    }

    /// Returns the cookie of the pod's network namespace.
    pub fn netns_cookie(self) -> u64 {
        self.key.pod_netns()
    }

    /// Whether the entry is a refusal.
    pub fn is_refusal(self) -> bool {
        self.prefix == PREFIX_BITS_OF_POD
    }

    fn key(self) -> Key<EgressKey> {
        Key::new(self.prefix, self.key)
    }
}

impl EgressMap {
    pub(super) fn new(map: MapData) -> Result<Self, Error> {
        Ok(Self(Map::LpmTrie(map).try_into().map_err(map_error(NAME))?))
    }

    /// Returns all entries. Errors: the map can't be read.
    pub fn entries(&self) -> Result<Vec<EgressEntry>, Error> {
        let entry = |key: Result<Key<EgressKey>, _>| {
            let key = key.map_err(map_error(NAME))?;
            Ok(EgressEntry { prefix: key.prefix_len(), key: key.data() })
        };
        self.0.keys().map(entry).collect()
    }

    /// Adds an entry. Errors: there is no room or memory.
    pub fn insert(&mut self, entry: EgressEntry) -> Result<(), Error> {
        let value = if entry.is_refusal() { EGRESS_REFUSED } else { EGRESS_EXCEPTED };
        self.0.insert(&entry.key(), value, 0).map_err(map_error(NAME))
    }

    /// Removes an entry; one that is not there counts as removed. Errors: the map can't be written.
    pub fn remove(&mut self, entry: EgressEntry) -> Result<(), Error> {
        ignore_missing(self.0.remove(&entry.key())).map_err(map_error(NAME))
    }
}
