//! `connectionPool.tcp.maxConnections`: most connections of this node to one service port. Shared by the cores, and
//! touched only where a service has the limit.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Open connections by key.
pub struct Limits<K> {
    open: Mutex<HashMap<K, Arc<AtomicU32>>>,
}

/// A connection below the limit, counted until it is dropped.
#[derive(Debug)]
pub struct Slot(Arc<AtomicU32>);

impl<K> Default for Limits<K> {
    fn default() -> Self {
        Self { open: Mutex::default() }
    }
}

impl<K: Hash + Eq> Limits<K> {
    /// Takes a slot, unless `most` are taken.
    pub fn take(&self, key: K, most: u32) -> Option<Slot> {
        let counter = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(open.entry(key).or_default())
        };
        let more = |open: u32| (open < most).then_some(open + 1);
        counter.fetch_update(Ordering::AcqRel, Ordering::Acquire, more).ok()?;
        Some(Slot(counter))
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_more_than_the_limit_and_again_after_a_drop() {
        let limits = Limits::default();
        let first = limits.take("web:80", 2).unwrap();
        let _second = limits.take("web:80", 2).unwrap();
        assert!(limits.take("web:80", 2).is_none());
        assert!(limits.take("web:81", 2).is_some(), "another port has its own");
        drop(first);
        assert!(limits.take("web:80", 2).is_some());
    }

    /// As the cores do it: none goes above the limit, however they meet, and nothing is left taken.
    #[test]
    fn cores_that_meet_never_exceed_the_limit() {
        const MOST: u32 = 3;
        let (limits, inside) = (Limits::default(), AtomicU32::new(0));
        let core = || {
            let mut taken = 0;
            for _ in 0..20_000 {
                let Some(slot) = limits.take("web:80", MOST) else { continue };
                let now = inside.fetch_add(1, Ordering::SeqCst) + 1;
                assert!(now <= MOST, "{now} at once");
                taken += 1;
                inside.fetch_sub(1, Ordering::SeqCst);
                drop(slot);
            }
            taken
        };
        let taken: u32 = std::thread::scope(|scope| {
            let cores: Vec<_> = (0..8).map(|_| scope.spawn(core)).collect();
            cores.into_iter().map(|core| core.join().unwrap()).sum()
        });
        assert!(taken > 20_000, "the cores got {taken} slots");
        let all: Vec<_> = (0..MOST).map(|_| limits.take("web:80", MOST)).collect();
        assert!(all.iter().all(Option::is_some), "a slot was lost");
        assert!(limits.take("web:80", MOST).is_none());
    }
}
