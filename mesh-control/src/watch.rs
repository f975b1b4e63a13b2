//! Waiting for a directory to change, with a burst of changes seen as one.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{EventStream, Inotify, WatchMask};
use tokio::time::{Instant, timeout, timeout_at};
use tracing::warn;

/// A burst is over when nothing happened for this long.
const QUIET: Duration = Duration::from_millis(15);
/// A burst is not waited for any longer than this.
const LONGEST: Duration = Duration::from_millis(60);
/// How often a directory that can't be watched is looked at.
const POLL: Duration = Duration::from_secs(1);
/// Longer than anybody waits; the timer needs a number.
const FOREVER: Duration = Duration::from_hours(365 * 24);
/// Room for some hundred events per read.
const BUFFER: usize = 16 * 1024;

/// Whether directories below are watched too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Depth {
    /// Only the directory itself.
    Flat,
    /// Everything below it, except what begins with a dot.
    Recursive,
}

/// Watches one directory.
pub struct DirectoryWatch {
    root: PathBuf,
    depth: Depth,
    events: EventStream<Vec<u8>>,
    /// The directory is gone or can't be watched: it is polled until it is back.
    blind: bool,
}

impl DirectoryWatch {
    /// Begins to watch. What changes from now on is not missed.
    pub fn new(root: &Path, depth: Depth) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; BUFFER])?;
        let mut watch = Self { root: root.to_owned(), depth, events, blind: false };
        watch.cover()?;
        Ok(watch)
    }

    /// Returns when something has changed. Read the directory then: new directories are watched already.
    pub async fn changed(&mut self) {
        let wait = if self.blind { POLL } else { FOREVER };
        match timeout(wait, self.events.next()).await {
            Ok(Some(Ok(_))) => self.drain().await,
            // Nothing more will be seen to happen; polling keeps the promise that changes are noticed.
            Ok(_) => tokio::time::sleep(POLL).await,
            Err(_) => {}
        }
        self.look_again();
    }

    async fn drain(&mut self) {
        let end = Instant::now() + LONGEST;
        while let Ok(Some(Ok(_))) = timeout_at(end.min(Instant::now() + QUIET), self.events.next()).await {
            if Instant::now() >= end {
                break;
            }
        }
    }

    fn look_again(&mut self) {
        let result = self.cover();
        if let (Err(error), false) = (&result, self.blind) {
            warn!(directory = %self.root.display(), %error, "cannot watch; looking every second");
        }
        self.blind = result.is_err();
    }

    /// Adds a watch to every directory; one that is watched already stays so.
    fn cover(&mut self) -> io::Result<()> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::CREATE
            | WatchMask::DELETE
            | WatchMask::MOVE
            | WatchMask::ATTRIB
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let mut watches = self.events.watches();
        let mut pending = vec![self.root.clone()];
        while let Some(directory) = pending.pop() {
            // Another directory may vanish at any time; that is an event of its parent.
            match watches.add(&directory, mask) {
                Err(error) if directory == self.root || error.kind() != io::ErrorKind::NotFound => {
                    return Err(error);
                }
                _ if self.depth == Depth::Recursive => pending.extend(subdirectories(&directory)),
                _ => {}
            }
        }
        Ok(())
    }
}

/// Directories in `directory`. Symbolic links are not followed, so there are no loops.
fn subdirectories(directory: &Path) -> Vec<PathBuf> {
    let entries = directory.read_dir().into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .filter(|entry| !entry.file_name().as_encoded_bytes().starts_with(b"."))
        .map(|entry| entry.path())
        .collect()
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    async fn notices(watch: &mut DirectoryWatch) -> bool {
        timeout(Duration::from_secs(5), watch.changed()).await.is_ok()
    }

    #[tokio::test]
    async fn sees_files_in_directories_made_later() {
        let directory = tempfile::tempdir().unwrap();
        let mut watch = DirectoryWatch::new(directory.path(), Depth::Recursive).unwrap();
        fs::create_dir_all(directory.path().join("a/b")).unwrap();
        assert!(notices(&mut watch).await);
        fs::write(directory.path().join("a/b/file"), "x").unwrap();
        assert!(notices(&mut watch).await);
    }

    #[tokio::test]
    async fn finds_a_directory_that_was_replaced() {
        let parent = tempfile::tempdir().unwrap();
        let directory = parent.path().join("tokens");
        fs::create_dir(&directory).unwrap();
        let mut watch = DirectoryWatch::new(&directory, Depth::Flat).unwrap();
        fs::remove_dir(&directory).unwrap();
        assert!(notices(&mut watch).await);
        fs::create_dir(&directory).unwrap();
        assert!(notices(&mut watch).await, "polled while it could not be watched");
        fs::write(directory.join("node1"), "x").unwrap();
        assert!(notices(&mut watch).await);
    }
}
