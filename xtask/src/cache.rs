//! The user's cache: a directory for each thing that is slow to make, outside of every checkout.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};

/// The directory `name` of the cache, which `make` fills if it is not there.
///
/// Two commands at a time make it once. What `make` leaves when it fails is not found again.
pub fn directory(name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    directory_in(&root()?, name, make)
}

fn directory_in(root: &Path, name: &str, make: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
    let found = root.join(name);
    if found.is_dir() {
        return Ok(found);
    }
    fs::create_dir_all(root).with_context(|| format!("can't make {}", root.display()))?;
    let lock = File::create(root.join(format!("{name}.lock"))).context("can't write into the cache")?;
    lock.lock().context("can't lock the cache")?;
    if !found.is_dir() {
        let fresh = root.join(format!("{name}.new"));
        // Left by a command that was killed.
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh).with_context(|| format!("can't make {}", fresh.display()))?;
        make(&fresh)?;
        fs::rename(&fresh, &found).with_context(|| format!("can't make {}", found.display()))?;
    }
    Ok(found)
}

/// Where all of them are.
pub fn root() -> Result<PathBuf> {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute())
        .or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")))
        .context("neither XDG_CACHE_HOME nor HOME says where to keep what was built")?;
    Ok(base.join("nodemesh"))
}

#[cfg(test)]
mod tests {
    use anyhow::bail;

    use super::*;

    #[test]
    fn makes_a_thing_once_and_forgets_failures() {
        let root = tempfile::tempdir().unwrap();
        let failed = directory_in(root.path(), "thing-1", |fresh| {
            fs::write(fresh.join("half"), "").unwrap();
            bail!("no luck")
        });
        assert!(failed.is_err());
        let made =
            directory_in(root.path(), "thing-1", |fresh| Ok(fs::write(fresh.join("whole"), "")?)).unwrap();
        assert!(made.join("whole").exists() && !made.join("half").exists());
        directory_in(root.path(), "thing-1", |_| bail!("made twice")).unwrap();
    }
}
