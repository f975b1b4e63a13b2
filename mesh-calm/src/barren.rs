//! TLS records without data: key updates, alerts that end nothing, empty records.

use std::io;

use crate::FLOOD;

/// What a byte of data makes up for: more than a record has beside it, even if that is its only byte.
const FOR_EACH: usize = 32;

/// Bytes that a TLS session has received beside its data, for which no data has made up.
#[derive(Debug)]
pub struct BarrenBytes {
    count: usize,
    most: usize,
}

impl BarrenBytes {
    /// Creates the count of a new session, which may have `most` bytes without any data.
    pub fn new(most: usize) -> Self {
        Self { count: 0, most }
    }

    /// Counts `received` bytes of records with `data` bytes of data in them. Data pays for what came before
    /// it, and not for what comes later. Errors: too many without data, of kind [`FLOOD`].
    pub fn count(&mut self, received: usize, data: usize) -> io::Result<()> {
        self.count = self.count.saturating_add(received).saturating_sub(data.saturating_mul(FOR_EACH));
        if self.count > self.most {
            return Err(io::Error::new(FLOOD, "too many TLS records without data"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn data_pays_for_what_came_before_it_alone() {
        let mut barren = BarrenBytes::new(100);
        barren.count(100, 0).expect("as many as there may be");
        barren.count(1_000, 1_000).expect("data");
        barren.count(100, 0).expect("as many as there may be");
        let error = barren.count(1, 0).expect_err("the data before pays for nothing later");
        assert_eq!(error.kind(), FLOOD);
    }

    #[test]
    fn a_record_with_a_byte_of_data_is_no_barren_one() {
        let mut barren = BarrenBytes::new(100);
        for _ in 0..10_000 {
            barren.count(23, 1).expect("a byte in each record");
        }
    }
}
