//! The map of pods' network namespaces: pinned, so that a keeper knows what its predecessor found.

use std::collections::{BTreeMap, HashSet};

use aya::maps::{HashMap, MapData};
use mesh_common::maps::Sandbox;

use super::map::absent_is_fine;
use super::{Error, map_error};

const MAP: &str = "SANDBOXES";

/// The map, and a copy for look-ups.
pub(super) struct Sandboxes {
    map: HashMap<MapData, u64, Sandbox>,
    /// Uids, by the cookie of their network namespace.
    known: BTreeMap<u64, String>,
}

impl Sandboxes {
    /// Reads a predecessor's entries.
    pub fn new(map: HashMap<MapData, u64, Sandbox>) -> Self {
        let known = map.iter().flatten().map(|(cookie, sandbox)| (cookie, uid(&sandbox))).collect();
        Self { map, known }
    }

    /// Returns the namespace that was found to be a pod's.
    pub fn of(&self, uid: &str) -> Option<u64> {
        self.known.iter().find(|(_, known)| *known == uid).map(|(cookie, _)| *cookie)
    }

    /// Returns the pod whose a network namespace is.
    pub fn pod(&self, cookie: u64) -> Option<&str> {
        self.known.get(&cookie).map(String::as_str)
    }

    /// Adds an entry. One that is there already stays as settled as it was: a predecessor may have written it
    /// since this keeper began.
    pub fn put(&mut self, cookie: u64, pod: &str, settled: bool) -> Result<(), Error> {
        if self.map.get(&cookie, 0).is_ok_and(|there| uid(&there) == pod) {
            self.known.insert(cookie, pod.to_owned());
            return Ok(());
        }
        let mut sandbox = Sandbox { uid: [0; 40], settled: settled.into() };
        sandbox.uid.iter_mut().zip(pod.bytes()).for_each(|(place, byte)| *place = byte);
        self.map.insert(cookie, sandbox, 0).map_err(map_error(MAP))?;
        self.known.insert(cookie, pod.to_owned());
        Ok(())
    }

    /// Whether the preexisting connections of a namespace have been judged.
    pub fn is_settled(&self, cookie: u64) -> bool {
        self.map.get(&cookie, 0).is_ok_and(|sandbox| sandbox.settled != 0)
    }

    /// Notes that they have. Errors: the map can't be written.
    pub fn settle(&mut self, cookie: u64) -> Result<(), Error> {
        let sandbox = self.map.get(&cookie, 0).map_err(map_error(MAP))?;
        self.map.insert(cookie, Sandbox { settled: 1, ..sandbox }, 0).map_err(map_error(MAP))
    }

    pub fn remove(&mut self, cookie: u64) -> Result<(), Error> {
        self.known.remove(&cookie);
        absent_is_fine(self.map.remove(&cookie)).map_err(map_error(MAP))
    }

    pub fn retain(&mut self, cookies: &HashSet<u64>) -> Result<(), Error> {
        let stale: Vec<u64> = self.known.keys().filter(|cookie| !cookies.contains(cookie)).copied().collect();
        stale.into_iter().try_for_each(|cookie| self.remove(cookie))
    }
}

fn uid(sandbox: &Sandbox) -> String {
    String::from_utf8_lossy(&sandbox.uid).trim_end_matches('\0').to_owned()
}
