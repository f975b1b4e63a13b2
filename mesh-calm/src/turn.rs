//! How much is done for one connection before others get their turn.

/// Work of one turn, in the points of [`price`](crate::price): some hundred microseconds.
const WORK: u32 = 128;

/// Bytes of one turn.
const BYTES: usize = 256 * 1024;

/// What is left of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    work: u32,
    bytes: usize,
}

impl Default for Turn {
    /// A whole one.
    fn default() -> Self {
        Self { work: WORK, bytes: BYTES }
    }
}

impl Turn {
    /// So much was done.
    pub fn spend(&mut self, work: u32, bytes: usize) {
        self.work = self.work.saturating_sub(work);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether it is the others' turn now.
    pub fn is_over(&self) -> bool {
        self.work == 0 || self.bytes == 0
    }
}
