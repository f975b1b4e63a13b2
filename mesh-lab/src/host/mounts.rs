//! Mounts that the mesh needs.

use std::{fs, path::Path};

use rustix::mount::{MountFlags, mount};

use super::{During, HostError};

/// Mounts the file system in which eBPF objects are pinned, unless it is there.
pub fn bpf() -> Result<(), HostError> {
    let place = Path::new("/sys/fs/bpf");
    let mounts = fs::read_to_string("/proc/self/mounts").during(|| "list mounts".to_owned())?;
    if mounts
        .lines()
        .any(|line| line.split(' ').nth(1) == place.to_str() && line.split(' ').nth(2) == Some("bpf"))
    {
        return Ok(());
    }
    mount("bpf", place, "bpf", MountFlags::empty(), None)
        .during(|| format!("mount bpffs at {}", place.display()))
}
