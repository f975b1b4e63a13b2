//! Keeps the plugin in the network list, which the primary CNI plugin may rewrite at any time.

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use inotify::{Inotify, WatchMask};
use mesh_cni::install::Record;

/// Most times that the plugin is put back within [`WHILE`], against somebody who keeps removing it. Later
/// looks do the rest.
const MOST: u32 = 10;
const WHILE: Duration = Duration::from_secs(10);

/// Keeps the plugin of one state directory in place. It never blocks.
pub struct ConflistRepair {
    state_dir: PathBuf,
    changes: Option<Inotify>,
    /// How often the plugin was put back, and since when.
    times: u32,
    since: Instant,
    /// What last kept it out, so that it is logged once.
    problem: String,
}

impl ConflistRepair {
    /// Creates one for the plugin that is installed with this state directory.
    pub fn new(state_dir: &Path) -> Self {
        let (state_dir, since, problem) = (state_dir.to_owned(), Instant::now(), String::new());
        let mut repair = Self { state_dir, changes: None, times: 0, since, problem };
        repair.ensure_plugin_in_conflist();
        repair
    }

    /// Returns a descriptor that is readable when the list may have changed.
    pub fn inotify_fd(&self) -> Option<BorrowedFd<'_>> {
        self.changes.as_ref().map(AsFd::as_fd)
    }

    /// Puts the plugin back into the list, if it should be there and is not, and was not put back too often
    /// of late. What keeps it out is logged.
    pub fn ensure_plugin_in_conflist(&mut self) {
        self.forget_changes();
        if self.since.elapsed() >= WHILE {
            (self.times, self.since) = (0, Instant::now());
        }
        if self.times >= MOST {
            return;
        }
        let Some(record) = Record::read(&self.state_dir) else {
            self.changes = None;
            return;
        };
        if self.changes.is_none() {
            self.changes = watch(&record.conf_dir).ok();
        }
        match record.chain() {
            Ok(false) => self.problem.clear(),
            Ok(true) => {
                tracing::info!(directory = %record.conf_dir.display(), "CNI plugin put into the network list again");
                self.times += 1;
                self.problem.clear();
            }
            Err(error) => {
                let problem = error.to_string();
                if self.problem != problem {
                    tracing::error!(
                        problem,
                        "CNI plugin not in the network list: pods start before they are enrolled"
                    );
                    self.problem = problem;
                }
            }
        }
    }

    /// Discards events: they say only that the list was written.
    fn forget_changes(&mut self) {
        let mut buffer = [0; 4096];
        if let Some(changes) = &mut self.changes {
            while changes.read_events(&mut buffer).is_ok_and(|mut events| events.next().is_some()) {}
        }
    }
}

fn watch(directory: &Path) -> io::Result<Inotify> {
    let changes = Inotify::init()?;
    let mask = WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::MOVED_FROM | WatchMask::DELETE;
    changes.watches().add(directory, mask)?;
    Ok(changes)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const LIST: &str = r#"{"cniVersion": "0.4.0", "name": "net", "plugins": [{"type": "bridge"}]}"#;

    #[test]
    fn a_list_that_is_written_anew_is_noticed_and_gets_the_plugin_again() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        for name in ["bin", "net.d", "state"] {
            fs::create_dir(at(name)).unwrap();
        }
        fs::write(at("program"), "").unwrap();
        let list = at("net.d").join("10-net.conflist");
        fs::write(&list, LIST).unwrap();
        let mut repair = ConflistRepair::new(&at("state"));
        assert!(repair.inotify_fd().is_none(), "nothing is installed");
        let record = Record::new(&at("bin"), &at("net.d"), &at("state"), Path::new("/run"));
        record.install(&at("state"), &at("program")).unwrap();
        repair.ensure_plugin_in_conflist();
        let with = fs::read_to_string(&list).unwrap();
        assert!(with.contains(mesh_cni::TYPE) && repair.inotify_fd().is_some());
        for time in 0..2 * MOST {
            fs::write(&list, LIST).unwrap();
            repair.ensure_plugin_in_conflist();
            let put_in = fs::read_to_string(&list).unwrap() == with;
            assert_eq!(put_in, time + 1 < MOST, "not for ever at once");
        }
        repair.times = 0;
        repair.ensure_plugin_in_conflist();
        assert_eq!(fs::read_to_string(&list).unwrap(), with);
        mesh_cni::install::remove(&at("state")).unwrap();
        repair.ensure_plugin_in_conflist();
        assert_eq!(fs::read_to_string(&list).unwrap(), LIST, "what was removed stays so");
    }
}
