//! Keeps the kernel's entries of strict egress in line with what pods' namespaces say.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use mesh_api::resource::egress::StrictEgress;
use mesh_common::maps::MAX_PODS;
use mesh_common::strict_egress::MAX_EGRESS_ENTRIES;

use super::{StrictPod, StrictPods};
use crate::sys::ebpf::{EgressEntry, EgressMap, Error};

/// Most exceptions of all pods together. Beside them every pod has room for its refusal, without which its
/// egress would be open.
const MOST_EXCEPTIONS: usize = (MAX_EGRESS_ENTRIES - MAX_PODS) as usize;

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
            held.entry(entry.netns_cookie()).or_default().insert(entry);
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
        self.insert(EgressEntry::refuse_all(netns))?;
        excepted
    }

    fn open_up(&mut self, netns: u64) -> Result<(), StrictEgressError> {
        self.remove(EgressEntry::refuse_all(netns))?;
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
        if held >= MOST_EXCEPTIONS && !self.of(entry.netns_cookie()).any(|it| it == entry) {
            return Err(StrictEgressError::Full);
        }
        Ok(self.insert(entry)?)
    }

    fn insert(&mut self, entry: EgressEntry) -> Result<(), Error> {
        let held = self.held.entry(entry.netns_cookie()).or_default();
        if !held.contains(&entry) {
            self.map.insert(entry)?;
            held.insert(entry);
        }
        Ok(())
    }

    fn remove(&mut self, entry: EgressEntry) -> Result<(), Error> {
        if let Some(held) = self.held.get_mut(&entry.netns_cookie())
            && held.contains(&entry)
        {
            self.map.remove(entry)?;
            held.remove(&entry);
            if held.is_empty() {
                self.held.remove(&entry.netns_cookie());
            }
        }
        Ok(())
    }
}
