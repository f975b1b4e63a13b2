//! The loaded object and the maps that are written when pods or configuration change.

use std::collections::HashSet;
use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, MapData, SockHash};
use aya::{Ebpf, EbpfLoader};
use aya_log::Level;
use mesh_common::address::Address;
use mesh_common::maps::{AgentProcess, Endpoint, Listener, ListenerKind, Pod};

use super::flow::PEER;
use super::{Error, FlowMap, attach, map_error};
use crate::sys::Netns;

/// The object that `cargo xtask build-ebpf` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// Maps that outlive the agent. Those that are not here (log, events, listeners) are made anew each time.
const PINNED: [&str; 9] = [
    "AGENT",
    "PODS",
    "DESTINATIONS",
    "HANDOFFS",
    PEER,
    "PROBE_PORTS",
    "NODE_ADDRESSES",
    "DIRECT_FLOWS",
    "DIRECT",
];

/// Changes with the layout of the maps, so that an agent never takes over maps that it would misread.
const LAYOUT: &str = "v1";

/// What the kernel is to know of an enrolled pod.
#[derive(Clone, Debug)]
pub struct PodKeys {
    /// Addresses of the pod.
    pub addresses: Vec<IpAddr>,
    /// Ports that it declares in its probes.
    pub probe_ports: Vec<u16>,
}

/// The loaded programs and the maps that the enroller writes.
pub struct Programs {
    ebpf: Ebpf,
    maps: PathBuf,
    pod_links: PathBuf,
    agent: Array<MapData, AgentProcess>,
    pods: HashMap<MapData, u64, Pod>,
    destinations: HashMap<MapData, Address, u32>,
    probe_ports: HashMap<MapData, Endpoint, u32>,
    node_addresses: HashMap<MapData, Address, u32>,
    listeners: SockHash<MapData, Listener>,
    owners: HashMap<MapData, Address, u64>,
}

impl Programs {
    /// Loads the programs, takes over pinned maps of a predecessor, and attaches to the node's cgroup. `log` is the
    /// most detailed level that the programs themselves log at. Until [`Self::announce`] they exempt the process that
    /// the predecessor announced.
    pub fn load(root: &Path, cgroup: &Path, log: Level) -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotEmbedded);
        }
        let maps = directory(root, "maps")?;
        let links = directory(root, "links")?;
        let pod_links = directory(root, "pods")?;
        let level = log as u8;
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, false);
        for name in PINNED {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = loader.load(OBJECT)?;
        attach::attach_to_cgroup(&mut ebpf, cgroup, &links)?;
        Ok(Self {
            agent: take(&mut ebpf, "AGENT")?,
            pods: take(&mut ebpf, "PODS")?,
            destinations: take(&mut ebpf, "DESTINATIONS")?,
            probe_ports: take(&mut ebpf, "PROBE_PORTS")?,
            node_addresses: take(&mut ebpf, "NODE_ADDRESSES")?,
            listeners: take(&mut ebpf, "LISTENERS")?,
            owners: take(&mut ebpf, "OWNERS")?,
            ebpf,
            maps,
            pod_links,
        })
    }

    /// The loaded object, for its log and event rings.
    pub(super) fn object(&mut self) -> &mut Ebpf {
        &mut self.ebpf
    }

    /// Tells the programs which process is exempt and how many workers listen.
    pub fn announce(&mut self, process: AgentProcess) -> Result<(), Error> {
        self.agent.set(0, process, 0).map_err(map_error("AGENT"))
    }

    /// A handle for one worker.
    pub fn flow_map(&self) -> Result<FlowMap, Error> {
        FlowMap::open(&self.maps)
    }

    /// Gives one of a pod's inbound listeners to `sk_lookup`, for each of the pod's addresses.
    pub fn add_listener(
        &mut self,
        addresses: &[IpAddr],
        kind: ListenerKind,
        worker: u8,
        socket: &std::net::TcpListener,
    ) -> Result<(), Error> {
        for &address in addresses {
            let key = Listener::new(address.into(), kind, worker);
            self.listeners.insert(key, socket.as_raw_fd(), 0).map_err(map_error("LISTENERS"))?;
        }
        Ok(())
    }

    /// Enrols a pod whose listeners are in place: first what arrives, then what leaves.
    pub fn enrol(&mut self, netns: &Netns, keys: &PodKeys) -> Result<(), Error> {
        for endpoint in probe_endpoints(keys) {
            self.probe_ports.insert(endpoint, 1, 0).map_err(map_error("PROBE_PORTS"))?;
        }
        let link = self.link_of(netns.cookie());
        attach::attach_to_pod(&mut self.ebpf, netns.as_fd(), &link)?;
        for &address in &keys.addresses {
            self.owners.insert(Address::from(address), netns.cookie(), 0).map_err(map_error("OWNERS"))?;
        }
        let pod = Pod { address_v4: first(keys, IpAddr::is_ipv4), address_v6: first(keys, IpAddr::is_ipv6) };
        self.pods.insert(netns.cookie(), pod, 0).map_err(map_error("PODS"))
    }

    /// Takes a pod out, in the opposite order. What is not there is out already.
    pub fn dismiss(&mut self, cookie: u64, keys: &PodKeys) -> Result<(), Error> {
        absent_is_fine(self.pods.remove(&cookie)).map_err(map_error("PODS"))?;
        self.disown(cookie, keys)?;
        attach::detach(&self.link_of(cookie))?;
        for endpoint in probe_endpoints(keys) {
            absent_is_fine(self.probe_ports.remove(&endpoint)).map_err(map_error("PROBE_PORTS"))?;
        }
        Ok(())
    }

    /// A pod that took an address over meanwhile keeps it.
    fn disown(&mut self, cookie: u64, keys: &PodKeys) -> Result<(), Error> {
        for &address in &keys.addresses {
            let address = Address::from(address);
            if self.owners.get(&address, 0).is_ok_and(|owner| owner == cookie) {
                absent_is_fine(self.owners.remove(&address)).map_err(map_error("OWNERS"))?;
            }
        }
        Ok(())
    }

    /// Takes out the pods that a predecessor enrolled and that are not among `cookies`.
    pub fn retain_pods(&mut self, cookies: &HashSet<u64>) -> Result<(), Error> {
        let stale: Vec<u64> = self.pods.keys().flatten().filter(|cookie| !cookies.contains(cookie)).collect();
        for cookie in stale {
            absent_is_fine(self.pods.remove(&cookie)).map_err(map_error("PODS"))?;
        }
        for (name, path) in attach::pins(&self.pod_links) {
            if !name.parse().is_ok_and(|cookie| cookies.contains(&cookie)) {
                attach::detach(&path)?;
            }
        }
        Ok(())
    }

    /// Replaces the set of addresses that the mesh knows. What stays is never missing.
    pub fn replace_destinations(&mut self, wanted: HashSet<Address>) -> Result<(), Error> {
        replace(&mut self.destinations, wanted).map_err(map_error("DESTINATIONS"))
    }

    /// Changes that set: `gone` goes and `come` comes, in this order, so that a set which is nearly full has room.
    pub fn change_destinations(
        &mut self,
        come: impl Iterator<Item = Address>,
        gone: impl Iterator<Item = Address>,
    ) -> Result<(), Error> {
        change(&mut self.destinations, come, gone).map_err(map_error("DESTINATIONS"))
    }

    /// Replaces the set of the node's own addresses.
    pub fn replace_node_addresses(&mut self, wanted: HashSet<Address>) -> Result<(), Error> {
        replace(&mut self.node_addresses, wanted).map_err(map_error("NODE_ADDRESSES"))
    }

    fn link_of(&self, cookie: u64) -> PathBuf {
        self.pod_links.join(cookie.to_string())
    }
}

