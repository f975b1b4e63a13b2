//! The enrolled pods: their network namespaces, and the listeners that outlive every proxy.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::maps::{AddressPort, InboundListenerKind, MAX_PODS, ProxyProcess};
use mesh_common::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use socket2::{SockRef, Socket};

use super::protocol::{Claim, KeeperAnswer};
use super::veth_connection_reset::{NetnsByIp, PodTeardown, TeardownQueue, reset_all_veth_connections};
use crate::sys::ebpf::{self, Programs};
use crate::sys::{self, Netns, NoSandbox, SocketKind};

/// Ports that each worker listens on in a pod.
const PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];

/// Time after which a pod in doubt that nobody has asked for is let go.
const DOUBTED: Duration = Duration::from_mins(1);

/// The pods, and the programs that know them.
pub(super) struct Pods {
    pub programs: Programs,
    cgroup: PathBuf,
    /// Number of workers that there are listeners for.
    pub workers: u8,
    /// Enrolled pods, by the cookie of their network namespace.
    enrolled: BTreeMap<u64, Pod>,
    /// Namespaces whose pods this proxy asks for in vain, and when it last did. They stay in the mesh, and
    /// their connections are refused, until it is known what has become of the pod.
    in_doubt: BTreeMap<u64, Instant>,
    /// Whether this proxy has said that it has asked for all of its pods.
    complete: bool,
    leaving: TeardownQueue,
    /// The pod whose veth was last checked.
    looked_at: u64,
}

/// Pods whose veths are checked at a time.
const LOOK_AT: usize = 128;

/// An enrolled pod.
pub(super) struct Pod {
    /// The claim, with the addresses that the pod was found or said to have.
    pub claim: Claim,
    pub netns: Arc<Netns>,
    /// Listeners: outbound, inbound, HBONE for each worker.
    pub listeners: Vec<TcpListener>,
    /// Whether the current proxy has asked for it.
    claimed: bool,
    /// Whether a proxy has put everything in place, so that its first program may run.
    may_start: bool,
}

/// Result of a search for a pod: its network namespace, and its addresses.
pub(super) type FoundSandbox = Result<Option<(Netns, Vec<IpAddr>)>, Error>;

