//! The receive window of a connection: it grows with its streams, as long as the pod's streams may hold more.
//!
//! A stream that nobody reads takes no window away from another that has its share. Without a share a stream
//! works as well, but may wait for others. What a peer was granted can't be taken back (RFC 9113, 6.9), so a
//! connection keeps for its later streams what it has taken, until it ends.

use std::cell::Cell;
use std::rc::Rc;

use super::STREAM_WINDOW;
use crate::mux::PodReceiveBudget;

/// Window of a connection without shares, the smallest that HTTP/2 has (RFC 9113, 6.9.2).
const BASE_WINDOW: u32 = 65_535;

/// What the streams of a connection have of its window.
pub(super) struct WindowShares {
    /// What the pod's streams may hold.
    budget: Rc<PodReceiveBudget>,
    granted: Cell<u32>,
    in_use: Rc<Cell<u32>>,
}

/// The share of one stream, until it is dropped.
pub(super) struct StreamWindowShare(Rc<Cell<u32>>);

impl WindowShares {
    pub fn new(budget: Rc<PodReceiveBudget>) -> Self {
        Self { budget, granted: Cell::new(0), in_use: Rc::default() }
    }

    /// Takes a share for another stream; none if the pod's streams hold all that they may.
    pub fn try_take(&self) -> Option<StreamWindowShare> {
        if self.in_use.get() == self.granted.get() {
            if !self.budget.try_take(STREAM_WINDOW as usize) {
                return None;
            }
            self.granted.set(self.granted.get() + 1);
        }
        self.in_use.set(self.in_use.get() + 1);
        Some(StreamWindowShare(Rc::clone(&self.in_use)))
    }

    /// Returns the window that the connection is to have, bytes.
    pub fn connection_window(&self) -> u32 {
        BASE_WINDOW + self.granted.get() * STREAM_WINDOW
    }
}

impl Drop for WindowShares {
    fn drop(&mut self) {
        self.budget.give_back(self.granted.get() as usize * STREAM_WINDOW as usize);
    }
}

impl Drop for StreamWindowShare {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_with_its_streams_while_the_pod_may_hold_more_and_does_not_shrink() {
        let budget = PodReceiveBudget::new(2 * STREAM_WINDOW as usize + 1, None);
        let shares = WindowShares::new(Rc::clone(&budget));
        let [first, second] = [shares.try_take(), shares.try_take()];
        assert!(first.is_some() && second.is_some() && shares.try_take().is_none());
        drop(first);
        assert!(!budget.try_take(2), "the peer may use it still");
        assert!(shares.try_take().is_some());
        assert_eq!(shares.connection_window(), BASE_WINDOW + 2 * STREAM_WINDOW);
        drop(shares);
        assert!(budget.try_take(2 * STREAM_WINDOW as usize));
    }
}
