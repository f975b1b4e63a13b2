//! The pods that are in the mesh: their namespaces, and the listeners that outlive every proxy.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::net::{IpAddr, TcpListener};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_common::maps::{Endpoint, ListenerKind, MAX_PODS, Proxy};
use mesh_common::{HBONE_PORT, INBOUND_PORT, OUTBOUND_PORT};
use socket2::{SockRef, Socket};

use super::protocol::{Claim, KeeperAnswer};
use super::veths::{self, Dismissed, Leaving, Places};
use crate::sys::ebpf::{self, Programs};
use crate::sys::{self, Netns, NoSandbox, SocketKind};

/// The listeners that each worker has in a pod.
const PORTS: [u16; 3] = [OUTBOUND_PORT, INBOUND_PORT, HBONE_PORT];

/// A pod that nobody has asked for so long is in doubt no longer: the proxy does not want it.
const DOUBTED: Duration = Duration::from_mins(1);

/// The pods, and the programs that know them.
pub(super) struct Pods {
    pub programs: Programs,
    cgroup: PathBuf,
    /// How many there are listeners for.
    pub workers: u8,
    /// By the cookie of their network namespace.
    enrolled: BTreeMap<u64, Pod>,
    /// Namespaces that are held in the mesh for pods that this proxy asks for in vain, and since when it did
    /// last: what was enrolled before stays, and is refused, until it is known what has become of the pod.
    in_doubt: BTreeMap<u64, Instant>,
    /// This proxy has said that it has asked for all of its pods.
    complete: bool,
    leaving: Leaving,
    /// The last pod that was looked at again.
    looked_at: u64,
}

/// Pods that are looked at again in one go.
const LOOK_AT: usize = 128;

/// A pod that is in the mesh.
pub(super) struct Pod {
    /// With the addresses that it was found to have or said to have.
    pub claim: Claim,
    pub netns: Arc<Netns>,
    /// For each worker: outbound, inbound, HBONE.
    pub listeners: Vec<TcpListener>,
    /// The proxy that runs now has asked for it.
    claimed: bool,
    /// A proxy has put in place all that is to hold for it.
    may_start: bool,
}

/// What came of looking for a pod: its namespace, and its addresses.
pub(super) type Found = Result<Option<(Netns, Vec<IpAddr>)>, Error>;