/// Why a request about a pod failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    NoSandbox(#[from] NoSandbox),
    #[error(transparent)]
    Redirected(#[from] sys::IstioRedirectFoundOrUnknown),
    #[error("its network namespace is that of pod {0}")]
    Another(String),
    /// A port can't be listened on, usually since a program of the pod has it.
    #[error("port {port} of the pod: {error}")]
    Listen { port: u16, error: io::Error },
    #[error("{MAX_PODS} pods are in the mesh already")]
    Full,
    #[error("no such pod is in the mesh")]
    Unknown,
    #[error(transparent)]
    Ebpf(#[from] ebpf::Error),
}

impl Pods {
    /// Creates one without pods. Errors: the programs' maps can't be written.
    pub fn new(programs: Programs, cgroup: PathBuf, workers: u8) -> Result<Self, ebpf::Error> {
        let mut pods = Self {
            programs,
            cgroup,
            workers,
            enrolled: BTreeMap::new(),
            in_doubt: BTreeMap::new(),
            complete: false,
            leaving: TeardownQueue::default(),
            looked_at: 0,
        };
        pods.refresh_non_pod_cgroups()?;
        Ok(pods)
    }

    /// Returns the id of the agent's own cgroup, which its sockets have too. Errors: it can't be found.
    pub fn own_cgroup_id(&self) -> io::Result<u64> {
        sys::cgroup_id_of_self(&self.cgroup)
    }

    /// Exempts a proxy, by its process id, from redirection while it runs. A later process with that id is
    /// not exempt.
    pub fn set_proxy_exempt(&mut self, proxy: u32, runs: bool) -> Result<(), Error> {
        let proxy = ProxyProcess::new(self.own_cgroup_id()?, proxy);
        Ok(if runs { self.programs.exempt_proxy(proxy) } else { self.programs.end_proxy_exemption(proxy) }?)
    }

    /// Attaches the programs, in place of a predecessor's, if they are not attached yet.
    pub fn ensure_programs_attached(&mut self) -> Result<(), ebpf::Error> {
        if self.programs.are_attached() {
            return Ok(());
        }
        self.programs.clear_pod_links_of_other_layouts();
        self.programs.attach_at_node_and_pods(self.enrolled.values().map(|pod| &*pod.netns))?;
        for pod in self.enrolled.values() {
            self.programs.try_defer_outbound_accepts(&pod.netns, pod.listeners.iter().step_by(PORTS.len()));
            attach_pod_veth(&mut self.programs, &pod.netns, &pod.claim.addresses);
        }
        reset_all_veth_connections(&self.programs.veth_flows_of_other_layouts(), || self.places());
        self.programs.remove_other_layouts()
    }

    /// Checks again how some of the pods are connected.
    pub fn recheck_next_veths(&mut self) -> Result<(), ebpf::Error> {
        use std::ops::Bound::{Excluded, Unbounded};
        if !self.programs.are_attached() {
            return Ok(());
        }
        let next: Vec<_> = self
            .enrolled
            .range((Excluded(self.looked_at), Unbounded))
            .take(LOOK_AT)
            .map(|(it, _)| *it)
            .collect();
        for pod in next.iter().filter_map(|cookie| self.enrolled.get(cookie)) {
            attach_pod_veth(&mut self.programs, &pod.netns, &pod.claim.addresses);
        }
        self.looked_at = if next.len() < LOOK_AT { 0 } else { next.last().copied().unwrap_or(0) };
        if self.complete && self.leaving.is_empty() {
            let addresses = self.enrolled.values().flat_map(|pod| pod.claim.addresses.iter().copied());
            self.programs.replace_allowed_flow_addresses(addresses)?;
        }
        Ok(())
    }

    /// Waits until everything for pods that were let go is done.
    pub fn wait_for_teardowns(&mut self) {
        self.leaving.join();
    }

    fn places(&self) -> NetnsByIp {
        let mut places = NetnsByIp::new();
        for Pod { claim, netns, .. } in self.enrolled.values() {
            claim.addresses.iter().for_each(|it| places.entry(*it).or_default().push(Arc::clone(netns)));
        }
        places
    }

    /// Ends the connections of a pod that go from veth to veth, and then removes the program at its veth.
    fn cut_off(&mut self, cookie: u64, places: NetnsByIp) -> Result<(), Error> {
        let link = self.programs.veth_pin_path(cookie);
        let flows = self.programs.take_veth_ifindex(cookie)?.zip(self.programs.veth_flows());
        Ok(self.leaving.push(PodTeardown { cookie, flows, places, link })?)
    }

    /// Iterates over pods, with the cookie of their network namespace.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Pod)> {
        self.enrolled.iter().map(|(cookie, pod)| (*cookie, pod))
    }

    /// Whether a pod's first program may run in that network namespace: it is enrolled, and the programs
    /// decide.
    pub fn may_start(&self, uid: &str, cookie: u64) -> bool {
        let pod = self.enrolled.get(&cookie).filter(|pod| pod.claim.uid == uid);
        self.programs.are_attached() && pod.is_some_and(|pod| pod.may_start)
    }

    /// Whether a pod is enrolled with another network namespace.
    pub fn is_enrolled_in_other_netns(&self, uid: &str, cookie: u64) -> bool {
        self.enrolled.iter().any(|(its, pod)| pod.claim.uid == uid && *its != cookie)
    }

    /// Notes that a new proxy has not asked for any pod yet.
    pub fn unclaim_all(&mut self) {
        self.enrolled.values_mut().for_each(|pod| pod.claimed = false);
        self.in_doubt.clear();
        self.complete = false;
    }

    /// Returns a task that looks for a pod, since a pod may have made many processes and namespaces. Until
    /// it is done the pod is in doubt. `said` is the pod's namespace if the runtime has told it.
    pub fn sandbox_search_task(
        &mut self,
        claim: &Claim,
        said: Option<Netns>,
    ) -> impl FnOnce() -> FoundSandbox + Send + 'static + use<> {
        let held = self.programs.netns_cookie_of_pod(&claim.uid);
        self.in_doubt.extend(held.map(|held| (held, Instant::now())));
        let (cgroup, claim) = (self.cgroup.clone(), claim.clone());
        move || find(&cgroup, &claim, held, said)
    }

    /// Enrols a pod that was found, or finds that it is enrolled; with `no_new` it enrols none. Returns
    /// [`KeeperAnswer::Enrolled`] or [`KeeperAnswer::NotYet`]. Errors: why it can't be enrolled.
    pub fn enrol(&mut self, claim: &Claim, found: FoundSandbox, no_new: bool) -> Result<KeeperAnswer, Error> {
        let found = found?;
        let cookie = match (self.kept(claim, found.as_ref()), found) {
            (Some(cookie), _) => cookie,
            (None, Some((netns, _))) if self.leaving.has(netns.cookie()) => return Ok(KeeperAnswer::NotYet),
            (None, Some((netns, addresses))) if !no_new => {
                self.make_way(claim, netns.cookie())?;
                let of_a_worker = |_| PORTS.map(|port| listen(&netns, port));
                let listeners = (0..self.workers).flat_map(of_a_worker).collect::<Result<_, _>>()?;
                self.insert(Claim { addresses, ..claim.clone() }, netns, listeners)?
            }
            (None, _) => return Ok(KeeperAnswer::NotYet),
        };
        let pod = self.enrolled.get_mut(&cookie).ok_or(Error::Unknown)?;
        pod.claimed = true;
        self.in_doubt.remove(&cookie);
        let judged = self.programs.is_preexisting_judged(cookie);
        Ok(KeeperAnswer::Enrolled(cookie, pod.claim.addresses.clone(), judged))
    }

    /// Makes sure that a namespace is one pod's, and that a pod has one.
    fn make_way(&mut self, claim: &Claim, cookie: u64) -> Result<(), Error> {
        if let Some(other) = self.programs.pod_of_netns(cookie).filter(|uid| *uid != claim.uid) {
            return Err(Error::Another(other.to_owned()));
        }
        if let Some(held) = self.programs.netns_cookie_of_pod(&claim.uid).filter(|held| *held != cookie) {
            // The runtime has made the pod a new one.
            self.programs.unenrol(held, &[], &[], &self.probes())?;
            self.in_doubt.remove(&held);
        }
        Ok(())
    }

    /// Returns a pod's listeners; none if it is not enrolled.
    pub fn listeners_of_pod(&self, cookie: u64) -> Vec<BorrowedFd<'_>> {
        self.enrolled.get(&cookie).into_iter().flat_map(|pod| pod.listeners.iter().map(AsFd::as_fd)).collect()
    }

    /// Returns the cookie of a pod that is enrolled as the claim says. One that is enrolled otherwise is let
    /// go.
    fn kept(&mut self, claim: &Claim, found: Option<&(Netns, Vec<IpAddr>)>) -> Option<u64> {
        let (cookie, pod) = self.enrolled.iter().find(|(_, pod)| pod.claim.uid == claim.uid)?;
        let (told, has) = (&claim.addresses, &pod.claim.addresses);
        let same = pod.claim.probe_ports == claim.probe_ports
            && (told.is_empty() || has.iter().all(|it| told.contains(it)))
            && found.is_none_or(|(netns, now)| {
                netns.cookie() == *cookie && (told.is_empty() || now.iter().all(|it| has.contains(it)))
            });
        let cookie = *cookie;
        if !same {
            self.unenrol(cookie).unwrap_or_else(|error| tracing::error!(%error, "pod not let go completely"));
        }
        same.then_some(cookie)
    }

    /// Enrols a pod with listeners that are there, by the addresses of the claim. Errors: the programs' maps
    /// can't be written.
    pub fn insert(&mut self, claim: Claim, netns: Netns, listeners: Vec<TcpListener>) -> Result<u64, Error> {
        if self.enrolled.len() >= MAX_PODS as usize {
            return Err(Error::Full);
        }
        let cookie = netns.cookie();
        for (worker, of_worker) in (0_u8..).zip(listeners.chunks_exact(PORTS.len())) {
            for (kind, listener) in
                [(InboundListenerKind::Plaintext, &of_worker[1]), (InboundListenerKind::Hbone, &of_worker[2])]
            {
                self.programs.add_inbound_listener(cookie, kind, worker, listener)?;
            }
        }
        if let Err(error) = self.programs.enrol(&claim.uid, &netns, &claim.addresses, &claim.probe_ports) {
            self.programs.unenrol(cookie, &claim.addresses, &claim.probe_ports, &self.probes())?;
            return Err(error.into());
        }
        if self.programs.are_attached() {
            self.programs.try_defer_outbound_accepts(&netns, listeners.iter().step_by(PORTS.len()));
            attach_pod_veth(&mut self.programs, &netns, &claim.addresses);
        }
        let netns = Arc::new(netns);
        self.enrolled.insert(cookie, Pod { claim, netns, listeners, claimed: false, may_start: false });
        Ok(cookie)
    }

    /// Lets a pod go. One that is not enrolled is gone already. Errors: the programs' maps can't be written.
    pub fn unenrol(&mut self, cookie: u64) -> Result<(), Error> {
        self.in_doubt.remove(&cookie);
        let places = self.places();
        let Some(Pod { claim, .. }) = self.enrolled.remove(&cookie) else { return Ok(()) };
        self.programs.unenrol(cookie, &claim.addresses, &claim.probe_ports, &self.probes())?;
        self.cut_off(cookie, places)
    }

    /// Lets go the pods that the proxy has not asked for, and those that a predecessor left.
    pub fn unenrol_unclaimed(&mut self) -> Result<(), Error> {
        self.complete = true;
        let unclaimed =
            self.enrolled.iter().filter(|(cookie, pod)| !pod.claimed && !self.in_doubt.contains_key(cookie));
        let unclaimed: Vec<_> = unclaimed.map(|(cookie, _)| *cookie).collect();
        unclaimed.into_iter().try_for_each(|cookie| self.unenrol(cookie))?;
        let cookies: HashSet<_> = self.enrolled.keys().chain(self.in_doubt.keys()).copied().collect();
        for cookie in self.programs.leftover_veth_pods_except(&cookies) {
            if !self.leaving.has(cookie) {
                self.cut_off(cookie, self.places())?;
            }
        }
        Ok(self.programs.retain_pods(&cookies, &self.probes())?)
    }

    /// Lets go pods that were in doubt and are no longer asked for. Errors: the programs' maps can't be
    /// written.
    pub fn unenrol_expired_doubts(&mut self) -> Result<(), Error> {
        let before = self.in_doubt.len();
        self.in_doubt.retain(|_, since| !self.complete || since.elapsed() < DOUBTED);
        if self.in_doubt.len() < before { self.unenrol_unclaimed() } else { Ok(()) }
    }

    /// Returns where the node's probes are let through.
    fn probes(&self) -> HashSet<AddressPort> {
        let claims = self.enrolled.values().map(|pod| &pod.claim);
        claims.flat_map(|claim| ebpf::probe_endpoints(&claim.addresses, &claim.probe_ports)).collect()
    }

    /// Opens sockets in a pod. Errors: it is not enrolled, or there is no room for a single one.
    pub fn open_sockets(&self, cookie: u64, kind: SocketKind, count: u8) -> Result<Vec<Socket>, Error> {
        let pod = self.enrolled.get(&cookie).ok_or(Error::Unknown)?;
        Ok(sys::open_unconnected_sockets(&pod.netns, kind, usize::from(count))?)
    }

    /// Returns a pod's uid, and its namespace for a task. Errors: it is not enrolled.
    pub fn uid_and_netns(&self, cookie: u64) -> Result<(&str, Arc<Netns>), Error> {
        let pod = self.enrolled.get(&cookie).ok_or(Error::Unknown)?;
        Ok((&pod.claim.uid, Arc::clone(&pod.netns)))
    }

    /// Allows a pod's first program to run. Errors: it is not enrolled.
    pub fn allow_pod_start(&mut self, cookie: u64) -> Result<(), Error> {
        self.enrolled.get_mut(&cookie).ok_or(Error::Unknown)?.may_start = true;
        Ok(())
    }

    /// Notes that a pod's preexisting connections have been judged. Errors: the pod is not enrolled, or the
    /// programs' maps can't be written.
    pub fn mark_preexisting_judged(&mut self, cookie: u64) -> Result<(), Error> {
        let known = self.enrolled.contains_key(&cookie);
        if known { Ok(self.programs.mark_preexisting_judged(cookie)?) } else { Err(Error::Unknown) }
    }

    /// Closes the listeners: connections are refused, unless another keeper holds them.
    pub fn close_all_listeners(&mut self) {
        self.enrolled.values_mut().for_each(|pod| pod.listeners.clear());
    }

    /// Finds again the cgroups of the node's own processes, from which its kubelet probes.
    pub fn refresh_non_pod_cgroups(&mut self) -> Result<(), ebpf::Error> {
        self.programs.replace_non_pod_cgroups(sys::non_pod_cgroup_ids(&self.cgroup))
    }
}

