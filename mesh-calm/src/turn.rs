//! How much is done for one connection before others get their turn.

/// Work of one turn, in the points of [`price`](crate::price): some hundred microseconds.
const WORK: u32 = 128;

/// Bytes of one turn.
const BYTES: usize = 256 * 1024;

/// Pieces of data that are a point of work together: what takes them is short and the same each time, and a
/// turn that ends in the middle of what arrived at once sends its answers in two parts.
const PIECES: u32 = 4;

/// What is left of a turn.
#[derive(Clone, Copy, Debug)]
pub struct Turn {
    /// In points, of which a piece of data takes a part.
    work: u32,
    bytes: usize,
}

impl Default for Turn {
    /// A whole one.
    fn default() -> Self {
        Self { work: WORK * PIECES, bytes: BYTES }
    }
}

impl Turn {
    /// Takes `work` points and as many `bytes` off it.
    pub fn spend(&mut self, work: u32, bytes: usize) {
        self.take(work.saturating_mul(PIECES), bytes);
    }

    /// Takes off a piece of data of so many `bytes`.
    pub fn spend_on_data(&mut self, bytes: usize) {
        self.take(1, bytes);
    }

    fn take(&mut self, pieces: u32, bytes: usize) {
        self.work = self.work.saturating_sub(pieces);
        self.bytes = self.bytes.saturating_sub(bytes);
    }

    /// Whether it is the others' turn now.
    pub fn is_over(&self) -> bool {
        self.work == 0 || self.bytes == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often something can be done in a turn.
    fn times(mut spend: impl FnMut(&mut Turn)) -> u32 {
        let (mut turn, mut count) = (Turn::default(), 0);
        while !turn.is_over() {
            spend(&mut turn);
            count += 1;
        }
        count
    }

    #[test]
    fn data_is_bounded_by_its_bytes_and_small_pieces_by_their_number() {
        assert_eq!(times(|turn| turn.spend(1, 0)), WORK);
        assert_eq!(times(|turn| turn.spend_on_data(1)), WORK * PIECES);
        assert_eq!(times(|turn| turn.spend_on_data(64 * 1024)), 4);
    }
}
