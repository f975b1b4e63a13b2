//! `connectionPool.tcp.maxConnections`: most connections of this node to one service port. Shared by the
//! workers, and used only where a service has the limit.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Open connections by key. A key with none has no entry, since services come and go while the agent runs.
#[derive(Debug)]
pub struct ServiceConnectionLimits<K: Hash + Eq>(Arc<Mutex<HashMap<K, u32>>>);

/// A connection below the limit, counted until it is dropped.
#[derive(Debug)]
pub struct ServiceSlot<K: Hash + Eq> {
    limits: ServiceConnectionLimits<K>,
    key: K,
}

impl<K: Hash + Eq> Default for ServiceConnectionLimits<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone> ServiceConnectionLimits<K> {
    /// Takes a slot; none if `most` are taken.
    pub fn try_take_slot(&self, key: K, most: u32) -> Option<ServiceSlot<K>> {
        let mut counts = self.counts();
        let open = counts.get(&key).copied().unwrap_or(0);
        if open >= most {
            return None;
        }
        counts.insert(key.clone(), open + 1);
        drop(counts);
        Some(ServiceSlot { limits: Self(Arc::clone(&self.0)), key })
    }
}

impl<K: Hash + Eq> ServiceConnectionLimits<K> {
    fn counts(&self) -> MutexGuard<'_, HashMap<K, u32>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq> Drop for ServiceSlot<K> {
    fn drop(&mut self) {
        let mut counts = self.limits.counts();
        if let Some(open) = counts.get_mut(&self.key) {
            *open -= 1;
            if *open == 0 {
                counts.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn no_more_than_the_limit_and_again_after_a_drop() {
        let limits = ServiceConnectionLimits::default();
        let first = limits.try_take_slot("web:80", 2).unwrap();
        let second = limits.try_take_slot("web:80", 2).unwrap();
        assert!(limits.try_take_slot("web:80", 2).is_none());
        assert!(limits.try_take_slot("web:81", 2).is_some(), "another port has its own");
        drop(first);
        assert!(limits.try_take_slot("web:80", 2).is_some());
        drop(second);
        assert!(limits.counts().is_empty(), "nothing is kept of a service without connections");
    }

    /// As the workers do it: none goes above the limit, however they meet, and nothing is left taken.
    #[test]
    fn cores_that_meet_never_exceed_the_limit() {
        const MOST: u32 = 3;
        let (limits, inside) = (ServiceConnectionLimits::default(), AtomicU32::new(0));
        let worker = || {
            let mut taken = 0;
            for _ in 0..20_000 {
                let Some(slot) = limits.try_take_slot("web:80", MOST) else { continue };
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now <= MOST, "{now} at once");
                taken += 1;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(slot);
            }
            taken
        };
        let taken: u32 = std::thread::scope(|scope| {
            let workers: Vec<_> = (0..8).map(|_| scope.spawn(worker)).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert!(taken > 20_000, "the workers got {taken} slots");
        let all: Vec<_> = (0..MOST).map(|_| limits.try_take_slot("web:80", MOST)).collect();
        assert!(all.iter().all(Option::is_some), "a slot was lost");
        assert!(limits.try_take_slot("web:80", MOST).is_none());
    }
}
