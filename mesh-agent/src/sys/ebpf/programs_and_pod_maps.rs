//! The loaded programs, and the maps that the keeper writes when pods come and go.

use std::collections::HashSet;
use std::fs;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use aya::maps::{Array, HashMap, MapData, SockHash};
use aya::{Ebpf, EbpfLoader};
use aya_log::{EbpfLogger, Level};
use mesh_common::address::Address;
use mesh_common::maps::{AddressPort, EnrolledPod, InboundListenerKind, ListenerKey, ProxyProcess};
use mesh_common::veth::{DirectPathMode, PodLinkKind, VethObstacle};

use super::known_sandboxes::SandboxMap;
use super::map_helpers::{ignore_missing, map_descriptor, replace_keys, take_map};
use super::pod_link_maps::{PodVethMaps, clear_pod_links_of_layouts};
use super::veth_flow_maps::{VETH_FLOWS, VethFlows};
use super::{Error, PEER, PROXY_MAP_NAMES, attach, map_error};
use crate::sys::{self, HostVeth, Netns, SocketKind};

/// The object that `cargo xtask build-ebpf` made.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// Maps that outlive the keeper. The others (log, events, listeners, routes) are made anew each time.
const PINNED: [&str; 19] = [
    "PROXIES",
    "PODS",
    "SANDBOXES",
    "OWNERS",
    "DESTINATIONS",
    "OPEN_PORTS",
    "EGRESS",
    "HANDOFFS",
    PEER,
    "PROBE_PORTS",
    "PROBES",
    "HERE",
    "INBOUND",
    "DIRECT_FLOWS",
    "DIRECT",
    "DIRECT_OPEN",
    "VETHS",
    "NEIGHBOURS",
    VETH_FLOWS,
];

/// Version of the maps' layout, so that a keeper never takes over maps that it would misread.
const LAYOUT: &str = "v6";

/// Reads the programs' debug lines into the log.
pub type EbpfLogReader = EbpfLogger<&'static dyn log::Log>;

/// The loaded programs and the maps that the keeper writes.
pub struct Programs {
    ebpf: Ebpf,
    root: PathBuf,
    cgroup: PathBuf,
    cgroup_links: PathBuf,
    pod_links: PathBuf,
    veth_links: PathBuf,
    attached: bool,
    proxies: HashMap<MapData, ProxyProcess, u32>,
    pods: HashMap<MapData, u64, EnrolledPod>,
    probe_ports: HashMap<MapData, AddressPort, u32>,
    node_cgroups: HashMap<MapData, u64, u32>,
    listeners: SockHash<MapData, ListenerKey>,
    owners: HashMap<MapData, Address, u64>,
    sandboxes: SandboxMap,
    veths: PodVethMaps,
}

/// Settings that the programs are loaded with.
pub struct LoadSettings {
    /// Cookie of the node's network namespace.
    pub home: u64,
    /// Number of workers that have listeners.
    pub workers: u8,
    /// Most detailed level of the programs' own log.
    pub log: Level,
    /// Whether they tell of connections past the mesh.
    pub count_untouched: bool,
    /// How connections between pods of the node should go.
    pub wanted: DirectPathMode,
}