/// Why something can't be done for a pod.
#[derive(Debug, thiserror::Error)]
pub(super) enum Error {
    #[error(transparent)]
    Io(#[from] io::Error),
    #[error(transparent)]
    NoSandbox(#[from] NoSandbox),
    #[error(transparent)]
    Redirected(#[from] sys::Redirected),
    #[error("its network namespace is that of pod {0}")]
    Another(String),
    /// Usually: a program of the pod has the port.
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
    /// None yet.
    pub fn new(programs: Programs, cgroup: PathBuf, workers: u8) -> Result<Self, ebpf::Error> {
        let mut pods = Self {
            programs,
            cgroup,
            workers,
            enrolled: BTreeMap::new(),
            in_doubt: BTreeMap::new(),
            complete: false,
            leaving: Leaving::default(),
            looked_at: 0,
        };
        pods.learn_node_cgroups()?;
        Ok(pods)
    }

    /// The cgroup that this agent is in, with all that it opens.
    pub fn own_cgroup(&self) -> io::Result<u64> {
        sys::cgroup_id_of_self(&self.cgroup)
    }

    /// A proxy, by its process id, is exempt from redirection as long as it runs. Whoever gets its id after
    /// that is not.
    pub fn exempt(&mut self, proxy: u32, runs: bool) -> Result<(), Error> {
        let proxy = Proxy::new(self.own_cgroup()?, proxy);
        Ok(if runs { self.programs.exempt(proxy) } else { self.programs.forget_proxy(proxy) }?)
    }

    /// Lets the programs decide, in place of a predecessor's, if they do not yet.
    pub fn attach(&mut self) -> Result<(), ebpf::Error> {
        if self.programs.are_attached() {
            return Ok(());
        }
        self.programs.attach(self.enrolled.values().map(|pod| &*pod.netns))?;
        for pod in self.enrolled.values() {
            self.programs.defer_accepts(&pod.netns, pod.listeners.iter().step_by(PORTS.len()));
            veths::attach(&mut self.programs, &pod.netns, &pod.claim.addresses);
        }
        veths::reset_all(&self.programs.other_veth_flows(), || self.places());
        self.programs.remove_other_layouts()
    }

    /// Looks again how pods are connected, some at a time.
    pub fn look_at_veths(&mut self) -> Result<(), ebpf::Error> {
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
            veths::attach(&mut self.programs, &pod.netns, &pod.claim.addresses);
        }
        self.looked_at = if next.len() < LOOK_AT { 0 } else { next.last().copied().unwrap_or(0) };
        if self.complete && self.leaving.is_empty() {
            let addresses = self.enrolled.values().flat_map(|pod| pod.claim.addresses.iter().copied());
            self.programs.replace_neighbours(addresses)?;
        }
        Ok(())
    }

    /// Waits for what is done for pods that were let go.
    pub fn finish(&mut self) {
        self.leaving.finish();
    }

    fn places(&self) -> Places {
        let mut places = Places::new();
        for Pod { claim, netns, .. } in self.enrolled.values() {
            claim.addresses.iter().for_each(|it| places.entry(*it).or_default().push(Arc::clone(netns)));
        }
        places
    }

    /// The connections of a pod that go from veth to veth end, and then the program at its veth goes.
    fn cut_off(&mut self, cookie: u64, places: Places) -> Result<(), Error> {
        let link = self.programs.veth_link_of(cookie);
        let flows = self.programs.forget_veth(cookie)?.zip(self.programs.veth_flows());
        Ok(self.leaving.add(Dismissed { cookie, flows, places, link })?)
    }

    /// Pods, by the cookie of their network namespace.
    pub fn iter(&self) -> impl Iterator<Item = (u64, &Pod)> {
        self.enrolled.iter().map(|(cookie, pod)| (*cookie, pod))
    }

    /// Whether a pod's first program may run with that network namespace: it is in the mesh, and the programs
    /// decide.
    pub fn may_start(&self, uid: &str, cookie: u64) -> bool {
        let pod = self.enrolled.get(&cookie).filter(|pod| pod.claim.uid == uid);
        self.programs.are_attached() && pod.is_some_and(|pod| pod.may_start)
    }

    /// Whether a pod is in the mesh with another network namespace than that.
    pub fn is_elsewhere(&self, uid: &str, cookie: u64) -> bool {
        self.enrolled.iter().any(|(its, pod)| pod.claim.uid == uid && *its != cookie)
    }

    /// A new proxy has not asked for any pod yet.
    pub fn unclaim(&mut self) {
        self.enrolled.values_mut().for_each(|pod| pod.claimed = false);
        self.in_doubt.clear();
        self.complete = false;
    }

    /// How to look for a pod, as an errand: what it has made can be much. Until that is done it is in doubt.
    /// Where the runtime has said which namespace is the pod's, it is that one.
    pub fn search(
        &mut self,
        claim: &Claim,
        said: Option<Netns>,
    ) -> impl FnOnce() -> Found + Send + 'static + use<> {
        let held = self.programs.sandbox_of(&claim.uid);
        self.in_doubt.extend(held.map(|held| (held, Instant::now())));
        let (cgroup, claim) = (self.cgroup.clone(), claim.clone());
        move || find(&cgroup, &claim, held, said)
    }

    /// Takes a pod that was looked for into the mesh, or finds it there; with `only_kept` no more than that.
    /// Returns [`KeeperAnswer::Enrolled`] or [`KeeperAnswer::NotYet`].
    pub fn enrol(&mut self, claim: &Claim, found: Found, only_kept: bool) -> Result<KeeperAnswer, Error> {
        let found = found?;
        let cookie = match (self.kept(claim, found.as_ref()), found) {
            (Some(cookie), _) => cookie,
            (None, Some((netns, _))) if self.leaving.has(netns.cookie()) => return Ok(KeeperAnswer::NotYet),
            (None, Some((netns, addresses))) if !only_kept => {
                self.make_way(claim, netns.cookie())?;
                let of_a_worker = |_| PORTS.map(|port| listen(&netns, port));
                let listeners = (0..self.workers).flat_map(of_a_worker).collect::<Result<_, _>>()?;
                self.adopt(Claim { addresses, ..claim.clone() }, netns, listeners)?
            }
            (None, _) => return Ok(KeeperAnswer::NotYet),
        };
        let pod = self.enrolled.get_mut(&cookie).ok_or(Error::Unknown)?;
        pod.claimed = true;
        self.in_doubt.remove(&cookie);
        Ok(KeeperAnswer::Enrolled(cookie, pod.claim.addresses.clone(), self.programs.is_settled(cookie)))
    }

    /// A namespace is one pod's, and a pod has one.
    fn make_way(&mut self, claim: &Claim, cookie: u64) -> Result<(), Error> {
        if let Some(other) = self.programs.pod_of(cookie).filter(|uid| *uid != claim.uid) {
            return Err(Error::Another(other.to_owned()));
        }
        if let Some(held) = self.programs.sandbox_of(&claim.uid).filter(|held| *held != cookie) {
            // The runtime has made the pod a new one.
            self.programs.dismiss(held, &[], &[], &self.probes())?;
            self.in_doubt.remove(&held);
        }
        Ok(())
    }

    /// The listeners of a pod; none if it is not there.
    pub fn listeners(&self, cookie: u64) -> Vec<BorrowedFd<'_>> {
        self.enrolled.get(&cookie).into_iter().flat_map(|pod| pod.listeners.iter().map(AsFd::as_fd)).collect()
    }

