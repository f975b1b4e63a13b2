//! What was read of a request's body, for the case that it has to be sent again.

/// Most bytes that are kept. A larger body is not sent again.
const MAX_KEPT: usize = 64 * 1024;

/// The content that was read so far.
#[derive(Debug, Default)]
pub(super) struct KeptBody {
    content: Vec<u8>,
    is_too_large: bool,
}

impl KeptBody {
    /// Keeps another piece.
    pub fn push(&mut self, piece: &[u8]) {
        if self.content.len() + piece.len() > MAX_KEPT {
            self.is_too_large = true;
            self.content = Vec::new();
        }
        if !self.is_too_large {
            self.content.extend_from_slice(piece);
        }
    }

    /// Returns all that was read; none if it was too much to keep.
    pub fn content(&self) -> Option<&[u8]> {
        (!self.is_too_large).then_some(&self.content)
    }
}
