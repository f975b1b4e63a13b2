//! Debian's packages, installed without starting the services that they bring.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result};

use crate::command::CommandExt;

/// Installs `packages`; refreshes the package lists only if one is unknown or no longer where they say.
pub fn install(packages: &[&str]) -> Result<()> {
    let mut fresh = false;
    if !packages.iter().all(|package| is_known(package)) {
        update()?;
        fresh = true;
    }
    let _policy = ServicePolicy::deny(Path::new("/usr/sbin/policy-rc.d"))?;
    match run_install(packages) {
        Err(_) if !fresh => {
            update()?;
            run_install(packages)
        }
        result => result,
    }
}

fn is_known(package: &str) -> bool {
    Command::new("apt-cache")
        .args(["show", "--quiet", package])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .is_ok_and(|status| status.success())
}

fn update() -> Result<()> {
    apt_get().arg("update").checked().context("refreshing apt's package lists")
}

fn run_install(packages: &[&str]) -> Result<()> {
    apt_get().args(["install", "--yes", "--no-install-recommends"]).args(packages).checked()
}

fn apt_get() -> Command {
    let mut command = Command::new("apt-get");
    command.args(["-qq", "-o", "DPkg::Lock::Timeout=120", "-o", "DPkg::Use-Pty=0"]);
    command.env("DEBIAN_FRONTEND", "noninteractive").stdin(Stdio::null());
    // `cargo run` points this at the Rust toolchain's libraries.
    command.env_remove("LD_LIBRARY_PATH");
    command
}

/// While it lives, packages that are installed start no service (Debian's `invoke-rc.d` asks this script).
///
/// An administrator's own policy stays in force: it is neither replaced nor removed.
struct ServicePolicy {
    ours: Option<PathBuf>,
}

impl ServicePolicy {
    const SCRIPT: &str =
        "#!/bin/sh\n# Put here by nodemesh's `cargo xtask setup` while it installs packages.\nexit 101\n";

    fn deny(path: &Path) -> Result<Self> {
        match fs::read_to_string(path) {
            // One of ours was left by a run that was killed: this run removes it.
            Ok(text) if text == Self::SCRIPT => return Ok(Self { ours: Some(path.into()) }),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            _ => return Ok(Self { ours: None }),
        }
        let policy = Self { ours: Some(path.into()) };
        fs::write(path, Self::SCRIPT)
            .and_then(|()| fs::set_permissions(path, fs::Permissions::from_mode(0o755)))
            .with_context(|| format!("can't write {}", path.display()))?;
        Ok(policy)
    }
}

impl Drop for ServicePolicy {
    fn drop(&mut self) {
        let Some(path) = &self.ours else { return };
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                remark!(
                    "warning: remove {} by hand, services do not start while it is there: {error}",
                    path.display()
                );
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_denies_and_goes_away() {
        let path = scratch("goes-away");
        {
            let _policy = ServicePolicy::deny(&path).unwrap();
            let status = Command::new(&path).status().unwrap();
            assert_eq!(status.code(), Some(101));
        }
        assert!(!path.exists());
    }

    #[test]
    fn an_administrators_policy_stays_and_a_leftover_goes() {
        let path = scratch("administrator");
        fs::write(&path, "#!/bin/sh\nexit 0\n").unwrap();
        drop(ServicePolicy::deny(&path).unwrap());
        assert_eq!(fs::read_to_string(&path).unwrap(), "#!/bin/sh\nexit 0\n");

        fs::write(&path, ServicePolicy::SCRIPT).unwrap();
        drop(ServicePolicy::deny(&path).unwrap());
        assert!(!path.exists());
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("nodemesh-policy-{}-{name}", std::process::id()));
        let _ = fs::remove_file(&path);
        path
    }
}
