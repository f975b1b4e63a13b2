//! Strict egress in the kernel and the workers: pods that may go only to destinations that the mesh knows, or
//! to networks that their namespace names.
//!
//! The kernel refuses at `connect()`, whether an agent runs or not. The workers refuse connections that the
//! kernel let through since it knew a destination that the mesh has just forgotten.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_api::resource::egress::StrictEgress;
use mesh_common::fault::FaultEvent;
use mesh_common::maps::MAX_PODS;
use mesh_common::strict_egress::MAX_EGRESS_ENTRIES;

use crate::sys::ebpf::{EgressEntry, EgressMap, Error};

/// Most exceptions of all pods together. Beside them every pod has room for its refusal, without which its
/// egress would be open.
const MOST_EXCEPTIONS: usize = (MAX_EGRESS_ENTRIES - MAX_PODS) as usize;

/// The pods with strict egress, for look-ups. Cheap to clone.
#[derive(Clone, Default)]
pub struct StrictPods(Arc<ArcSwap<HashMap<u64, StrictPod>>>);

/// A pod whose egress is strict.
#[derive(Clone)]
pub struct StrictPod {
    /// `namespace/name`.
    pub pod: Arc<str>,
    /// Source of the rule, and its exceptions.
    pub egress: Arc<StrictEgress>,
}

/// Why strict egress is not in force, or stricter than it should be.
#[derive(Debug, thiserror::Error)]
pub enum StrictEgressError {
    /// There are too many exceptions; destinations of further ones are refused.
    #[error(
        "no room for what its namespace names: {MOST_EXCEPTIONS} networks of all pods are excepted already"
    )]
    Full,
    /// The kernel has no memory.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl StrictPods {
    /// Returns the pod with this network namespace, if its egress is strict.
    pub fn by_netns(&self, netns: u64) -> Option<StrictPod> {
        self.0.load().get(&netns).cloned()
    }

    /// Whether a pod may not connect to a destination that the mesh does not know.
    pub fn refuses(&self, netns: u64, destination: SocketAddr) -> bool {
        self.by_netns(netns).is_some_and(|strict_pod| !strict_pod.egress.allows(destination))
    }
}

/// Keeps the kernel's map and [`StrictPods`] up to date.
pub struct EgressEnforcer {
    map: EgressMap,
    strict: StrictPods,
    /// Entries in the kernel, by the pod's network namespace.
    held: BTreeMap<u64, HashSet<EgressEntry>>,
}

impl EgressEnforcer {
    /// Takes over the entries that a predecessor left in the kernel. Errors: the map can't be read.
    pub fn take_over(map: EgressMap, strict: StrictPods) -> Result<Self, Error> {
        let mut held: BTreeMap<u64, HashSet<EgressEntry>> = BTreeMap::new();
        for entry in map.entries()? {
            held.entry(entry.netns()).or_default().insert(entry);
        }
        Ok(Self { map, strict, held })
    }

    /// Makes a pod's egress strict, or open again. Refusals come before exceptions go, and exceptions before
    /// refusals come, so nothing is let through or refused in between. Errors: some exceptions are not in
    /// force, or the kernel has no memory at all.
    pub fn set_pod_egress(
        &mut self,
        netns: u64,
        pod: &str,
        egress: Option<&StrictEgress>,
    ) -> Result<(), StrictEgressError> {
        let strict_pod = egress.map(|egress| StrictPod { pod: pod.into(), egress: Arc::new(egress.clone()) });
        let mut all = HashMap::clone(&self.strict.0.load());
        match strict_pod {
            Some(strict_pod) => drop(all.insert(netns, strict_pod)),
            None => drop(all.remove(&netns)),
        }
        self.strict.0.store(Arc::new(all));
        match egress {
            None => self.open_up(netns),
            Some(egress) => self.restrict(netns, egress),
        }
    }

    fn restrict(&mut self, netns: u64, egress: &StrictEgress) -> Result<(), StrictEgressError> {
        let exceptions: HashSet<_> =
            egress.allowed.iter().map(|it| EgressEntry::exception(netns, it.net, it.port)).collect();
        // Removing first makes room.
        let gone: Vec<_> =
            self.of(netns).filter(|entry| !entry.is_refusal() && !exceptions.contains(entry)).collect();
        gone.into_iter().try_for_each(|entry| self.remove(entry))?;
        let excepted = exceptions.into_iter().try_for_each(|entry| self.except(entry));
        self.insert(EgressEntry::refusal(netns))?;
        excepted
    }

    fn open_up(&mut self, netns: u64) -> Result<(), StrictEgressError> {
        self.remove(EgressEntry::refusal(netns))?;
        let exceptions: Vec<_> = self.of(netns).collect();
        Ok(exceptions.into_iter().try_for_each(|entry| self.remove(entry))?)
    }

