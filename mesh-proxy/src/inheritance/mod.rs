//! What a proxy leaves to its successor: certificates with their keys, and the control plane's configuration.
//!
//! It is in memory alone: in files without a name (`memfd_create(2)`), whose descriptors the keeper holds and
//! hands to the next proxy. So they are gone with the agent, and on no disk, but for a node that swaps: this
//! memory is swapped like that of the proxy itself. No other process can open them: it would have to be
//! allowed to trace the keeper (`ptrace(2)`), which has more privileges than the proxies of its user.
//!
//! A proxy that was taken over by an attacker may have left anything. So its successor believes nothing that
//! it can't check: certificates ([`certificate_file`]) are parsed within bounds, and count only if they lead
//! to the roots of the file that the node's operator gave; the configuration ([`xds_journal`]) has no such
//! proof, and counts only while the control plane can't be reached, which is told nothing of it and lists
//! everything anew.

pub mod certificate_file;
mod journal_frames;
mod memfd;
pub mod xds_journal;

use std::fs::File;
use std::os::fd::OwnedFd;

use tokio::sync::mpsc;

pub use memfd::{create_empty_memfd, read_whole_file, seal_against_shrinking, seal_read_only};

/// Sends files to whoever hands them to the keeper, which holds them for the proxy's successor. Cheap to
/// clone.
#[derive(Clone)]
pub struct BequestSender(mpsc::UnboundedSender<Bequest>);

/// Kinds of files that are left.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum InheritedKind {
    /// Certificates and their keys, in a sealed file.
    Certificates,
    /// The control plane's responses, in a file that grows.
    Configuration,
}

/// A file that is left, or none if there is nothing of its kind any more.
pub type Bequest = (InheritedKind, Option<OwnedFd>);

impl BequestSender {
    /// Creates both ends: the second is for whoever hands the files to the keeper.
    pub fn channel() -> (Self, mpsc::UnboundedReceiver<Bequest>) {
        let (left, taken) = mpsc::unbounded_channel();
        (Self(left), taken)
    }

    /// Creates one without a successor, for tests and gateways.
    pub fn without_successor() -> Self {
        Self::channel().0
    }

    /// Leaves a file, in place of the one before; none leaves nothing.
    pub fn bequeath(&self, what: InheritedKind, file: Option<File>) {
        // Without a keeper there is no successor.
        let _nobody = self.0.send((what, file.map(OwnedFd::from)));
    }
}
