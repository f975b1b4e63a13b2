//! Cgroups v2: every process of a lab is in one, so that none can be lost.

use std::{
    fs, io,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::files::make_with_parents;
use super::{During, HostError};

/// How long killed processes may take to vanish. A process in an uninterruptible wait needs a moment.
const DEATH: Duration = Duration::from_secs(5);
/// Between looks at a cgroup that is emptying.
const LOOK: Duration = Duration::from_millis(5);

/// Makes a cgroup and those above it.
pub fn create(path: &Path) -> Result<(), HostError> {
    make_with_parents(path).during(|| format!("make the cgroup {}", path.display()))
}

/// Moves this process into a cgroup.
pub fn join(path: &Path) -> Result<(), HostError> {
    fs::write(path.join("cgroup.procs"), "0").during(|| format!("join the cgroup {}", path.display()))
}

/// Kills every process in a cgroup and below it, at once.
pub fn kill(path: &Path) -> Result<(), HostError> {
    match fs::write(path.join("cgroup.kill"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.during(|| format!("kill the processes of {}", path.display())),
    }
}

/// Whether a process is in the cgroup or below it.
pub fn is_populated(path: &Path) -> bool {
    fs::read_to_string(path.join("cgroup.events")).is_ok_and(|events| events.contains("populated 1"))
}

/// Kills every process and removes the cgroup with those below it. For callers that may block.
pub fn destroy(path: &Path) -> Result<(), HostError> {
    kill(path)?;
    let deadline = Instant::now() + DEATH;
    while is_populated(path) && Instant::now() < deadline {
        std::thread::sleep(LOOK);
    }
    finish(path)
}

/// The same, leaving the thread to others while it waits.
pub async fn destroy_async(path: &Path) -> Result<(), HostError> {
    kill(path)?;
    let deadline = Instant::now() + DEATH;
    while is_populated(path) && Instant::now() < deadline {
        tokio::time::sleep(LOOK).await;
    }
    finish(path)
}

fn finish(path: &Path) -> Result<(), HostError> {
    if is_populated(path) {
        let cgroup = path.display().to_string();
        return Err(HostError::StillRunning { cgroup, seconds: DEATH.as_secs() });
    }
    remove(path)
}

/// Removes an empty cgroup and those below it; one that is not there is as good as removed.
fn remove(path: &Path) -> Result<(), HostError> {
    for child in children(path) {
        remove(&child)?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.during(|| format!("remove the cgroup {}", path.display())),
    }
}

fn children(path: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(path).into_iter().flatten().flatten();
    entries
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}
