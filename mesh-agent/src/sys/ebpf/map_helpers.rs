//! Helpers for maps of any kind.

use std::collections::HashSet;
use std::hash::Hash;
use std::os::fd::{AsFd as _, BorrowedFd};

use aya::Ebpf;
use aya::maps::{HashMap, Map, MapData, MapError};

use super::{Error, map_error};

/// Returns the descriptor of a map, if it is of a kind that is used here.
pub(super) fn map_descriptor(map: &Map) -> Option<BorrowedFd<'_>> {
    match map {
        Map::HashMap(data)
        | Map::LruHashMap(data)
        | Map::Array(data)
        | Map::LpmTrie(data)
        | Map::PerCpuArray(data)
        | Map::ProgramArray(data)
        | Map::RingBuf(data)
        | Map::SkStorage(data) => Some(data.fd().as_fd()),
        _ => None,
    }
}

/// Takes a map out of the object, as the type that it is used as. Errors: it is missing or of another kind.
pub(super) fn take_map<M>(ebpf: &mut Ebpf, name: &'static str) -> Result<M, Error>
where
    M: TryFrom<Map, Error = MapError>,
{
    ebpf.take_map(name).ok_or(Error::Missing(name))?.try_into().map_err(map_error(name))
}

/// Opens a hash map of the object by a descriptor of its own, and leaves the object's; `None` if it has no
/// such map.
pub(super) fn dup_hash_map_handle(ebpf: &Ebpf, name: &str) -> Option<MapData> {
    let Map::HashMap(data) = ebpf.map(name)? else { return None };
    MapData::from_fd(data.fd().as_fd().try_clone_to_owned().ok()?).ok()
}

/// Makes a map hold these keys and no others. A key that stays is never missing meanwhile.
pub(super) fn replace_keys<K: aya::Pod + Eq + Hash>(
    map: &mut HashMap<MapData, K, u32>,
    mut wanted: HashSet<K>,
) -> Result<(), MapError> {
    let mut gone = Vec::new();
    for present in map.keys() {
        let present = present?;
        if !wanted.remove(&present) {
            gone.push(present);
        }
    }
    change_keys(map, wanted.into_iter(), gone.into_iter())
}

/// Removes `gone` and then adds `come`, so that a map that is nearly full has room.
pub(super) fn change_keys<K: aya::Pod>(
    map: &mut HashMap<MapData, K, u32>,
    come: impl Iterator<Item = K>,
    gone: impl Iterator<Item = K>,
) -> Result<(), MapError> {
    for key in gone {
        ignore_missing(map.remove(&key))?;
    }
    for key in come {
        map.insert(key, 1, 0)?;
    }
    Ok(())
}

/// Takes a missing key for success, where it should be removed.
pub(super) fn ignore_missing(result: Result<(), MapError>) -> Result<(), MapError> {
    match result {
        Err(MapError::KeyNotFound) => Ok(()),
        Err(MapError::SyscallError(error)) if error.io_error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        result => result,
    }
}
