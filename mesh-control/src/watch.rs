//! Waiting for a directory to change, with a burst of changes seen as one.

use std::collections::{BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures_util::StreamExt as _;
use inotify::{Event, EventMask, EventStream, Inotify, WatchDescriptor, WatchMask};
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

/// What may have changed of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Touched {
    /// Anything.
    Anything,
    /// These files: they were written, made, renamed or removed.
    Files(BTreeSet<PathBuf>),
}

impl Default for Touched {
    /// Nothing.
    fn default() -> Self {
        Self::Files(BTreeSet::new())
    }
}

/// Watches one directory.
pub struct DirectoryWatch {
    root: PathBuf,
    depth: Depth,
    events: EventStream<Vec<u8>>,
    directories: HashMap<WatchDescriptor, PathBuf>,
    /// The directory is gone or can't be watched: it is polled until it is back.
    blind: bool,
}

impl DirectoryWatch {
    /// Begins to watch. What changes from now on is not missed.
    pub fn new(root: &Path, depth: Depth) -> io::Result<Self> {
        let events = Inotify::init()?.into_event_stream(vec![0; BUFFER])?;
        let (root, directories) = (root.to_owned(), HashMap::new());
        let mut watch = Self { root, depth, events, directories, blind: false };
        watch.cover()?;
        Ok(watch)
    }

    /// Returns when something has changed, and what. Read it then: new directories are watched already.
    pub async fn changed(&mut self) -> Touched {
        let was_blind = self.blind;
        let wait = if was_blind { POLL } else { FOREVER };
        let mut touched = match timeout(wait, self.events.next()).await {
            Ok(Some(Ok(event))) => self.drain(event).await,
            // Nothing more will be seen to happen; polling keeps the promise that changes are noticed.
            Ok(_) => {
                tokio::time::sleep(POLL).await;
                Touched::Anything
            }
            Err(_) => Touched::Anything,
        };
        if was_blind || touched == Touched::Anything {
            self.look_again();
            touched = Touched::Anything;
        }
        touched
    }

    async fn drain(&mut self, first: Event<OsString>) -> Touched {
        let end = Instant::now() + LONGEST;
        let mut touched = Touched::default();
        self.add(&first, &mut touched);
        while let Ok(Some(Ok(event))) = timeout_at(end.min(Instant::now() + QUIET), self.events.next()).await
        {
            self.add(&event, &mut touched);
            if Instant::now() >= end {
                break;
            }
        }
        touched
    }

    fn add(&self, event: &Event<OsString>, touched: &mut Touched) {
        // Of a directory, of the one that is watched, or of more than the queue holds: then anything may have
        // changed. So it may when Kubernetes swaps `..data`, the link that all files of a mounted `ConfigMap`
        // lead through.
        let linked = event.name.as_ref().is_some_and(|name| name.as_encoded_bytes().starts_with(b".."));
        let file = !event.mask.contains(EventMask::ISDIR) && !linked;
        let path = event.name.as_ref().zip(self.directories.get(&event.wd));
        match (touched, path.filter(|_| file)) {
            (Touched::Files(files), Some((name, directory))) => drop(files.insert(directory.join(name))),
            (touched, _) => *touched = Touched::Anything,
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
        self.directories.clear();
        while let Some(directory) = pending.pop() {
            // Another directory may vanish at any time; that is an event of its parent.
            match watches.add(&directory, mask) {
                Err(error) if directory == self.root || error.kind() != io::ErrorKind::NotFound => {
                    return Err(error);
                }
                Err(_) => {}
                Ok(watch) => {
                    if self.depth == Depth::Recursive {
                        pending.extend(subdirectories(&directory));
                    }
                    self.directories.insert(watch, directory);
                }
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
    async fn says_which_files_of_known_directories() {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("a")).unwrap();
        let mut watch = DirectoryWatch::new(directory.path(), Depth::Recursive).unwrap();
        let file = directory.path().join("a/file");
        fs::write(&file, "x").unwrap();
        let mut seen = watch.changed().await;
        assert_eq!(seen, Touched::Files([file].into()));
        fs::create_dir(directory.path().join("b")).unwrap();
        seen = watch.changed().await;
        assert_eq!(seen, Touched::Anything);
        let file = directory.path().join("b/file");
        fs::write(&file, "x").unwrap();
        assert_eq!(watch.changed().await, Touched::Files([file].into()));
    }

    #[tokio::test]
    async fn a_mounted_config_map_that_is_swapped_may_have_changed_anywhere() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        std::os::unix::fs::symlink("..first", path("..data")).unwrap();
        std::os::unix::fs::symlink("..data/policy.yaml", path("policy.yaml")).unwrap();
        let mut watch = DirectoryWatch::new(directory.path(), Depth::Recursive).unwrap();
        std::os::unix::fs::symlink("..second", path("..data_tmp")).unwrap();
        fs::rename(path("..data_tmp"), path("..data")).unwrap();
        assert_eq!(watch.changed().await, Touched::Anything);
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