    /// The pod, if it is in the mesh as it should be. One that is there otherwise is let go.
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
            self.dismiss(cookie).unwrap_or_else(|error| tracing::error!(%error, "pod not let go completely"));
        }
        same.then_some(cookie)
    }

    /// Takes a pod in with listeners that are there, by the addresses of the claim.
    pub fn adopt(&mut self, claim: Claim, netns: Netns, listeners: Vec<TcpListener>) -> Result<u64, Error> {
        if self.enrolled.len() >= MAX_PODS as usize {
            return Err(Error::Full);
        }
        let cookie = netns.cookie();
        for (worker, of_worker) in (0_u8..).zip(listeners.chunks_exact(PORTS.len())) {
            for (kind, listener) in
                [(ListenerKind::Plaintext, &of_worker[1]), (ListenerKind::Hbone, &of_worker[2])]
            {
                self.programs.add_listener(cookie, kind, worker, listener)?;
            }
        }
        if let Err(error) = self.programs.enrol(&claim.uid, &netns, &claim.addresses, &claim.probe_ports) {
            self.programs.dismiss(cookie, &claim.addresses, &claim.probe_ports, &self.probes())?;
            return Err(error.into());
        }
        if self.programs.are_attached() {
            self.programs.defer_accepts(&netns, listeners.iter().step_by(PORTS.len()));
            veths::attach(&mut self.programs, &netns, &claim.addresses);
        }
        let netns = Arc::new(netns);
        self.enrolled.insert(cookie, Pod { claim, netns, listeners, claimed: false, may_start: false });
        Ok(cookie)
    }

    /// Lets a pod go. One that is not there has gone.
    pub fn dismiss(&mut self, cookie: u64) -> Result<(), Error> {
        self.in_doubt.remove(&cookie);
        let places = self.places();
        let Some(Pod { claim, .. }) = self.enrolled.remove(&cookie) else { return Ok(()) };
        self.programs.dismiss(cookie, &claim.addresses, &claim.probe_ports, &self.probes())?;
        self.cut_off(cookie, places)
    }

    /// Lets go what the proxy has not asked for, and what a predecessor left of others.
    pub fn dismiss_unclaimed(&mut self) -> Result<(), Error> {
        self.complete = true;
        let unclaimed =
            self.enrolled.iter().filter(|(cookie, pod)| !pod.claimed && !self.in_doubt.contains_key(cookie));
        let unclaimed: Vec<_> = unclaimed.map(|(cookie, _)| *cookie).collect();
        unclaimed.into_iter().try_for_each(|cookie| self.dismiss(cookie))?;
        let cookies: HashSet<_> = self.enrolled.keys().chain(self.in_doubt.keys()).copied().collect();
        for cookie in self.programs.veths_attached_besides(&cookies) {
            if !self.leaving.has(cookie) {
                self.cut_off(cookie, self.places())?;
            }
        }
        Ok(self.programs.retain_pods(&cookies, &self.probes())?)
    }

    /// Lets go what was in doubt, and is not asked for any more.
    pub fn forget_doubts(&mut self) -> Result<(), Error> {
        let before = self.in_doubt.len();
        self.in_doubt.retain(|_, since| !self.complete || since.elapsed() < DOUBTED);
        if self.in_doubt.len() < before { self.dismiss_unclaimed() } else { Ok(()) }
    }

    /// Where the node's probes are let through.
    fn probes(&self) -> HashSet<Endpoint> {
        let claims = self.enrolled.values().map(|pod| &pod.claim);
        claims.flat_map(|claim| ebpf::probe_endpoints(&claim.addresses, &claim.probe_ports)).collect()
    }

    /// Opens sockets in a pod.
    pub fn sockets(&self, cookie: u64, kind: SocketKind, count: u8) -> Result<Vec<Socket>, Error> {
        let pod = self.enrolled.get(&cookie).ok_or(Error::Unknown)?;
        Ok(sys::open_sockets(&pod.netns, kind, usize::from(count))?)
    }

    /// A pod's uid, and its namespace for an errand there.
    pub fn place(&self, cookie: u64) -> Result<(&str, Arc<Netns>), Error> {
        let pod = self.enrolled.get(&cookie).ok_or(Error::Unknown)?;
        Ok((&pod.claim.uid, Arc::clone(&pod.netns)))
    }

    /// Lets a pod's first program run.
    pub fn let_start(&mut self, cookie: u64) -> Result<(), Error> {
        self.enrolled.get_mut(&cookie).ok_or(Error::Unknown)?.may_start = true;
        Ok(())
    }

    /// Whether what was open in a pod before it was in the mesh has been seen to.
    pub fn is_settled(&self, cookie: u64) -> bool {
        self.programs.is_settled(cookie)
    }

    /// It has.
    pub fn settle(&mut self, cookie: u64) -> Result<(), Error> {
        let known = self.enrolled.contains_key(&cookie);
        if known { Ok(self.programs.settle(cookie)?) } else { Err(Error::Unknown) }
    }

    /// Takes the listeners away: what connects is refused, as long as no other keeper holds them.
    pub fn close_listeners(&mut self) {
        self.enrolled.values_mut().for_each(|pod| pod.listeners.clear());
    }

    /// Looks again for the cgroups that the node's own processes are in, from which its kubelet probes.
    pub fn learn_node_cgroups(&mut self) -> Result<(), ebpf::Error> {
        self.programs.replace_node_cgroups(sys::cgroups_outside_of_pods(&self.cgroup))
    }
}

