//! Limits of the connections that pods have at one time on one worker: of all pods together, with a reserve
//! for pods that have few, and of each pod by itself.

use std::cell::Cell;
use std::rc::Rc;
use std::time::Duration;

use tokio::sync::Notify;

/// A limit of connections that are open at one time.
pub struct ConnectionLimit {
    most: usize,
    free: Cell<usize>,
    /// Slots that only pods with few connections get.
    reserve: usize,
    returned: Notify,
    /// Notified when a slot comes back and more than the reserve are free.
    plenty: Notify,
}

/// The limits that count for one pod's connections on one worker. At the worker's, connections wait in the
/// listeners' queues; at the pod's own they are refused, so that one pod can't use up what there is for all.
#[derive(Clone)]
pub struct PodConnectionLimits {
    /// All pods' connections on this worker together.
    pub worker: Rc<ConnectionLimit>,
    /// This pod's connections.
    pub pod: Rc<ConnectionLimit>,
    /// This pod's connections that others opened, so that they can't use up what the pod needs for its own;
    /// none for connections that have no such limit.
    pub from_elsewhere: Option<Rc<ConnectionLimit>>,
}

/// Which limit is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitReached {
    /// The limit of all pods together.
    Worker,
    /// The pod's limit, or that of connections that others open to it.
    Pod,
}

/// A slot below all limits, given back when it is dropped.
pub struct ConnectionSlot {
    _worker: SingleLimitSlot,
    _pod: SingleLimitSlot,
    _from_elsewhere: Option<SingleLimitSlot>,
}

/// A slot below one limit, given back when it is dropped.
pub struct SingleLimitSlot(Rc<ConnectionLimit>);

impl ConnectionLimit {
    /// Creates a limit of `most` connections.
    pub fn new(most: usize) -> Rc<Self> {
        Self::with_reserve(most, 0)
    }

    /// Creates a limit of `most` connections, the last `reserve` of which only pods with few connections get.
    pub fn with_reserve(most: usize, reserve: usize) -> Rc<Self> {
        Rc::new(Self { most, free: Cell::new(most), reserve, returned: Notify::new(), plenty: Notify::new() })
    }

    fn taken(&self) -> usize {
        self.most - self.free.get()
    }

    /// Takes a slot; none if all are taken.
    pub fn try_take_slot(self: &Rc<Self>) -> Option<SingleLimitSlot> {
        self.free.set(self.free.get().checked_sub(1)?);
        Some(SingleLimitSlot(Rc::clone(self)))
    }

    /// Waits until all of `most` slots are free.
    pub async fn wait_until_all_free(&self, most: usize) {
        while self.free.get() < most {
            self.returned.notified().await;
        }
    }
}

/// How often a pod that waits for a slot beyond the reserve checks whether it may use the reserve by now.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

impl PodConnectionLimits {
    /// Takes a slot below every limit. Errors: which limit is reached.
    pub fn try_take_slot(&self) -> Result<ConnectionSlot, LimitReached> {
        let worker = self.try_take_worker_slot().ok_or(LimitReached::Worker)?;
        self.try_take_pod_slot(worker).ok_or(LimitReached::Pod)
    }

    /// Waits until the worker has a slot for this pod.
    pub(crate) async fn wait_for_worker_slot(&self) -> SingleLimitSlot {
        loop {
            let slot = self.try_take_worker_slot();
            match slot {
                Some(slot) => return slot,
                None if self.has_few() => self.worker.returned.notified().await,
                // The pod's own connections may have become few.
                None => {
                    let _plenty_or_not =
                        tokio::time::timeout(LOOK_AGAIN, self.worker.plenty.notified()).await;
                }
            }
        }
    }

    fn try_take_worker_slot(&self) -> Option<SingleLimitSlot> {
        let may = self.has_few() || self.worker.free.get() > self.worker.reserve;
        may.then(|| self.worker.try_take_slot())?
    }

    /// Takes a slot below the pod's own limits, to go with the worker's; none if one of them is reached. Then
    /// the worker's is given back.
    pub(crate) fn try_take_pod_slot(&self, worker: SingleLimitSlot) -> Option<ConnectionSlot> {
        let from_elsewhere = match &self.from_elsewhere {
            Some(limit) => Some(limit.try_take_slot()?),
            None => None,
        };
        let pod = self.pod.try_take_slot()?;
        Some(ConnectionSlot { _worker: worker, _pod: pod, _from_elsewhere: from_elsewhere })
    }

    /// Whether the pod may use the reserve, which has equal parts for [`PODS`] pods.
    fn has_few(&self) -> bool {
        /// Pods that find a slot in the reserve, whatever the others do.
        const PODS: usize = 32;
        self.pod.taken() < (self.worker.reserve / PODS).max(1)
    }
}

impl Drop for SingleLimitSlot {
    fn drop(&mut self) {
        let ConnectionLimit { free, reserve, returned, plenty, .. } = &*self.0;
        free.set(free.get() + 1);
        returned.notify_one();
        if free.get() > *reserve {
            plenty.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(worker: &Rc<ConnectionLimit>, most: usize) -> PodConnectionLimits {
        PodConnectionLimits {
            worker: Rc::clone(worker),
            pod: ConnectionLimit::new(most),
            from_elsewhere: None,
        }
    }

    #[tokio::test]
    async fn the_cap_holds_back_and_lets_on() {
        let limits = limits(&ConnectionLimit::new(1), 10);
        let first = limits.wait_for_worker_slot().await;
        let waits = tokio::time::timeout(Duration::from_millis(20), limits.wait_for_worker_slot()).await;
        assert!(waits.is_err(), "a second slot below a cap of one");
        drop(first);
        tokio::time::timeout(Duration::from_secs(5), limits.wait_for_worker_slot())
            .await
            .expect("a slot after one was returned");
    }

    #[tokio::test]
    async fn greedy_pods_leave_a_reserve_to_those_that_have_few() {
        let worker = ConnectionLimit::with_reserve(640, 64);
        let greedy = [480; 2].map(|most| limits(&worker, most));
        let mut held: Vec<_> =
            greedy.iter().flat_map(|limits| std::iter::from_fn(|| limits.try_take_slot().ok())).collect();
        assert_eq!(held.len(), 640 - 64, "the reserve is left");
        let modest: Vec<_> = (0..32).map(|_| limits(&worker, 480)).collect();
        for pod in &modest {
            held.extend([
                pod.try_take_slot().expect("a slot of the reserve"),
                pod.try_take_slot().expect("another"),
            ]);
        }
        assert_eq!(worker.free.get(), 0);
        let waiting = tokio::time::timeout(Duration::from_millis(20), greedy[0].wait_for_worker_slot()).await;
        assert!(waiting.is_err());
        held.drain(..65);
        let waiting = tokio::time::timeout(Duration::from_secs(5), greedy[1].wait_for_worker_slot()).await;
        assert!(waiting.is_ok(), "there is more than the reserve");
    }

    #[test]
    fn what_comes_from_elsewhere_leaves_a_pod_some_for_its_own() {
        let own = limits(&ConnectionLimit::new(100), 8);
        let inbound = PodConnectionLimits { from_elsewhere: Some(ConnectionLimit::new(6)), ..own.clone() };
        let held: Vec<_> = std::iter::from_fn(|| inbound.try_take_slot().ok()).collect();
        assert_eq!(held.len(), 6);
        assert!(own.try_take_slot().is_ok());
    }
}
