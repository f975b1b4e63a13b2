//! The loaded object, and the maps that are written when pods come and go: the keeper's.

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
use mesh_common::maps::{Endpoint, Listener, ListenerKind, Pod, Proxy};
use mesh_common::veth::{Link, Obstacle, Wanted};

use super::map::{absent_is_fine, descriptor, replace, take};
use super::sandboxes::Sandboxes;
use super::veth::{self, VETH_FLOWS, VethFlows, Veths};
use super::{Error, PEER, PROXY_MAPS, attach, map_error};
use crate::sys::{self, HostEnd, Netns, SocketKind};

/// The object that `cargo xtask build-ebpf` made.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/mesh-ebpf.o"));

/// Maps that outlive the keeper. Those that are not here (log, events, listeners, routes) are made anew each
/// time.
const PINNED: [&str; 20] = [
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
    "VETH_ENDS",
];

/// Changes with the layout of the maps, so that a keeper never takes over maps that it would misread.
const LAYOUT: &str = "v5";

/// The debug lines of the programs, on their way to the log.
pub type Lines = EbpfLogger<&'static dyn log::Log>;

/// The loaded programs and the maps that the keeper writes.
pub struct Programs {
    ebpf: Ebpf,
    root: PathBuf,
    cgroup: PathBuf,
    cgroup_links: PathBuf,
    pod_links: PathBuf,
    veth_links: PathBuf,
    attached: bool,
    proxies: HashMap<MapData, Proxy, u32>,
    pods: HashMap<MapData, u64, Pod>,
    probe_ports: HashMap<MapData, Endpoint, u32>,
    node_cgroups: HashMap<MapData, u64, u32>,
    listeners: SockHash<MapData, Listener>,
    owners: HashMap<MapData, Address, u64>,
    sandboxes: Sandboxes,
    veths: Veths,
}

/// What the programs are loaded with.
pub struct Settings {
    /// Cookie of the node's network namespace.
    pub home: u64,
    /// Workers that have listeners.
    pub workers: u8,
    /// The most detailed level that the programs themselves log at.
    pub log: Level,
    /// They tell of connections that the mesh leaves alone.
    pub count_untouched: bool,
    /// How connections between pods of the node go.
    pub wanted: Wanted,
}

/// Has the kernel take the object and check its programs: those that know MPTCP sockets, or where it has none
/// the others.
pub(super) fn load(loader: &mut EbpfLoader<'_>) -> Result<Ebpf, Error> {
    let mut load = |mptcp| {
        let mut ebpf = loader.override_global("MPTCP", mptcp, true).load(OBJECT)?;
        attach::load(&mut ebpf)?;
        Ok(ebpf)
    };
    load(&1_u8).or_else(|error: Error| {
        tracing::debug!(%error, "programs that know MPTCP are refused");
        load(&0)
    })
}

impl Programs {
    /// Loads the programs, and takes over pinned maps of a predecessor. They do nothing until
    /// [`Self::attach`].
    pub fn load(root: &Path, cgroup: &Path, settings: &Settings) -> Result<Self, Error> {
        if OBJECT.is_empty() {
            return Err(Error::NotEmbedded);
        }
        let metadata = fs::metadata(cgroup).map_err(|error| Error::Path { path: cgroup.into(), error })?;
        let maps = directory(root, "maps")?;
        // A link stays with the cgroup that it was made for; one of another setting is not to be taken for
        // it.
        let cgroup_links = directory(root, &format!("cgroups/{}", metadata.ino()))?;
        let (pod_links, veth_links) = (directory(root, attach::PODS)?, directory(root, "veths")?);
        let (level, wanted) = (settings.log as u8, settings.wanted as u8);
        let count_untouched = u8::from(settings.count_untouched);
        let mut loader = EbpfLoader::new();
        loader.override_global(aya_log::LEVEL, &level, false);
        loader.override_global("COUNT_UNTOUCHED", &count_untouched, true);
        loader.override_global("SAME_NODE", &wanted, true);
        for name in PINNED {
            loader.map_pin_path(name, maps.join(name));
        }
        let mut ebpf = load(&mut loader)?;
        let mut count: Array<_, u32> = take(&mut ebpf, "WORKERS")?;
        count.set(0, u32::from(settings.workers), 0).map_err(map_error("WORKERS"))?;
        let mut namespace: Array<_, u64> = take(&mut ebpf, "HOME")?;
        namespace.set(0, settings.home, 0).map_err(map_error("HOME"))?;
        Ok(Self {
            proxies: take(&mut ebpf, "PROXIES")?,
            pods: take(&mut ebpf, "PODS")?,
            probe_ports: take(&mut ebpf, "PROBE_PORTS")?,
            node_cgroups: take(&mut ebpf, "NODE_CGROUPS")?,
            listeners: take(&mut ebpf, "LISTENERS")?,
            owners: take(&mut ebpf, "OWNERS")?,
            sandboxes: Sandboxes::new(take(&mut ebpf, "SANDBOXES")?),
            veths: Veths::take(&mut ebpf)?,
            ebpf,
            root: root.to_owned(),
            cgroup: cgroup.to_owned(),
            cgroup_links,
            pod_links,
            veth_links,
            attached: false,
        })
    }

