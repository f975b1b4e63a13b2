//! A stream's window: how much its peer may send.
//!
//! A window begins small and doubles as long as the application takes data quickly; beyond [`NEAR`] only
//! while the peer waits for credit. So a stream gets what the product of bandwidth and delay asks for, as
//! with TCP's receive buffer, and a stopped reader holds little. Everything above [`EARLY_CREDIT`] is taken
//! from a [`PodReceiveBudget`] that a pod's streams share: a pod whose readers all stop makes its node hold
//! that much and no more.

use std::rc::Rc;
use std::time::{Duration, Instant};

use super::EARLY_CREDIT;
use super::pod_receive_budget::PodReceiveBudget;

/// Initial window of a stream, bytes; less where the pod's budget is used up.
const FIRST: usize = 64 * 1024;

/// Largest window of a stream to a near peer, bytes: more would only wait in queues, and make others wait
/// there.
const NEAR: usize = 768 * 1024;

/// Largest window of a stream, bytes, for far peers.
const MOST: usize = 4 * 1024 * 1024;

/// A window grows, up to [`NEAR`], if a quarter of it is used up sooner than this. A slower stream has
/// enough.
const QUICK: Duration = Duration::from_millis(100);

/// The window of one stream, bytes.
pub(super) struct ReceiveWindow {
    budget: Rc<PodReceiveBudget>,
    /// Size; what is above [`EARLY_CREDIT`] was taken from the budget.
    size: usize,
    /// Credit that the peer has left.
    granted: usize,
    /// Bytes that the application took and the peer has no credit for yet.
    due: usize,
    /// When credit was given last.
    given: Instant,
}

impl ReceiveWindow {
    /// Creates the window of a stream that the peer opens, which may send [`EARLY_CREDIT`] bytes until it is
    /// accepted.
    pub fn for_incoming(budget: &Rc<PodReceiveBudget>) -> Self {
        Self {
            budget: Rc::clone(budget),
            size: EARLY_CREDIT,
            granted: EARLY_CREDIT,
            due: 0,
            given: Instant::now(),
        }
    }

    /// Creates the window of a stream that this end opens.
    pub fn for_outgoing(budget: &Rc<PodReceiveBudget>) -> Self {
        let mut window = Self::for_incoming(budget);
        window.widen(FIRST);
        window.granted = window.size;
        window
    }

    /// Returns the credit that OPEN gives, bytes.
    #[allow(clippy::cast_possible_truncation, reason = "at most MOST")]
    pub fn whole_credit_for_open(&self) -> u32 {
        self.size as u32
    }

    /// Grows to the initial window when the stream is accepted. Returns the credit that ACCEPT gives, bytes:
    /// at least one, even where the budget is used up.
    pub fn grow_on_accept(&mut self) -> u32 {
        self.widen(FIRST);
        let more = (self.size - EARLY_CREDIT).max(1);
        self.grant(more)
    }

    /// Counts received bytes. Returns whether the peer had credit for them.
    pub fn try_spend_credit(&mut self, bytes: usize) -> bool {
        let left = self.granted.checked_sub(bytes);
        left.inspect(|left| self.granted = *left).is_some()
    }

    /// Returns how many bytes the peer may still send.
    pub fn peer_credit(&self) -> usize {
        self.granted
    }

    /// Counts bytes that the application took. Returns the credit to give now, if any: a quarter of the
    /// window at a time, so that it costs few frames, and more while the window grows. `round_trip` is the
    /// time to the peer and back.
    pub fn grant_for_consumed(&mut self, bytes: usize, round_trip: Duration) -> Option<u32> {
        self.due += bytes;
        if self.due < self.size / 4 {
            return None;
        }
        let before = self.size;
        let took = self.given.elapsed();
        // If the peer waits for credit, a quarter takes a fourth of a round trip; a third allows for late
        // measurement.
        let most = if took * 3 < round_trip { MOST } else { NEAR };
        if took < QUICK {
            self.widen((self.size * 2).min(most));
        }
        self.given = Instant::now();
        let more = std::mem::take(&mut self.due) + (self.size - before);
        Some(self.grant(more))
    }

    fn widen(&mut self, size: usize) {
        if self.size < size && self.budget.try_take(size - self.size) {
            self.size = size;
        }
    }

    #[allow(clippy::cast_possible_truncation, reason = "at most MOST, and what the application took of it")]
    fn grant(&mut self, more: usize) -> u32 {
        self.granted += more;
        more as u32
    }
}

impl Drop for ReceiveWindow {
    fn drop(&mut self) {
        self.budget.give_back(self.size - EARLY_CREDIT);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_while_the_application_takes_what_comes() {
        let budget = PodReceiveBudget::new(usize::MAX / 2, None);
        let mut window = ReceiveWindow::for_incoming(&budget);
        assert_eq!(window.grow_on_accept() as usize, FIRST - EARLY_CREDIT);
        let far = Duration::from_mins(1);
        let passes = |window: &mut ReceiveWindow, bytes| {
            assert!(window.try_spend_credit(bytes));
            window.grant_for_consumed(bytes, far).map(|credit| credit as usize)
        };
        window.given = Instant::now().checked_sub(QUICK).unwrap();
        assert_eq!(passes(&mut window, FIRST / 4), Some(FIRST / 4), "slow: no more");
        assert_eq!(passes(&mut window, FIRST / 4 - 1), None);
        assert_eq!(passes(&mut window, 1), Some(FIRST / 4 + FIRST), "quick: twice as much");
        while window.size < MOST {
            passes(&mut window, 1000);
        }
        for _ in 0..10_000 {
            passes(&mut window, 1000);
            assert!(window.granted <= MOST, "{}", window.granted);
        }
        assert!(!window.try_spend_credit(window.granted + 1), "more than it has credit for");
    }

    #[test]
    fn a_near_peer_gets_no_more_than_it_needs() {
        let budget = PodReceiveBudget::new(usize::MAX / 2, None);
        let mut window = ReceiveWindow::for_incoming(&budget);
        window.grow_on_accept();
        for _ in 0..10_000 {
            assert!(window.try_spend_credit(1000));
            window.grant_for_consumed(1000, Duration::ZERO);
        }
        assert_eq!(window.size, NEAR);
    }

    #[test]
    fn what_all_streams_of_a_pod_hold_is_bounded() {
        let budget = PodReceiveBudget::new(FIRST, None);
        let mut windows: Vec<_> = (0..100).map(|_| ReceiveWindow::for_incoming(&budget)).collect();
        let credit: usize = windows.iter_mut().map(|window| window.grow_on_accept() as usize).sum();
        assert_eq!(
            credit,
            FIRST - EARLY_CREDIT + 99,
            "one has a window, the others a byte each beyond what all have"
        );
        for window in &mut windows {
            assert!(window.try_spend_credit(EARLY_CREDIT));
            window.grant_for_consumed(EARLY_CREDIT, Duration::ZERO);
        }
        let held: usize = windows.iter().map(|window| window.granted).sum();
        assert!(held <= FIRST + 100 * (EARLY_CREDIT + 1), "{held}");
        drop(windows);
        assert_eq!(budget.free(), FIRST, "all of it came back");
    }
}