/// The pod's namespace, the one that it is `held` in before any other, and those of its addresses that are in
/// the claim. None as long as it has no process in a namespace of its own, or an address is missing there:
/// nobody gets another's by claiming it.
fn find(cgroup: &Path, claim: &Claim, held: Option<u64>, said: Option<Netns>) -> Found {
    // Nothing has run there yet: what it has is what the runtime gave it, and the API may tell of the sandbox
    // before.
    let told = if said.is_some() { &[] } else { &claim.addresses[..] };
    let found = match said {
        // The node's own network is no pod's, whoever says so.
        Some(netns) => Some(netns).filter(|it| !is_own(it)),
        None => sys::find_sandbox(cgroup, &claim.uid, claim.own_users, held)?,
    };
    let Some(netns) = found else { return Ok(None) };
    let there = sys::addresses_in(&netns)?;
    let addresses = match told {
        [] => sys::primary_addresses_in(&netns)?,
        // A family that the pod has switched off must not keep it out.
        told => {
            let off = sys::has_no_ipv6(&netns)?;
            told.iter().copied().filter(|it| there.contains(it) || !(off && it.is_ipv6())).collect()
        }
    };
    let complete = !addresses.is_empty() && addresses.iter().all(|address| there.contains(address));
    // One that is held is in the mesh already: what it has come to since does not put it out.
    if complete && held != Some(netns.cookie()) {
        sys::look_for_redirects(&netns)?;
    }
    Ok(complete.then_some((netns, addresses)))
}

/// Whether this is the node's own network namespace, the agent's; one that can't be told apart counts as
/// that.
fn is_own(netns: &Netns) -> bool {
    Netns::of_process(std::process::id()).map_or(true, |own| own.cookie() == netns.cookie())
}

/// Opens one of a pod's listeners. A connection that the proxy accepts from an application or from outside
/// the mesh is reset, and not closed as if it had ended well, when the proxy goes without having said
/// otherwise: what is accepted inherits this (kernel: `inet_csk_clone_lock`). HBONE has its own way of ending
/// well.
fn listen(netns: &Netns, port: u16) -> Result<TcpListener, Error> {
    let open = || {
        let listener = sys::listen(netns, port)?;
        if port != HBONE_PORT {
            SockRef::from(&listener).set_linger(Some(Duration::ZERO))?;
        }
        Ok(listener)
    };
    open().map_err(|error| Error::Listen { port, error })
}
