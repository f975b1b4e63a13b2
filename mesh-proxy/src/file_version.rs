//! Tells whether a file has changed since it was last read. Files are checked every few seconds and hardly
//! ever change; parsing them each time would keep the pages of that code in memory, on every node.

use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// One state of a file. Writing, replacing and renaming set the time of its last change, `st_ctime`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FileVersion {
    inode: u64,
    size: u64,
    /// Seconds and nanoseconds of `st_ctime`.
    changed: (i64, i64),
}

impl FileVersion {
    /// Returns the state now. Call it before reading the file, so that one replaced meanwhile is read again.
    /// Errors: those of `stat(2)`.
    pub fn of(path: &Path) -> io::Result<Self> {
        let metadata = std::fs::metadata(path)?;
        Ok(Self {
            inode: metadata.ino(),
            size: metadata.len(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_file_that_is_replaced_by_one_of_the_same_size_is_another() {
        let directory = tempfile::tempdir().unwrap();
        let (path, next) = (directory.path().join("file"), directory.path().join("next"));
        fs::write(&path, "one").unwrap();
        let first = FileVersion::of(&path).unwrap();
        assert_eq!(FileVersion::of(&path).unwrap(), first);
        fs::write(&next, "two").unwrap();
        fs::rename(&next, &path).unwrap();
        assert_ne!(FileVersion::of(&path).unwrap(), first);
        fs::remove_file(&path).unwrap();
        assert!(FileVersion::of(&path).is_err());
    }
}
