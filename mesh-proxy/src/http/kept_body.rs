//! What was read of a request's body, for the case that it has to be sent again.

use std::rc::Rc;

use crate::mux::PodReceiveBudget;

/// Most bytes that are kept. A larger body is not sent again.
const MAX_KEPT: usize = 64 * 1024;

/// The content that was read so far. Its memory is taken from the budget of the pod's streams.
pub(super) struct KeptBody {
    content: Vec<u8>,
    /// Whether all of it is here.
    is_whole: bool,
    budget: Rc<PodReceiveBudget>,
}

impl KeptBody {
    /// Creates an empty one. `keeps` is whether anything is ever sent again.
    pub fn new(budget: Rc<PodReceiveBudget>, keeps: bool) -> Self {
        Self { content: Vec::new(), is_whole: keeps, budget }
    }

    /// Keeps another piece.
    pub fn push(&mut self, piece: &[u8]) {
        if !self.is_whole {
            return;
        }
        let fits = self.content.len() + piece.len() <= MAX_KEPT;
        if fits && self.budget.try_take(piece.len()) {
            self.content.extend_from_slice(piece);
        } else {
            self.is_whole = false;
            self.budget.give_back(self.content.len());
            self.content = Vec::new();
        }
    }

    /// Returns all that was read; none if it was not kept.
    pub fn content(&self) -> Option<&[u8]> {
        self.is_whole.then_some(&self.content)
    }

    /// Whether nothing that was read is missing.
    pub fn holds_all_read(&self, read: u64) -> bool {
        self.is_whole || read == 0
    }
}

impl Drop for KeptBody {
    fn drop(&mut self) {
        self.budget.give_back(self.content.len());
    }
}