/// Finds how a pod is connected, and tells the programs. If that fails none of its connections is direct.
fn attach_pod_veth(programs: &mut Programs, netns: &Netns, addresses: &[IpAddr]) {
    let cookie = netns.cookie();
    let end = sys::find_host_veth(netns, addresses).unwrap_or_else(|error| {
        tracing::warn!(netns = cookie, %error, "how a pod is connected is not known");
        None
    });
    match programs.attach_veth_if_unobstructed(cookie, addresses, end.as_ref()) {
        Ok((link, obstacle)) => tracing::debug!(netns = cookie, ?link, ?obstacle, "how a pod is connected"),
        Err(error) => tracing::error!(netns = cookie, %error, "how a pod is connected is not told"),
    }
}

/// Finds a pod's namespace, first of all the one that it is `held` in, and those of its addresses that are in
/// the claim. None if it has no process in a namespace of its own, or an address is missing there: nobody
/// gets another's address by claiming it.
fn find(cgroup: &Path, claim: &Claim, held: Option<u64>, said: Option<Netns>) -> FoundSandbox {
    // Nothing has run there yet, so its addresses are those that the runtime gave it. The API may still have
    // those of an earlier sandbox.
    let told = if said.is_some() { &[] } else { &claim.addresses[..] };
    let found = match said {
        // The node's own network is no pod's, whoever says so.
        Some(netns) => Some(netns).filter(|it| !is_own(it)),
        None => sys::find_sandbox_netns(cgroup, &claim.uid, claim.own_userns, held)?,
    };
    let Some(netns) = found else { return Ok(None) };
    let there = sys::pod_addresses_in(&netns)?;
    let addresses = match told {
        [] => sys::primary_addresses_in(&netns)?,
        // IPv6 addresses of a pod that has switched IPv6 off are ignored, so that they do not keep it out.
        told => {
            let off = sys::is_ipv6_disabled(&netns)?;
            told.iter().copied().filter(|it| there.contains(it) || !(off && it.is_ipv6())).collect()
        }
    };
    let complete = !addresses.is_empty() && addresses.iter().all(|address| there.contains(address));
    // A pod that is held is in the mesh already: redirects that came later do not put it out.
    if complete && held != Some(netns.cookie()) {
        sys::check_no_istio_redirects(&netns)?;
    }
    Ok(complete.then_some((netns, addresses)))
}

/// Whether this is the node's own network namespace, the agent's; also if that can't be told.
fn is_own(netns: &Netns) -> bool {
    Netns::of_process(std::process::id()).map_or(true, |own| own.cookie() == netns.cookie())
}

/// Opens one of a pod's listeners. Connections accepted from an application, or from outside the mesh, are
/// reset if the proxy dies, and not closed as if they had ended well: they inherit that from the listener
/// (kernel: `inet_csk_clone_lock`). HBONE has its own way to tell the two apart. Errors: the port is in use,
/// or there is no socket.
fn listen(netns: &Netns, port: u16) -> Result<TcpListener, Error> {
    let open = || {
        let listener = sys::listen_in_netns(netns, port)?;
        if port != HBONE_PORT {
            SockRef::from(&listener).set_linger(Some(Duration::ZERO))?;
        }
        Ok(listener)
    };
    open().map_err(|error| Error::Listen { port, error })
}
