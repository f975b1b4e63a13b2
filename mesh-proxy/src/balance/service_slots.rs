//! What one service's port has so many of at once, on this node: connections
//! (`connectionPool.tcp.maxConnections`), requests, retries. Shared by the workers, and used only where a
//! service has the limit. Who finds no free slot may wait for one, in a queue.

use std::collections::{BTreeMap, HashMap};
use std::future::pending;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// Key of a service, and its port.
pub type ServicePortKey = (Arc<str>, u16);

/// The limits of services' ports.
#[derive(Debug, Default)]
pub struct ServiceLimits {
    /// Connections, and requests that wait for one.
    pub connections: ServiceSlots<ServicePortKey>,
    /// Requests under way.
    pub requests: ServiceSlots<ServicePortKey>,
    /// Retries under way.
    pub retries: ServiceSlots<ServicePortKey>,
}

/// Taken slots by key. A key with none has no entry, since services come and go while the agent runs.
#[derive(Debug)]
pub struct ServiceSlots<K: Hash + Eq + Clone>(Arc<Mutex<HashMap<K, Counted<K>>>>);

#[derive(Debug)]
struct Counted<K: Hash + Eq + Clone> {
    taken: u32,
    /// Who waits, by the order in which they came.
    queue: BTreeMap<u64, Waiter<K>>,
    next_ticket: u64,
}

#[derive(Debug)]
struct Waiter<K: Hash + Eq + Clone> {
    /// Most slots by its policy.
    most: u32,
    ready: oneshot::Sender<ServiceSlot<K>>,
}

/// A slot below the limit, taken until it is dropped.
#[derive(Debug)]
pub struct ServiceSlot<K: Hash + Eq + Clone> {
    slots: ServiceSlots<K>,
    key: K,
}

/// What there is for somebody who wants a slot.
#[derive(Debug)]
pub enum SlotOrPlace<K: Hash + Eq + Clone> {
    /// A slot.
    Slot(ServiceSlot<K>),
    /// A place in the queue.
    Place(PlaceInQueue<K>),
    /// Nothing: as many wait as may.
    Full,
}

/// A place in the queue for a slot, until it is dropped.
#[derive(Debug)]
pub struct PlaceInQueue<K: Hash + Eq + Clone> {
    slots: ServiceSlots<K>,
    key: K,
    ticket: u64,
    ready: oneshot::Receiver<ServiceSlot<K>>,
}

impl<K: Hash + Eq + Clone> Default for ServiceSlots<K> {
    fn default() -> Self {
        Self(Arc::default())
    }
}

impl<K: Hash + Eq + Clone> ServiceSlots<K> {
    /// Takes a slot; none if `most` are taken.
    pub fn try_take_slot(&self, key: K, most: u32) -> Option<ServiceSlot<K>> {
        self.take(key, most, |_| true)
    }

    /// The same; none also if somebody waits for a slot.
    pub fn try_take_slot_in_turn(&self, key: K, most: u32) -> Option<ServiceSlot<K>> {
        self.take(key, most, |counted| counted.queue.is_empty())
    }

    /// Takes a slot, or a place behind all who wait for one; no place if `most_waiting` wait. `most` is at
    /// least one.
    pub fn take_slot_or_queue(&self, key: K, most: u32, most_waiting: u32) -> SlotOrPlace<K> {
        let mut all = self.lock();
        let counted = all.entry(key.clone()).or_default();
        if counted.queue.is_empty() && counted.taken < most {
            counted.taken += 1;
            return SlotOrPlace::Slot(ServiceSlot { slots: self.clone(), key });
        }
        if counted.queue.len() >= most_waiting as usize {
            return SlotOrPlace::Full;
        }
        let (sender, ready) = oneshot::channel();
        let ticket = counted.next_ticket;
        counted.next_ticket += 1;
        counted.queue.insert(ticket, Waiter { most, ready: sender });
        drop(all);
        SlotOrPlace::Place(PlaceInQueue { slots: self.clone(), key, ticket, ready })
    }

    /// Returns how many slots are taken, and how many wait for one.
    pub fn counts(&self, key: &K) -> (u32, u32) {
        let all = self.lock();
        let waiting = |counted: &Counted<K>| u32::try_from(counted.queue.len()).unwrap_or(u32::MAX);
        all.get(key).map_or((0, 0), |counted| (counted.taken, waiting(counted)))
    }

    fn take(&self, key: K, most: u32, may: impl Fn(&Counted<K>) -> bool) -> Option<ServiceSlot<K>> {
        let mut all = self.lock();
        let found = all.get_mut(&key);
        if most == 0 || found.as_ref().is_some_and(|counted| counted.taken >= most || !may(counted)) {
            return None;
        }
        match found {
            Some(counted) => counted.taken += 1,
            None => all.entry(key.clone()).or_default().taken = 1,
        }
        drop(all);
        Some(ServiceSlot { slots: self.clone(), key })
    }