/// Loads the object and has the kernel check its programs: those that know MPTCP sockets, or the others if it
/// has none.
pub(super) fn load_object(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, Error> {
    let mut load = |mptcp| {
        let mut ebpf = loader.override_global("MPTCP", mptcp, true).load(OBJECT)?;
        attach::verify_programs(&mut ebpf)?;
        Ok(ebpf)
    };
    load(&1_u8).or_else(|error: Error| {
        tracing::debug!(%error, "programs that know MPTCP are refused");
        load(&0)
    })
}

impl Programs {
    /// Loads the programs, and takes over a predecessor's pinned maps. They do nothing until
    /// [`Self::attach_at_node_and_pods`]. Errors: see [`Error`].
    pub fn load(root: &Path, cgroup: &Path, settings: &LoadSettings) -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotEmbedded);
        }
        let metadata = fs::metadata(cgroup).map_err(|error| Error::Path { path: cgroup.into(), error })?;
        let maps = directory(root, "maps")?;
        // A link stays with the cgroup that it was made for; one of another setting must not be used for it.
        let cgroup_links = directory(root, &format!("cgroups/{}", metadata.ino()))?;
        let (pod_links, veth_links) = (directory(root, attach::POD_PINS_DIR)?, directory(root, "veths")?);
        let (level, wanted) = (settings.log as u8, settings.wanted as u8);
        let count_untouched = u8::from(settings.count_untouched);
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, false);
        loader.override_global("COUNT_UNTOUCHED", &count_untouched, true);
        loader.override_global("SAME_NODE", &wanted, true);
        for name in PINNED {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = load_object(&mut loader)?;
        let mut count: Array<_, u32> = take_map(&mut ebpf, "WORKERS")?;
        count.set(0, u32::from(settings.workers), 0).map_err(map_error("WORKERS"))?;
        let mut namespace: Array<_, u64> = take_map(&mut ebpf, "HOME")?;
        namespace.set(0, settings.home, 0).map_err(map_error("HOME"))?;
        Ok(Self {
            proxies: take_map(&mut ebpf, "PROXIES")?,
            pods: take_map(&mut ebpf, "PODS")?,
            probe_ports: take_map(&mut ebpf, "PROBE_PORTS")?,
            node_cgroups: take_map(&mut ebpf, "NODE_CGROUPS")?,
            listeners: take_map(&mut ebpf, "LISTENERS")?,
            owners: take_map(&mut ebpf, "OWNERS")?,
            sandboxes: SandboxMap::new(take_map(&mut ebpf, "SANDBOXES")?),
            veths: PodVethMaps::from_loaded_object(&mut ebpf)?,
            ebpf,
            root: root.to_owned(),
            cgroup: cgroup.to_owned(),
            cgroup_links,
            pod_links,
            veth_links,
            attached: false,
        })
    }

    /// Whether an agent with another layout of maps left its programs attached.
    pub fn has_other_layouts(&self) -> bool {
        self.other_layouts().next().is_some()
    }

    fn other_layouts(&self) -> impl Iterator<Item = PathBuf> {
        attach::list_pins(&self.root).into_iter().filter(|(name, _)| name != LAYOUT).map(|(_, path)| path)
    }

    /// Has programs of other layouts, which run beside these for a moment, file no more connections: two that
    /// both steer one would have it fail.
    pub fn clear_pod_links_of_other_layouts(&self) {
        if self.has_other_layouts() {
            clear_pod_links_of_layouts(self.other_layouts());
        }
    }

    /// Attaches these programs in place of a predecessor's, at the node and at the pods that are enrolled
    /// already. Errors: see [`Error`].
    pub fn attach_at_node_and_pods<'a>(
        &mut self,
        enrolled: impl IntoIterator<Item = &'a Netns>,
    ) -> Result<(), Error> {
        // Inbound before outbound.
        attach::set_inbound_program(&mut self.ebpf)?;
        for netns in enrolled {
            attach::attach_prologue(&self.ebpf, netns, &self.link_of(netns.cookie()))?;
        }
        attach::attach_cgroup_programs(&mut self.ebpf, &self.cgroup, &self.cgroup_links)?;
        for (_, path) in attach::list_pins(&self.root.join(LAYOUT).join("cgroups")) {
            if path != self.cgroup_links {
                attach::unpin_all(&path).map_err(|error| Error::Path { path, error })?;
            }
        }
        self.attached = true;
        Ok(())
    }

    /// Returns the connections from veth to veth.
    pub fn veth_flows(&self) -> Option<VethFlows> {
        VethFlows::from_object(&self.ebpf)
    }

    /// Returns the veth flows of agents with other layouts of their maps.
    pub fn veth_flows_of_other_layouts(&self) -> Vec<VethFlows> {
        self.other_layouts().filter_map(|path| VethFlows::open_pinned_in(&path)).collect()
    }

    /// Removes what agents with other layouts left. Errors: a pin can't be removed.
    pub fn remove_other_layouts(&self) -> Result<(), Error> {
        let mut others = self.other_layouts();
        others.try_for_each(|path| attach::unpin_all(&path).map_err(|error| Error::Path { path, error }))
    }

    /// Finds how a pod is connected, with the node's end of its veth if it has one. Attaches the program
    /// there if nothing else would be bypassed, and has connections filed from then on. Returns how it is
    /// connected, and why not better. Errors: a map can't be written.
    pub fn attach_veth_if_unobstructed(
        &mut self,
        cookie: u64,
        addresses: &[IpAddr],
        end: Option<&HostVeth>,
    ) -> Result<(PodLinkKind, VethObstacle), Error> {
        let (link, obstacle) = match end {
            None => (PodLinkKind::Shared, VethObstacle::NoVeth),
            Some(end) => match (self.obstacle(cookie, end), end.is_port) {
                (VethObstacle::None, _) => (PodLinkKind::Guarded, VethObstacle::None),
                (obstacle, true) => (PodLinkKind::Shared, obstacle),
                (obstacle, false) => (PodLinkKind::Routed, obstacle),
            },
        };
        self.veths.allow_flow_addresses(addresses)?;
        self.veths.set_pod_link(cookie, end.map(|end| end.ifindex), link, obstacle)?;
        Ok((link, obstacle))
    }

    /// Returns what stands in the way of a program at a pod's veth. If nothing does the program is there
    /// afterwards.
    fn obstacle(&mut self, cookie: u64, end: &HostVeth) -> VethObstacle {
        let pin = self.veth_pin_path(cookie);
        if end.is_shaped {
            return VethObstacle::Shaped;
        }
        let attached = attach::attach_to_veth(&mut self.ebpf, end, &pin);
        match attached.and_then(|()| attach::is_only_program_at_veth(&mut self.ebpf, end)) {
            Ok(true) => VethObstacle::None,
            Ok(false) => VethObstacle::OtherProgram,
            Err(error) => {
                tracing::debug!(veth = end.name, %error, "no program at a veth");
                VethObstacle::NoProgram
            }
        }
    }

    /// Removes a pod's veth from the map, so that no connection of it is filed any more, and returns the
    /// index of the node's end; `None` if it was not there. The program stays attached. Errors: a map can't
    /// be written.
    pub fn take_veth_ifindex(&mut self, cookie: u64) -> Result<Option<u32>, Error> {
        self.veths.take_veth_ifindex(cookie)
    }

    /// Returns pods, other than `cookies`, to whose veths a predecessor has attached a program, or whose
    /// flows it has filed.
    pub fn leftover_veth_pods_except(&self, cookies: &HashSet<u64>) -> HashSet<u64> {
        let pinned =
            attach::list_pins(&self.veth_links).into_iter().filter_map(|(name, _)| name.parse().ok());
        self.veths
            .pod_cookies()
            .into_iter()
            .chain(pinned)
            .filter(|cookie| !cookies.contains(cookie))
            .collect()
    }

    /// Returns the pin of the program at a pod's veth.
    pub fn veth_pin_path(&self, cookie: u64) -> PathBuf {
        self.veth_links.join(cookie.to_string())
    }

    /// Allows packets to these addresses, and to no others, to be part of filed flows. Errors: a map can't be
    /// written.
    pub fn replace_allowed_flow_addresses(
        &mut self,
        addresses: impl Iterator<Item = IpAddr>,
    ) -> Result<(), Error> {
        self.veths.replace_allowed_flow_addresses(addresses)
    }

    /// Whether these programs are attached.
    pub fn are_attached(&self) -> bool {
        self.attached
    }

    /// Returns the reader of the programs' debug lines. Errors: the map is missing.
    pub fn log_reader(&mut self) -> Result<EbpfLogReader, Error> {
        EbpfLogger::init(&mut self.ebpf).map_err(|_| Error::Missing("AYA_LOGS"))
    }

    /// Returns the maps that the proxy reads and writes, in the order of [`super::MapsHandedToProxy`].
    /// Errors: one is missing.
    pub fn proxy_map_fds(&self) -> Result<Vec<BorrowedFd<'_>>, Error> {
        PROXY_MAP_NAMES
            .iter()
            .map(|name| self.ebpf.map(name).and_then(map_descriptor).ok_or(Error::Missing(name)))
            .collect()
    }

    /// Exempts a proxy from redirection. Errors: the map can't be written.
    pub fn exempt_proxy(&mut self, proxy: ProxyProcess) -> Result<(), Error> {
        self.proxies.insert(proxy, 1, 0).map_err(map_error("PROXIES"))
    }

    /// Ends the exemption of a proxy that has ended. Errors: the map can't be written.
    pub fn end_proxy_exemption(&mut self, proxy: ProxyProcess) -> Result<(), Error> {
        ignore_missing(self.proxies.remove(&proxy)).map_err(map_error("PROXIES"))
    }

    /// Ends the exemptions of proxies that ended with their keepers. Errors: the map can't be written.
    pub fn end_dead_proxy_exemptions(&mut self) -> Result<(), Error> {
        let all: Vec<ProxyProcess> = self.proxies.keys().flatten().collect();
        let ended = |proxy: &&ProxyProcess| !Path::new(&format!("/proc/{}", proxy.tgid)).exists();
        all.iter().filter(ended).try_for_each(|proxy| self.end_proxy_exemption(*proxy))
    }

    /// Adds one of a pod's inbound listeners to the map of `sk_lookup`. Errors: the map can't be written.
    pub fn add_inbound_listener(
        &mut self,
        cookie: u64,
        kind: InboundListenerKind,
        worker: u8,
        socket: &impl AsRawFd,
    ) -> Result<(), Error> {
        let key = ListenerKey::new(cookie, kind, worker);
        self.listeners.insert(key, socket.as_raw_fd(), 0).map_err(map_error("LISTENERS"))
    }

    /// Defers the accepts of a pod's outbound listeners until the proxy knows whether the destination takes
    /// the connection. If that is not possible (sending SYNs again needs `CAP_NET_RAW`), which is logged, the
    /// client learns of a refusal after `connect()`.
    pub fn try_defer_outbound_accepts<'a>(
        &self,
        netns: &Netns,
        mut outbound: impl Iterator<Item = &'a TcpListener>,
    ) {
        let can_send = sys::open_unconnected_sockets(netns, SocketKind::LoopbackPacketsV4, 1);
        let deferred = can_send.map_err(|error| error.to_string()).and_then(|_| {
            let mut each = |listener| attach::attach_syn_deferral_to_listener(&self.ebpf, listener);
            outbound.try_for_each(&mut each).map_err(|error| error.to_string())
        });
        if let Err(error) = deferred {
            tracing::warn!(%error, "connect() of a pod succeeds before it is known whether somebody listens");
        }
    }

    /// Returns the namespace that a pod is enrolled in, or that is held for it since a predecessor enrolled
    /// it.
    pub fn netns_cookie_of_pod(&self, uid: &str) -> Option<u64> {
        self.sandboxes.netns_cookie_of_pod(uid)
    }

    /// Whether the preexisting connections of a namespace have been judged.
    pub fn is_preexisting_judged(&self, cookie: u64) -> bool {
        self.sandboxes.is_preexisting_judged(cookie)
    }

    /// Records that the pod's preexisting connections have been judged. Errors: the map can't be written.
    pub fn mark_preexisting_judged(&mut self, cookie: u64) -> Result<(), Error> {
        self.sandboxes.mark_preexisting_judged(cookie)
    }

    /// Returns the pod that a namespace is held for.
    pub fn pod_of_netns(&self, cookie: u64) -> Option<&str> {
        self.sandboxes.pod_of_netns(cookie)
    }

    /// Enrols a pod whose listeners are in place: inbound before outbound. Errors: a map can't be written.
    pub fn enrol(
        &mut self,
        uid: &str,
        netns: &Netns,
        addresses: &[IpAddr],
        probe_ports: &[u16],
    ) -> Result<(), Error> {
        // If a keeper that made no such notes has enrolled it, nothing has slipped through since.
        let enrolled = self.pods.get(&netns.cookie(), 0).is_ok();
        self.sandboxes.insert_or_keep(netns.cookie(), uid, enrolled)?;
        for endpoint in probe_endpoints(addresses, probe_ports) {
            self.probe_ports.insert(endpoint, 1, 0).map_err(map_error("PROBE_PORTS"))?;
        }
        if self.attached {
            attach::attach_prologue(&self.ebpf, netns, &self.link_of(netns.cookie()))?;
        }
        for &address in addresses {
            self.owners.insert(Address::from(address), netns.cookie(), 0).map_err(map_error("OWNERS"))?;
        }
        let pod = EnrolledPod {
            address_v4: first(addresses, IpAddr::is_ipv4),
            address_v6: first(addresses, IpAddr::is_ipv6),
            loopback_v6: widen_loopback(uid, netns),
        };
        self.pods.insert(netns.cookie(), pod, 0).map_err(map_error("PODS"))
    }

    /// Takes a pod out, outbound before inbound; entries that are missing count as removed. `kept` are the
    /// probes of all other pods: one that took over an address meanwhile keeps its own, and gets none of this
    /// pod's. Errors: a map can't be written.
    pub fn unenrol(
        &mut self,
        cookie: u64,
        addresses: &[IpAddr],
        probe_ports: &[u16],
        kept: &HashSet<AddressPort>,
    ) -> Result<(), Error> {
        ignore_missing(self.pods.remove(&cookie)).map_err(map_error("PODS"))?;
        self.disown(cookie, addresses)?;
        attach::remove_pin(&self.link_of(cookie))?;
        for endpoint in probe_endpoints(addresses, probe_ports).filter(|endpoint| !kept.contains(endpoint)) {
            ignore_missing(self.probe_ports.remove(&endpoint)).map_err(map_error("PROBE_PORTS"))?;
        }
        self.sandboxes.remove(cookie)
    }

    /// Removes a pod's addresses, except those that another pod took over meanwhile.
    fn disown(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<(), Error> {
        let known = addresses.iter().copied().map(Address::from);
        let all: Vec<Address> = match addresses {
            // Those of a pod that a predecessor enrolled have to be found.
            [] => self.owners.keys().flatten().collect(),
            _ => known.collect(),
        };
        for address in all {
            if self.owners.get(&address, 0).is_ok_and(|owner| owner == cookie) {
                ignore_missing(self.owners.remove(&address)).map_err(map_error("OWNERS"))?;
            }
        }
        Ok(())
    }

    /// Takes out pods that a predecessor enrolled, other than `cookies`, and their probes, other than `kept`.
    /// Errors: a map can't be written.
    pub fn retain_pods(&mut self, cookies: &HashSet<u64>, kept: &HashSet<AddressPort>) -> Result<(), Error> {
        let stale: Vec<u64> = self.pods.keys().flatten().filter(|cookie| !cookies.contains(cookie)).collect();
        for cookie in stale {
            ignore_missing(self.pods.remove(&cookie)).map_err(map_error("PODS"))?;
        }
        for (name, path) in attach::list_pins(&self.pod_links) {
            if !name.parse().is_ok_and(|cookie| cookies.contains(&cookie)) {
                attach::remove_pin(&path)?;
            }
        }
        let stale: Vec<AddressPort> =
            self.probe_ports.keys().flatten().filter(|endpoint| !kept.contains(endpoint)).collect();
        for endpoint in stale {
            ignore_missing(self.probe_ports.remove(&endpoint)).map_err(map_error("PROBE_PORTS"))?;
        }
        let stale = self.owners.iter().flatten().filter(|(_, owner)| !cookies.contains(owner));
        let stale: Vec<Address> = stale.map(|(address, _)| address).collect();
        for address in stale {
            ignore_missing(self.owners.remove(&address)).map_err(map_error("OWNERS"))?;
        }
        self.sandboxes.retain(cookies)
    }

    /// Sets the cgroups that only the node's own processes are below: their probes are let through. Errors: a
    /// map can't be written.
    pub fn replace_non_pod_cgroups(&mut self, wanted: HashSet<u64>) -> Result<(), Error> {
        replace_keys(&mut self.node_cgroups, wanted).map_err(map_error("NODE_CGROUPS"))
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

/// Gives a pod a network of IPv6 loopback addresses. Returns 1, or 0 if it stays with one: then all its
/// connections over IPv6 through the proxy share one set of ports.
fn widen_loopback(uid: &str, netns: &Netns) -> u32 {
    let widened = sys::add_loopback_network(netns);
    if let Err(error) = &widened {
        tracing::debug!(uid, %error, "no more loopback addresses for IPv6");
    }
    u32::from(widened.is_ok())
}

fn first(addresses: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> Address {
    addresses.iter().copied().find(family).map_or(Address::UNSPECIFIED, Address::from)
}

/// Returns the level of the programs' own log: it is per connection, so only debug and below enable it.
pub fn ebpf_log_level() -> Level {
    match tracing::level_filters::LevelFilter::current().into_level() {
        Some(tracing::Level::TRACE) => Level::Trace,
        Some(tracing::Level::DEBUG) => Level::Debug,
        _ => Level::Warn,
    }
}

/// Returns where the node's probes are let through to a pod.
pub fn probe_endpoints(addresses: &[IpAddr], ports: &[u16]) -> impl Iterator<Item = AddressPort> {
    addresses
        .iter()
        .flat_map(move |&address| ports.iter().map(move |&port| AddressPort::new(address.into(), port)))
}
