//! An answer's body, handed over in pieces.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};

use super::progress::Progress;

/// Bytes that are handed over at a time: so the last is asked for only when the others are written.
const PIECE: usize = 64 << 10;

/// A body in memory, which tells when nothing of it is left.
pub(super) struct Pieces {
    left: Bytes,
    progress: Arc<Progress>,
}

impl Pieces {
    pub fn new(bytes: Bytes, progress: Arc<Progress>) -> Self {
        Self { left: bytes, progress }
    }
}

impl Body for Pieces {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let length = self.left.len().min(PIECE);
        Poll::Ready((length > 0).then(|| Ok(Frame::data(self.left.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.left.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left.len() as u64)
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        self.progress.body_over();
    }
}