    /// Changes what is counted of a key, gives what is free to those who wait, and forgets the key if nobody
    /// has or wants anything.
    fn change(&self, key: &K, change: impl FnOnce(&mut Counted<K>)) {
        let mut all = self.lock();
        let Some(counted) = all.get_mut(key) else { return };
        change(counted);
        while let Some(first) = counted.queue.first_entry() {
            if counted.taken >= first.get().most {
                break;
            }
            counted.taken += 1;
            let slot = ServiceSlot { slots: self.clone(), key: key.clone() };
            // Who waits leaves the queue before it goes, which takes the lock.
            if let Err(unwanted) = first.remove().ready.send(slot) {
                std::mem::forget(unwanted);
                counted.taken -= 1;
            }
        }
        if counted.taken == 0 && counted.queue.is_empty() {
            all.remove(key);
        }
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<K, Counted<K>>> {
        // Nothing panics under the lock.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Hash + Eq + Clone> Clone for ServiceSlots<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K: Hash + Eq + Clone> Default for Counted<K> {
    fn default() -> Self {
        Self { taken: 0, queue: BTreeMap::new(), next_ticket: 0 }
    }
}

impl<K: Hash + Eq + Clone> PlaceInQueue<K> {
    /// Waits for the slot.
    pub async fn wait(mut self) -> ServiceSlot<K> {
        match (&mut self.ready).await {
            Ok(slot) => slot,
            // Never: what sends it is in the queue as long as this place is.
            Err(_) => pending().await,
        }
    }
}

impl<K: Hash + Eq + Clone> Drop for PlaceInQueue<K> {
    fn drop(&mut self) {
        let ticket = self.ticket;
        // Those behind may have been kept by its own, lower limit.
        self.slots.change(&self.key, |counted| drop(counted.queue.remove(&ticket)));
        // A slot that has come and that nobody took goes to the next one.
        drop(self.ready.try_recv());
    }
}

impl<K: Hash + Eq + Clone> Drop for ServiceSlot<K> {
    fn drop(&mut self) {
        self.slots.change(&self.key, |counted| counted.taken -= 1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn no_more_than_the_limit_and_again_after_a_drop() {
        let limits = ServiceSlots::default();
        let first = limits.try_take_slot("web:80", 2).unwrap();
        let second = limits.try_take_slot("web:80", 2).unwrap();
        assert!(limits.try_take_slot("web:80", 2).is_none());
        assert!(limits.try_take_slot("web:81", 2).is_some(), "another port has its own");
        drop(first);
        assert!(limits.try_take_slot("web:80", 2).is_some());
        drop(second);
        assert!(limits.lock().is_empty(), "nothing is kept of a service without connections");
    }

    /// As the workers do it: none goes above the limit, however they meet, and nothing is left taken.
    #[test]
    fn cores_that_meet_never_exceed_the_limit() {
        const MOST: u32 = 3;
        let (limits, inside) = (ServiceSlots::default(), AtomicU32::new(0));
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
    fn place(
        limits: &ServiceSlots<&'static str>,
        most: u32,
        most_waiting: u32,
    ) -> PlaceInQueue<&'static str> {
        match limits.take_slot_or_queue("web:80", most, most_waiting) {
            SlotOrPlace::Place(place) => place,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn who_waits_is_served_in_turn_and_newcomers_do_not_overtake() {
        let limits = ServiceSlots::default();
        let first = limits.try_take_slot("web:80", 1).unwrap();
        let (one, other) = (place(&limits, 1, 2), place(&limits, 1, 2));
        assert!(matches!(limits.take_slot_or_queue("web:80", 1, 2), SlotOrPlace::Full), "two wait");
        assert_eq!(limits.counts(&"web:80"), (1, 2));
        drop(first);
        assert!(limits.try_take_slot_in_turn("web:80", 2).is_none(), "it is not its turn");
        let served = one.wait().await;
        assert_eq!(limits.counts(&"web:80"), (1, 1));
        drop(served);
        drop(other.wait().await);
        assert!(limits.lock().is_empty());
    }

    #[test]
    fn who_leaves_the_queue_takes_no_slot_along() {
        let limits = ServiceSlots::default();
        let taken = limits.try_take_slot("web:80", 1).unwrap();
        let (gone, last) = (place(&limits, 1, 9), place(&limits, 1, 9));
        let served = place(&limits, 1, 9);
        drop(gone);
        drop(taken);
        assert_eq!(limits.counts(&"web:80"), (1, 1), "one behind the other has it");
        drop(last);
        assert_eq!(limits.counts(&"web:80"), (1, 0), "and left it to the next");
        drop(served);
        assert!(limits.lock().is_empty(), "nothing is kept");
    }

    #[test]
    fn a_lower_limit_holds_up_only_while_its_request_waits() {
        let limits = ServiceSlots::default();
        let taken = limits.try_take_slot("web:80", 2).unwrap();
        let (strict, generous) = (place(&limits, 1, 9), place(&limits, 2, 9));
        assert_eq!(limits.counts(&"web:80"), (1, 2));
        drop(strict);
        assert_eq!(limits.counts(&"web:80"), (2, 0));
        drop((taken, generous));
        assert!(limits.lock().is_empty());
    }
}
