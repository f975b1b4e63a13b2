//! Files that others watch, and secrets.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use super::{During, HostError};

/// How long a directory is tried. Each time some other lab has removed the shared parent within microseconds;
/// a count of tries instead ran out on a machine with other work, where each of them met the one who removes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Between two tries, one of these more each time up to [`STEPS`]: who makes and who removes could otherwise
/// keep in step.
const PAUSE: Duration = Duration::from_micros(10);

/// The pauses' longest, in [`PAUSE`]s; a prime, so that no other period fits.
const STEPS: u32 = 97;

/// Makes a directory and those above it.
pub fn directory(path: &Path) -> Result<(), HostError> {
    make_with_parents(path).during(|| format!("make the directory {}", path.display()))
}

/// `create_dir_all` fails when a parent vanishes after it was made, and the last lab that goes removes what
/// labs share.
pub(super) fn make_with_parents(path: &Path) -> io::Result<()> {
    let deadline = Instant::now() + PATIENCE;
    let mut tried = 0;
    loop {
        match fs::create_dir_all(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound && Instant::now() < deadline => {
                tried += 1;
                thread::sleep(PAUSE * (tried % STEPS));
            }
            result => return result,
        }
    }
}

/// Makes a directory in which anybody may make files, and remove their own.
pub fn shared_directory(path: &Path) -> Result<(), HostError> {
    directory(path)?;
    let mode = fs::Permissions::from_mode(0o1777);
    fs::set_permissions(path, mode).during(|| format!("open the directory {} to all", path.display()))
}

/// Replaces a file as a whole, so that who reads it sees the old or the new one. The intermediate name begins
/// with a dot and has no extension that a reader of the directory would take up.
pub fn replace(path: &Path, content: &str) -> Result<(), HostError> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let fresh = path.with_file_name(format!(".{name}.new"));
    fs::write(&fresh, content)
        .and_then(|()| fs::rename(&fresh, path))
        .during(|| format!("write {}", path.display()))
}

/// Writes a file that its owner alone may read.
pub fn secret(path: &Path, content: &str) -> Result<(), HostError> {
    let write = || {
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?.write_all(content.as_bytes())
    };
    write().during(|| format!("write {}", path.display()))
}

/// Removes a file; one that is not there is as good as removed.
pub fn remove(path: &Path) -> Result<(), HostError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.during(|| format!("remove {}", path.display())),
    }
}

/// Removes a directory with all that is in it.
pub fn remove_all(path: &Path) -> Result<(), HostError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.during(|| format!("remove {}", path.display())),
    }
}

/// Opens a log to add to.
pub fn log(path: &Path) -> Result<fs::File, HostError> {
    let file = OpenOptions::new().create(true).append(true).open(path);
    file.during(|| format!("open the log {}", path.display()))
}

/// Whether a log has a text in what was added to it since it was so long.
pub fn says_since(path: &Path, length: u64, text: &str) -> bool {
    let log = fs::read(path).unwrap_or_default();
    let added = log.get(usize::try_from(length).unwrap_or(0)..).unwrap_or_default();
    String::from_utf8_lossy(added).contains(text)
}

/// The last lines of a log, for an error message.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_directory_is_made_though_its_parent_keeps_vanishing() {
        let directory = tempfile::tempdir().unwrap();
        let parent = directory.path().join("shared");
        let child = parent.join("lab");
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    let _ = fs::remove_dir(&parent);
                    thread::sleep(Duration::from_micros(1));
                }
            });
            let made = (0..5000).map(|_| super::directory(&child).map(|()| fs::remove_dir(&child).unwrap()));
            let made = made.collect::<Result<Vec<_>, _>>();
            done.store(true, Ordering::Relaxed);
            made.unwrap();
        });
    }
}