fn directory(root: &Path, name: &str) -> Result<PathBuf, Error> {
    let path = root.join(LAYOUT).join(name);
    fs::create_dir_all(&path).map_err(|error| Error::Path { path: path.clone(), error })?;
    Ok(path)
}

pub(super) fn take<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, Error>
where
    M: TryFrom<aya::maps::Map, Error = aya::maps::MapError>,
{
    ebpf.take_map(name).ok_or(Error::Missing(name))?.try_into().map_err(map_error(name))
}

fn first(keys: &PodKeys, family: impl Fn(&IpAddr) -> bool) -> Address {
    keys.addresses.iter().copied().find(family).map_or(Address::UNSPECIFIED, Address::from)
}

fn probe_endpoints(keys: &PodKeys) -> impl Iterator<Item = Endpoint> + '_ {
    keys.addresses
        .iter()
        .flat_map(|&address| keys.probe_ports.iter().map(move |&port| Endpoint::new(address.into(), port)))
}

fn replace(
    map: &mut HashMap<MapData, Address, u32>,
    mut wanted: HashSet<Address>,
) -> Result<(), aya::maps::MapError> {
    let mut gone = Vec::new();
    for present in map.keys() {
        let present = present?;
        if !wanted.remove(&present) {
            gone.push(present);
        }
    }
    change(map, wanted.into_iter(), gone.into_iter())
}

fn change(
    map: &mut HashMap<MapData, Address, u32>,
    come: impl Iterator<Item = Address>,
    gone: impl Iterator<Item = Address>,
) -> Result<(), aya::maps::MapError> {
    for address in gone {
        absent_is_fine(map.remove(&address))?;
    }
    for address in come {
        map.insert(address, 1, 0)?;
    }
    Ok(())
}

pub(super) fn absent_is_fine(result: Result<(), aya::maps::MapError>) -> Result<(), aya::maps::MapError> {
    match result {
        Err(aya::maps::MapError::KeyNotFound) => Ok(()),
        Err(aya::maps::MapError::SyscallError(error))
            if error.io_error.kind() == std::io::ErrorKind::NotFound =>
        {
            Ok(())
        }
        result => result,
    }
}