    /// Removes the kernel's entries of all pods but these: they are gone, or no longer in the mesh.
    /// Errors: the map can't be written.
    pub fn retain_pods(&mut self, netns: &HashSet<u64>) -> Result<(), StrictEgressError> {
        let gone: Vec<_> = self.held.keys().copied().filter(|held| !netns.contains(held)).collect();
        gone.into_iter().try_for_each(|netns| self.set_pod_egress(netns, "", None))
    }

    fn of(&self, netns: u64) -> impl Iterator<Item = EgressEntry> {
        self.held.get(&netns).into_iter().flatten().copied()
    }

    fn except(&mut self, entry: EgressEntry) -> Result<(), StrictEgressError> {
        let held = self.held.values().flatten().filter(|entry| !entry.is_refusal()).count();
        if held >= MOST_EXCEPTIONS && !self.of(entry.netns()).any(|it| it == entry) {
            return Err(StrictEgressError::Full);
        }
        Ok(self.insert(entry)?)
    }

    fn insert(&mut self, entry: EgressEntry) -> Result<(), Error> {
        let held = self.held.entry(entry.netns()).or_default();
        if !held.contains(&entry) {
            self.map.insert(entry)?;
            held.insert(entry);
        }
        Ok(())
    }

    fn remove(&mut self, entry: EgressEntry) -> Result<(), Error> {
        if let Some(held) = self.held.get_mut(&entry.netns())
            && held.contains(&entry)
        {
            self.map.remove(entry)?;
            held.remove(&entry);
            if held.is_empty() {
                self.held.remove(&entry.netns());
            }
        }
        Ok(())
    }
}

/// Least time between log lines for one pod and destination, and most different ones in that time.
const SAY_EVERY: Duration = Duration::from_secs(10);
const MOST_SAID: usize = 256;

/// Logs refusals, many tries of a pod once.
pub struct RefusalLog {
    strict: StrictPods,
    /// When a refusal was last logged, and how often it has happened since.
    said: HashMap<(u64, SocketAddr), (Instant, u64)>,
    /// Refusals that were not logged since there were too many different ones.
    unsaid: u64,
}

impl RefusalLog {
    /// Creates one that has logged nothing.
    pub fn new(strict: StrictPods) -> Self {
        Self { strict, said: HashMap::new(), unsaid: 0 }
    }

    /// Logs a refusal, or counts it.
    pub fn log_refusal(&mut self, event: FaultEvent) {
        let destination = SocketAddr::from(event.destination);
        let Some(times) = self.times(event.netns, destination, Instant::now()) else { return };
        let strict_pod = self.strict.by_netns(event.netns);
        let pod = strict_pod.as_ref().map_or("unknown", |strict_pod| &strict_pod.pod);
        let by = strict_pod
            .as_ref()
            .map_or_else(|| "pod".to_owned(), |strict_pod| strict_pod.egress.by.to_string());
        let unsaid = std::mem::take(&mut self.unsaid);
        tracing::warn!(
            pod,
            %destination,
            times,
            unsaid,
            "refused: strict egress of the {by}; the mesh does not know the destination, and no rule names it"
        );
    }

    /// Returns how often it was refused since it was last logged; none if it must not be logged now.
    fn times(&mut self, netns: u64, destination: SocketAddr, now: Instant) -> Option<u64> {
        if self.said.len() >= MOST_SAID {
            self.said.retain(|_, (last, _)| now.duration_since(*last) < SAY_EVERY);
        }
        let full = self.said.len() >= MOST_SAID;
        match self.said.get_mut(&(netns, destination)) {
            Some((last, times)) if now.duration_since(*last) < SAY_EVERY => {
                *times += 1;
                None
            }
            None if full => {
                self.unsaid += 1;
                None
            }
            known => {
                let times = known.map_or(0, |(_, times)| *times);
                self.said.insert((netns, destination), (now, 0));
                Some(times + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_tries_without_end_is_told_of_seldom() {
        let (mut refusals, now) = (RefusalLog::new(StrictPods::default()), Instant::now());
        let to = |last: u8| SocketAddr::from(([192, 0, 2, last], 443));
        assert_eq!(refusals.times(1, to(1), now), Some(1));
        for _ in 0..1000 {
            assert_eq!(refusals.times(1, to(1), now), None);
        }
        assert_eq!(refusals.times(2, to(1), now), Some(1), "another pod");
        assert_eq!(refusals.times(1, to(1), now + SAY_EVERY), Some(1001));
        let all = (0..=u16::MAX).filter(|port| {
            refusals.times(3, SocketAddr::from(([192, 0, 2, 9], *port)), now + SAY_EVERY).is_some()
        });
        assert!(all.count() <= MOST_SAID);
        assert!(refusals.said.len() <= MOST_SAID && refusals.unsaid > 0);
    }
}
