//! Encrypted bytes that wait to be sent.

use super::buffer_pool;

/// A buffer that is appended to and sent from the front, borrowed from the worker while it has bytes. It is
/// not cleared in between: that would cost as much as a tenth of the encryption.
#[derive(Default)]
pub(super) struct WriteBuffer {
    buffer: Vec<u8>,
    sent: usize,
    end: usize,
}

impl WriteBuffer {
    /// Returns the bytes that are not sent yet.
    pub fn unsent(&self) -> &[u8] {
        &self.buffer[self.sent..self.end]
    }

    /// Removes bytes from the front that were sent.
    pub fn mark_sent(&mut self, bytes: usize) {
        self.sent += bytes;
        if self.sent >= self.end {
            (self.sent, self.end) = (0, 0);
            buffer_pool::return_full_length(std::mem::take(&mut self.buffer));
        }
    }

    /// Returns a slice of `bytes` free bytes at the end.
    pub fn free_space(&mut self, bytes: usize) -> &mut [u8] {
        if self.buffer.is_empty() {
            self.buffer = buffer_pool::take_full_length();
        }
        if self.buffer.len() < self.end + bytes {
            self.buffer.resize(self.end + bytes, 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Adds the first `bytes` of that slice.
    pub fn mark_filled(&mut self, bytes: usize) {
        self.end += bytes;
        debug_assert!(self.end <= self.buffer.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_sent_once_and_in_order() {
        let mut outgoing = WriteBuffer::default();
        outgoing.free_space(3)[..3].copy_from_slice(b"abc");
        outgoing.mark_filled(3);
        outgoing.mark_sent(1);
        outgoing.free_space(2 * buffer_pool::BUFFER_LEN)[..2].copy_from_slice(b"de");
        outgoing.mark_filled(2);
        assert_eq!(outgoing.unsent(), b"bcde");
        outgoing.mark_sent(4);
        assert_eq!(outgoing.unsent(), b"");
        assert!(outgoing.buffer.is_empty(), "given back");
    }
}
