//! The inheritance as the keeper holds it: files in memory that a proxy leaves to the next one, and that the
//! keeper never reads.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{SealFlags, fcntl_get_seals, fstat};

use super::protocol::InheritedKind;

/// Most bytes of a file; a longer one is not handed on.
const MOST_BYTES: i64 = 128 << 20;

/// The inherited files.
#[derive(Default)]
pub(super) struct InheritedFiles {
    certificates: Option<OwnedFd>,
    configuration: Option<OwnedFd>,
}

impl InheritedFiles {
    /// Takes the files that a predecessor handed over, in the order of [`Self::descriptors`].
    pub fn new(certificates: Option<OwnedFd>, configuration: Option<OwnedFd>) -> Self {
        Self { certificates, configuration }
    }

    /// Holds a file in place of another. Errors: it is not a memory file with the right seals.
    pub fn replace_file(&mut self, what: InheritedKind, file: Option<OwnedFd>) -> io::Result<()> {
        if let Some(file) = &file
            && !fcntl_get_seals(file)?.contains(seals(what))
        {
            return Err(io::ErrorKind::InvalidData.into());
        }
        match what {
            InheritedKind::Certificates => self.certificates = file,
            InheritedKind::Configuration => self.configuration = file,
        }
        Ok(())
    }

    /// Returns the files to hand on: certificates, configuration.
    pub fn descriptors(&self) -> [Option<BorrowedFd<'_>>; 2] {
        [&self.certificates, &self.configuration]
            .map(|file| file.as_ref().map(AsFd::as_fd).filter(|file| is_short(*file)))
    }
}

/// Seals that the reader relies on.
fn seals(what: InheritedKind) -> SealFlags {
    match what {
        InheritedKind::Certificates => {
            SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL
        }
        InheritedKind::Configuration => SealFlags::SHRINK,
    }
}

fn is_short(file: BorrowedFd<'_>) -> bool {
    fstat(file).is_ok_and(|status| status.st_size <= MOST_BYTES)
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::Write;

    use mesh_proxy::inheritance::{create_empty_memfd, seal_against_shrinking, seal_read_only};

    use super::*;

    #[test]
    fn only_memory_that_can_not_be_cut_is_held() {
        let mut files = InheritedFiles::default();
        let disk: OwnedFd = tempfile::tempfile().unwrap().into();
        assert!(files.replace_file(InheritedKind::Configuration, Some(disk)).is_err());
        let (pipe, _other) = io::pipe().unwrap();
        assert!(files.replace_file(InheritedKind::Configuration, Some(pipe.into())).is_err());
        let file = || create_empty_memfd(c"test").unwrap();
        assert!(
            files.replace_file(InheritedKind::Configuration, Some(file().into())).is_err(),
            "it could be cut"
        );
        let grows = file();
        seal_against_shrinking(&grows).unwrap();
        let copy = grows.try_clone().unwrap();
        assert!(
            files.replace_file(InheritedKind::Certificates, Some(copy.into())).is_err(),
            "it could be changed"
        );
        assert!(files.descriptors().iter().all(Option::is_none));
        let sealed: File = file();
        seal_read_only(&sealed).unwrap();
        files.replace_file(InheritedKind::Certificates, Some(sealed.into())).unwrap();
        files.replace_file(InheritedKind::Configuration, Some(grows.try_clone().unwrap().into())).unwrap();
        assert!(files.descriptors().iter().all(Option::is_some));
        (&grows).write_all(b"x").unwrap();
        grows.set_len(MOST_BYTES.unsigned_abs() + 1).unwrap();
        assert!(files.descriptors()[1].is_none(), "what has become too long is not handed on");
        files.replace_file(InheritedKind::Certificates, None).unwrap();
        assert!(files.descriptors()[0].is_none());
    }
}
