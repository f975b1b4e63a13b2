//! The receive window of a connection: it grows with its streams, as long as the pod's streams may hold more.
//!
//! A stream that nobody reads takes no window away from another that has its share. Without a share a stream
//! works as well, but may wait for others.

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
    taken: Rc<Cell<u32>>,
}

/// The share of one stream, until it is dropped.
pub(super) struct WindowShare {
    budget: Rc<PodReceiveBudget>,
    taken: Rc<Cell<u32>>,
}

impl WindowShares {
    pub fn new(budget: Rc<PodReceiveBudget>) -> Self {
        Self { budget, taken: Rc::default() }
    }

    /// Takes a share for another stream; none if the pod's streams hold all that they may.
    pub fn try_take(&self) -> Option<WindowShare> {
        self.budget.try_take(STREAM_WINDOW as usize).then(|| {
            self.taken.set(self.taken.get() + 1);
            WindowShare { budget: Rc::clone(&self.budget), taken: Rc::clone(&self.taken) }
        })
    }

    /// Returns the window that the connection is to have, bytes.
    pub fn window(&self) -> u32 {
        BASE_WINDOW + self.taken.get() * STREAM_WINDOW
    }
}

impl Drop for WindowShare {
    fn drop(&mut self) {
        self.taken.set(self.taken.get() - 1);
        self.budget.give_back(STREAM_WINDOW as usize);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_grows_with_its_streams_while_the_pod_may_hold_more() {
        let budget = PodReceiveBudget::new(2 * STREAM_WINDOW as usize + 1, None);
        let shares = WindowShares::new(budget);
        let [first, second] = [shares.try_take(), shares.try_take()];
        assert!(first.is_some() && second.is_some() && shares.try_take().is_none());
        assert_eq!(shares.window(), BASE_WINDOW + 2 * STREAM_WINDOW);
        drop(first);
        assert_eq!(shares.window(), BASE_WINDOW + STREAM_WINDOW);
        assert!(shares.try_take().is_some());
    }
}
