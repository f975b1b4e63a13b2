//! Files in memory alone: `memfd_create(2)`.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::io::Errno;

/// Creates an empty file, which `/proc` shows by this name to those who may look. Errors: no memory, or no
/// descriptor.
pub fn create_empty_memfd(name: &CStr) -> io::Result<File> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = match memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
        // Older than Linux 6.3.
        Err(Errno::INVAL) => memfd_create(name, flags),
        made => made,
    };
    Ok(file?.into())
}

/// Seals a file: from now on nobody can change it. Errors: those of `fcntl(2)`.
pub fn seal_read_only(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL)?)
}

/// Seals a file so that it only grows. Errors: those of `fcntl(2)`.
pub fn seal_against_shrinking(file: &File) -> io::Result<()> {
    Ok(fcntl_add_seals(file, SealFlags::SHRINK | SealFlags::SEAL)?)
}

/// Reads a whole file, without its offset, which it shares with whoever else has the descriptor. Errors: it
/// is longer than `most` bytes, or shorter than it says.
pub fn read_whole_file(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let length = file.metadata()?.len();
    if length > most {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| io::ErrorKind::FileTooLarge)?];
    file.read_exact_at(&mut bytes, 0)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn what_is_sealed_is_read_and_never_changed() {
        let mut file = create_empty_memfd(c"test").unwrap();
        file.write_all(b"a key").unwrap();
        seal_read_only(&file).unwrap();
        assert!(file.write_all(b"another").is_err());
        assert!(file.set_len(0).is_err() && file.set_len(100).is_err());
        assert_eq!(read_whole_file(&file, 5).unwrap(), b"a key");
        assert_eq!(read_whole_file(&file, 4).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
    }

    #[test]
    fn what_grows_does_not_shrink() {
        let mut file = create_empty_memfd(c"test").unwrap();
        seal_against_shrinking(&file).unwrap();
        file.write_all(b"one").unwrap();
        assert!(file.set_len(0).is_err());
        file.write_all(b"two").unwrap();
        assert_eq!(read_whole_file(&file, 100).unwrap(), b"onetwo");
    }
}
