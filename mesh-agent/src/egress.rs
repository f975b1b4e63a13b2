//! Strict egress, as the kernel and the workers are told of it: which pods may go only where the mesh knows
//! the way, or where their namespace names a network.
//!
//! The kernel refuses at `connect()`, whether an agent runs or not. The workers refuse what it let through
//! because it knew a destination that the mesh has just forgotten.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use mesh_api::resource::egress::StrictEgress;
use mesh_common::egress::MAX_EGRESS;
use mesh_common::fault::Event;
use mesh_common::maps::MAX_PODS;

use crate::sys::ebpf::{EgressEntry, EgressMap, Error};

/// Exceptions of all pods together. There is room for every pod's refusal beside them: without it the pod
/// would be open.
const MOST_EXCEPTIONS: usize = (MAX_EGRESS - MAX_PODS) as usize;

/// Who may not go where, for whoever asks. Cheap to clone.
#[derive(Clone, Default)]
pub struct Strict(Arc<ArcSwap<HashMap<u64, StrictPod>>>);

/// A pod whose egress is strict.
#[derive(Clone)]
pub struct StrictPod {
    /// `namespace/name`.
    pub pod: Arc<str>,
    /// Why, and what is excepted.
    pub egress: Arc<StrictEgress>,
}

/// Why strict egress is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NotInForce {
    /// What is named beyond is refused.
    #[error(
        "no room for what its namespace names: {MOST_EXCEPTIONS} networks of all pods are excepted already"
    )]
    Full,
    /// The kernel has no memory.
    #[error(transparent)]
    Kernel(#[from] Error),
}

impl Strict {
    /// The pod with this namespace, if its egress is strict.
    pub fn of(&self, netns: u64) -> Option<StrictPod> {
        self.0.load().get(&netns).cloned()
    }

    /// Whether a pod may not go to a destination that the mesh does not know.
    pub fn refuses(&self, netns: u64, destination: SocketAddr) -> bool {
        self.of(netns).is_some_and(|strict_pod| !strict_pod.egress.allows(destination))
    }
}

/// Keeps the kernel's map and [`Strict`] as they should be.
pub struct Egress {
    map: EgressMap,
    strict: Strict,
    /// What the kernel holds, by the pod's namespace.
    held: BTreeMap<u64, HashSet<EgressEntry>>,
}

impl Egress {
    /// With what a predecessor has left in the kernel. Errors: the map can't be read.
    pub fn open(map: EgressMap, strict: Strict) -> Result<Self, Error> {
        let mut held: BTreeMap<u64, HashSet<EgressEntry>> = BTreeMap::new();
        for entry in map.entries()? {
            held.entry(entry.pod()).or_default().insert(entry);
        }
        Ok(Self { map, strict, held })
    }

    /// Makes a pod's egress strict, or open again. What is refused is so before an exception goes, and what
    /// is excepted before a refusal comes. Errors: it is as strict as it should be or stricter, unless the
    /// kernel has no memory at all.
    pub fn set(&mut self, netns: u64, pod: &str, egress: Option<&StrictEgress>) -> Result<(), NotInForce> {
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

    fn restrict(&mut self, netns: u64, egress: &StrictEgress) -> Result<(), NotInForce> {
        let exceptions: HashSet<_> =
            egress.allowed.iter().map(|it| EgressEntry::exception(netns, it.net, it.port)).collect();
        // What goes makes room for what comes.
        let gone: Vec<_> =
            self.of(netns).filter(|entry| !entry.refuses() && !exceptions.contains(entry)).collect();
        gone.into_iter().try_for_each(|entry| self.remove(entry))?;
        let excepted = exceptions.into_iter().try_for_each(|entry| self.except(entry));
        self.insert(EgressEntry::refusal(netns))?;
        excepted
    }

    fn open_up(&mut self, netns: u64) -> Result<(), NotInForce> {
        self.remove(EgressEntry::refusal(netns))?;
        let exceptions: Vec<_> = self.of(netns).collect();
        Ok(exceptions.into_iter().try_for_each(|entry| self.remove(entry))?)
    }

    /// Takes out what the kernel holds of pods other than these: they are gone, or no longer in the mesh.
    pub fn retain(&mut self, netns: &HashSet<u64>) -> Result<(), NotInForce> {
        let gone: Vec<_> = self.held.keys().copied().filter(|held| !netns.contains(held)).collect();
        gone.into_iter().try_for_each(|netns| self.set(netns, "", None))
    }

    fn of(&self, netns: u64) -> impl Iterator<Item = EgressEntry> {
        self.held.get(&netns).into_iter().flatten().copied()
    }

    fn except(&mut self, entry: EgressEntry) -> Result<(), NotInForce> {
        let held = self.held.values().flatten().filter(|entry| !entry.refuses()).count();
        if held >= MOST_EXCEPTIONS && !self.of(entry.pod()).any(|it| it == entry) {
            return Err(NotInForce::Full);
        }
        Ok(self.insert(entry)?)
    }

    fn insert(&mut self, entry: EgressEntry) -> Result<(), Error> {
        let held = self.held.entry(entry.pod()).or_default();
        if !held.contains(&entry) {
            self.map.insert(entry)?;
            held.insert(entry);
        }
        Ok(())
    }

    fn remove(&mut self, entry: EgressEntry) -> Result<(), Error> {
        if let Some(held) = self.held.get_mut(&entry.pod())
            && held.contains(&entry)
        {
            self.map.remove(entry)?;
            held.remove(&entry);
            if held.is_empty() {
                self.held.remove(&entry.pod());
            }
        }
        Ok(())
    }
}

/// One line for each pod and destination in this time, and so many different ones.
const SAY_EVERY: Duration = Duration::from_secs(10);
const MOST_SAID: usize = 256;

/// Says what was refused, a pod's many tries once.
pub struct RefusalLog {
    strict: Strict,
    /// When it was said last, and how often it was refused since.
    said: HashMap<(u64, SocketAddr), (Instant, u64)>,
    /// Refused while too many different ones were told.
    unsaid: u64,
}

impl RefusalLog {
    /// Nothing said yet.
    pub fn new(strict: Strict) -> Self {
        Self { strict, said: HashMap::new(), unsaid: 0 }
    }

    /// A connection was refused.
    pub fn say(&mut self, event: Event) {
        let destination = SocketAddr::from(event.destination);
        let Some(times) = self.times(event.netns, destination, Instant::now()) else { return };
        let strict_pod = self.strict.of(event.netns);
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

    /// How often it was refused since it was last said; none if it is not to be said now.
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
        let (mut refusals, now) = (RefusalLog::new(Strict::default()), Instant::now());
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
