//! An open stream: after the 200 its DATA frames are the raw bytes, `END_STREAM` is FIN, `RST_STREAM` is RST.

use std::cell::Cell;
use std::rc::Rc;

use bytes::Bytes;
use h2::{RecvStream, SendStream};

/// Both directions of a stream.
pub struct Tunnel {
    /// To the peer.
    pub send: SendStream<Bytes>,
    /// From the peer.
    pub receive: RecvStream,
    pub(super) _counted: Option<Counted>,
}

/// Streams open on a connection of ours. (`h2` keeps the number to itself.)
#[derive(Clone, Default)]
pub(super) struct Streams(Rc<Cell<usize>>);

/// An open stream, counted until it is dropped.
pub(super) struct Counted(Rc<Cell<usize>>);

impl Streams {
    pub(super) fn open(&self) -> usize {
        self.0.get()
    }

    pub(super) fn count(&self) -> Counted {
        self.0.set(self.0.get() + 1);
        Counted(Rc::clone(&self.0))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}
