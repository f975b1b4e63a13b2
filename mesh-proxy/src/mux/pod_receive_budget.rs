//! Bounds what the streams of one pod hold together on a worker: their
//! [windows](super::autotuned_receive_window) grow only while this budget has bytes.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use crate::telemetry::WorkerMetrics;

/// Bytes that the streams of a pod may hold on a worker, beyond the first 16 KiB of each.
pub struct PodReceiveBudget {
    free: Cell<usize>,
    metrics: Option<Arc<WorkerMetrics>>,
}

impl PodReceiveBudget {
    /// Creates a budget of `bytes`. Growth that it refuses is counted in `metrics`; none: nowhere.
    pub fn new(bytes: usize, metrics: Option<Arc<WorkerMetrics>>) -> Rc<Self> {
        Rc::new(Self { free: Cell::new(bytes), metrics })
    }

    /// Takes all of `bytes`, or nothing.
    pub(crate) fn try_take(&self, bytes: usize) -> bool {
        let left = self.free.get().checked_sub(bytes);
        match (left, &self.metrics) {
            (Some(left), _) => self.free.set(left),
            (None, Some(metrics)) => metrics.count_window_capped(),
            (None, None) => {}
        }
        left.is_some()
    }

    /// Returns the bytes that are left.
    #[cfg(test)]
    pub(super) fn free(&self) -> usize {
        self.free.get()
    }

    /// Gives bytes back.
    pub(crate) fn give_back(&self, bytes: usize) {
        self.free.set(self.free.get() + bytes);
    }
}