    /// Whether an agent with maps of another layout left its programs attached.
    pub fn have_other_layouts(&self) -> bool {
        self.other_layouts().next().is_some()
    }

    fn other_layouts(&self) -> impl Iterator<Item = PathBuf> {
        attach::pins(&self.root).into_iter().filter(|(name, _)| name != LAYOUT).map(|(_, path)| path)
    }

    /// Lets these programs decide in place of a predecessor's, at the node and at the pods that are enrolled
    /// already.
    pub fn attach<'a>(&mut self, enrolled: impl IntoIterator<Item = &'a Netns>) -> Result<(), Error> {
        // What arrives before what leaves.
        attach::decide_for_pods(&mut self.ebpf)?;
        for netns in enrolled {
            attach::attach_to_pod(&self.ebpf, netns, &self.link_of(netns.cookie()))?;
        }
        attach::attach_to_cgroup(&mut self.ebpf, &self.cgroup, &self.cgroup_links)?;
        for (_, path) in attach::pins(&self.root.join(LAYOUT).join("cgroups")) {
            if path != self.cgroup_links {
                attach::unpin_all(&path).map_err(|error| Error::Path { path, error })?;
            }
        }
        self.attached = true;
        Ok(())
    }

    /// The connections that go from veth to veth.
    pub fn veth_flows(&self) -> Option<VethFlows> {
        VethFlows::copy_of(&self.ebpf)
    }

    /// Those that other layouts have.
    pub fn other_veth_flows(&self) -> Vec<VethFlows> {
        self.other_layouts().filter_map(|path| VethFlows::pinned_in(&path)).collect()
    }

    /// Takes off what agents with other layouts left.
    pub fn remove_other_layouts(&self) -> Result<(), Error> {
        let mut others = self.other_layouts();
        others.try_for_each(|path| attach::unpin_all(&path).map_err(|error| Error::Path { path, error }))
    }

    /// Looks how a pod is connected, with the node's end of its veth if it has one: attaches the program
    /// there if nothing would be passed by, and has connections filed from then on. Returns how, and why not
    /// better.
    pub fn attach_veth(
        &mut self,
        cookie: u64,
        addresses: &[IpAddr],
        end: Option<&HostEnd>,
    ) -> Result<(Link, Obstacle), Error> {
        let (link, obstacle) = match end {
            None => (Link::Shared, Obstacle::NoVeth),
            Some(end) => match (self.obstacle(cookie, end), end.is_port) {
                (Obstacle::None, _) => (Link::Guarded, Obstacle::None),
                (obstacle, true) => (Link::Shared, obstacle),
                (obstacle, false) => (Link::Routed, obstacle),
            },
        };
        self.veths.add_neighbours(addresses)?;
        self.veths.set(cookie, end.map(|end| end.ifindex), link, obstacle)?;
        Ok((link, obstacle))
    }

    /// What stands in the way of a program at a pod's veth. Where nothing does it is there afterwards.
    fn obstacle(&mut self, cookie: u64, end: &HostEnd) -> Obstacle {
        let pin = self.veth_link_of(cookie);
        if end.is_shaped {
            return Obstacle::Shaped;
        }
        match veth::attach_to_veth(&mut self.ebpf, end, &pin) {
            Ok(true) => Obstacle::None,
            Ok(false) => Obstacle::OtherProgram,
            Err(error) => {
                tracing::debug!(veth = end.name, %error, "no program at a veth");
                Obstacle::NoProgram
            }
        }
    }

    /// No connection of a pod is filed from now on. Returns the index of the node's end of its veth.
    pub fn forget_veth(&mut self, cookie: u64) -> Result<Option<u32>, Error> {
        self.veths.forget(cookie)
    }

    /// Pods, other than `cookies`, whose veths have a program or are filed for, from a predecessor.
    pub fn veths_attached_besides(&self, cookies: &HashSet<u64>) -> HashSet<u64> {
        let pinned = attach::pins(&self.veth_links).into_iter().filter_map(|(name, _)| name.parse().ok());
        self.veths.cookies().into_iter().chain(pinned).filter(|cookie| !cookies.contains(cookie)).collect()
    }

    /// Where the program at a pod's veth is pinned.
    pub fn veth_link_of(&self, cookie: u64) -> PathBuf {
        self.veth_links.join(cookie.to_string())
    }

    /// Packets to these addresses, and to no other, may be part of filed flows.
    pub fn replace_neighbours(&mut self, addresses: impl Iterator<Item = IpAddr>) -> Result<(), Error> {
        self.veths.replace_neighbours(addresses)
    }

    /// Whether these programs decide, and no others.
    pub fn are_attached(&self) -> bool {
        self.attached
    }

    /// The programs' own debug lines.
    pub fn lines(&mut self) -> Result<Lines, Error> {
        EbpfLogger::init(&mut self.ebpf).map_err(|_| Error::Missing("AYA_LOGS"))
    }

    /// The maps that the proxy reads and writes, in the order of [`super::ProxyMaps`].
    pub fn proxy_maps(&self) -> Result<Vec<BorrowedFd<'_>>, Error> {
        PROXY_MAPS
            .iter()
            .map(|name| self.ebpf.map(name).and_then(descriptor).ok_or(Error::Missing(name)))
            .collect()
    }

    /// Exempts a proxy from redirection.
    pub fn exempt(&mut self, proxy: Proxy) -> Result<(), Error> {
        self.proxies.insert(proxy, 1, 0).map_err(map_error("PROXIES"))
    }

    /// No longer: it has ended.
    pub fn forget_proxy(&mut self, proxy: Proxy) -> Result<(), Error> {
        absent_is_fine(self.proxies.remove(&proxy)).map_err(map_error("PROXIES"))
    }

    /// Forgets those that ended with their keepers, which could not say so.
    pub fn forget_ended_proxies(&mut self) -> Result<(), Error> {
        let all: Vec<Proxy> = self.proxies.keys().flatten().collect();
        let ended = |proxy: &&Proxy| !Path::new(&format!("/proc/{}", proxy.tgid)).exists();
        all.iter().filter(ended).try_for_each(|proxy| self.forget_proxy(*proxy))
    }

    /// Gives one of a pod's inbound listeners to `sk_lookup`.
    pub fn add_listener(
        &mut self,
        cookie: u64,
        kind: ListenerKind,
        worker: u8,
        socket: &impl AsRawFd,
    ) -> Result<(), Error> {
        let key = Listener::new(cookie, kind, worker);
        self.listeners.insert(key, socket.as_raw_fd(), 0).map_err(map_error("LISTENERS"))
    }

    /// Has connections that come to a pod's outbound listeners wait until the proxy knows whether somebody
    /// takes them. Where that can't be had (their SYNs are sent again, for which `CAP_NET_RAW` is needed)
    /// they do not, and the client hears of a refusal after `connect()`.
    pub fn defer_accepts<'a>(&self, netns: &Netns, mut outbound: impl Iterator<Item = &'a TcpListener>) {
        let can_send = sys::open_sockets(netns, SocketKind::LoopbackV4, 1);
        let deferred = can_send.map_err(|error| error.to_string()).and_then(|_| {
            let mut each = |listener| attach::defer_accepts(&self.ebpf, listener);
            outbound.try_for_each(&mut each).map_err(|error| error.to_string())
        });
        if let Err(error) = deferred {
            tracing::warn!(%error, "connect() of a pod succeeds before it is known whether somebody listens");
        }
    }

    /// The namespace in which a pod is enrolled, or was by a predecessor, and is held until somebody lets it
    /// go.
    pub fn sandbox_of(&self, uid: &str) -> Option<u64> {
        self.sandboxes.of(uid)
    }

    /// Whether what was open in a namespace before it was enrolled has been seen to.
    pub fn is_settled(&self, cookie: u64) -> bool {
        self.sandboxes.is_settled(cookie)
    }

    /// It has.
    pub fn settle(&mut self, cookie: u64) -> Result<(), Error> {
        self.sandboxes.settle(cookie)
    }

    /// The pod that a namespace is held for.
    pub fn pod_of(&self, cookie: u64) -> Option<&str> {
        self.sandboxes.pod(cookie)
    }

    /// Enrols a pod whose listeners are in place: first what arrives, then what leaves.
    pub fn enrol(
        &mut self,
        uid: &str,
        netns: &Netns,
        addresses: &[IpAddr],
        probe_ports: &[u16],
    ) -> Result<(), Error> {
        // Where a keeper that made no such notes has enrolled it, nothing slipped through since.
        let enrolled = self.pods.get(&netns.cookie(), 0).is_ok();
        self.sandboxes.put(netns.cookie(), uid, enrolled)?;
        for endpoint in probe_endpoints(addresses, probe_ports) {
            self.probe_ports.insert(endpoint, 1, 0).map_err(map_error("PROBE_PORTS"))?;
        }
        if self.attached {
            attach::attach_to_pod(&self.ebpf, netns, &self.link_of(netns.cookie()))?;
        }
        for &address in addresses {
            self.owners.insert(Address::from(address), netns.cookie(), 0).map_err(map_error("OWNERS"))?;
        }
        let pod = Pod {
            address_v4: first(addresses, IpAddr::is_ipv4),
            address_v6: first(addresses, IpAddr::is_ipv6),
            loopback_v6: widen_loopback(uid, netns),
        };
        self.pods.insert(netns.cookie(), pod, 0).map_err(map_error("PODS"))
    }

    /// Takes a pod out, in the opposite order. What is not there is out already. `kept` are the probes of all
    /// other pods: one that took an address over meanwhile keeps its own, and gets none of this pod's.
    pub fn dismiss(
        &mut self,
        cookie: u64,
        addresses: &[IpAddr],
        probe_ports: &[u16],
        kept: &HashSet<Endpoint>,
    ) -> Result<(), Error> {
        absent_is_fine(self.pods.remove(&cookie)).map_err(map_error("PODS"))?;
        self.disown(cookie, addresses)?;
        attach::detach(&self.link_of(cookie))?;
        for endpoint in probe_endpoints(addresses, probe_ports).filter(|endpoint| !kept.contains(endpoint)) {
            absent_is_fine(self.probe_ports.remove(&endpoint)).map_err(map_error("PROBE_PORTS"))?;
        }
        self.sandboxes.remove(cookie)
    }

    /// A pod that took an address over meanwhile keeps it.
    fn disown(&mut self, cookie: u64, addresses: &[IpAddr]) -> Result<(), Error> {
        let known = addresses.iter().copied().map(Address::from);
        let all: Vec<Address> = match addresses {
            // Of one that a predecessor enrolled it is to be found out.
            [] => self.owners.keys().flatten().collect(),
            _ => known.collect(),
        };
        for address in all {
            if self.owners.get(&address, 0).is_ok_and(|owner| owner == cookie) {
                absent_is_fine(self.owners.remove(&address)).map_err(map_error("OWNERS"))?;
            }
        }
        Ok(())
    }

    /// Takes out the pods that a predecessor enrolled and that are not among `cookies`, and their probes,
    /// which are not among `kept`.
    pub fn retain_pods(&mut self, cookies: &HashSet<u64>, kept: &HashSet<Endpoint>) -> Result<(), Error> {
        let stale: Vec<u64> = self.pods.keys().flatten().filter(|cookie| !cookies.contains(cookie)).collect();
        for cookie in stale {
            absent_is_fine(self.pods.remove(&cookie)).map_err(map_error("PODS"))?;
        }
        for (name, path) in attach::pins(&self.pod_links) {
            if !name.parse().is_ok_and(|cookie| cookies.contains(&cookie)) {
                attach::detach(&path)?;
            }
        }
        let stale: Vec<Endpoint> =
            self.probe_ports.keys().flatten().filter(|endpoint| !kept.contains(endpoint)).collect();
        for endpoint in stale {
            absent_is_fine(self.probe_ports.remove(&endpoint)).map_err(map_error("PROBE_PORTS"))?;
        }
        let stale = self.owners.iter().flatten().filter(|(_, owner)| !cookies.contains(owner));
        let stale: Vec<Address> = stale.map(|(address, _)| address).collect();
        for address in stale {
            absent_is_fine(self.owners.remove(&address)).map_err(map_error("OWNERS"))?;
        }
        self.sandboxes.retain(cookies)
    }

    /// Says which cgroups the node's own processes are below, and no pod's: their probes are let through.
    pub fn replace_node_cgroups(&mut self, wanted: HashSet<u64>) -> Result<(), Error> {
        replace(&mut self.node_cgroups, wanted).map_err(map_error("NODE_CGROUPS"))
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

/// 1 if a pod has many IPv6 addresses for itself from now on, and 0 if it stays at one: then all its
/// connections over IPv6 through the proxy share one set of ports.
fn widen_loopback(uid: &str, netns: &Netns) -> u32 {
    let widened = sys::widen_loopback(netns);
    if let Err(error) = &widened {
        tracing::debug!(uid, %error, "no more loopback addresses for IPv6");
    }
    u32::from(widened.is_ok())
}

fn first(addresses: &[IpAddr], family: impl Fn(&IpAddr) -> bool) -> Address {
    addresses.iter().copied().find(family).map_or(Address::UNSPECIFIED, Address::from)
}

/// Where the node's probes are let through to a pod.
pub fn probe_endpoints(addresses: &[IpAddr], ports: &[u16]) -> impl Iterator<Item = Endpoint> {
    addresses
        .iter()
        .flat_map(move |&address| ports.iter().map(move |&port| Endpoint::new(address.into(), port)))
}
