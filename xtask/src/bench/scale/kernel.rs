//! What the kernel's map of destinations knows: where the data path begins.

use std::fs;
use std::net::IpAddr;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::path::Path;

use anyhow::{Context, Result};
use aya::maps::{HashMap, Map, MapData};
use mesh_common::address::Address;

/// The map, opened.
pub struct Destinations(HashMap<MapData, Address, u32>);

impl Destinations {
    /// Opens a pinned map.
    pub fn open(path: &Path) -> Result<Self> {
        let data = MapData::from_pin(path).with_context(|| format!("can't open {}", path.display()))?;
        Ok(Self(HashMap::try_from(Map::HashMap(data)).context("it is no such map")?))
    }

    /// Whether connections to an address go to the mesh.
    pub fn know(&self, address: IpAddr) -> bool {
        self.0.get(&Address::from(address), 0).is_ok()
    }
}

/// How many addresses a map knows.
pub fn count(path: &Path) -> Result<usize> {
    Ok(Destinations::open(path)?.0.keys().flatten().count())
}

/// Kernel memory that a map takes, in megabytes, as the kernel itself says (`memlock` in its fdinfo).
pub fn memory(path: &Path) -> Result<f64> {
    let data = MapData::from_pin(path).with_context(|| format!("can't open {}", path.display()))?;
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", data.fd().as_fd().as_raw_fd()))?;
    let bytes =
        info.lines().find_map(|line| line.strip_prefix("memlock:")).context("no memlock in fdinfo")?;
    Ok(bytes.trim().parse::<f64>()? / 1e6)
}
