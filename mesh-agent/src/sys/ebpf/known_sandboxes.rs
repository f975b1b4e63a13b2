//! The map of pods' network namespaces: pinned, so that a keeper knows what its predecessor found.

use std::collections::{BTreeMap, HashSet};

use aya::maps::{HashMap, MapData};
use mesh_common::maps::SandboxOwner;

use super::map_helpers::ignore_missing;
use super::{Error, map_error};

const MAP: &str = "SANDBOXES";

/// The map, and a copy for look-ups.
pub(super) struct SandboxMap {
    map: HashMap<MapData, u64, SandboxOwner>,
    /// Uids, by the cookie of their network namespace.
    known: BTreeMap<u64, String>,
}

impl SandboxMap {
    /// Reads a predecessor's entries.
    pub fn new(map: HashMap<MapData, u64, SandboxOwner>) -> Self {
        let known = map.iter().flatten().map(|(cookie, sandbox)| (cookie, uid(&sandbox))).collect();
        Self { map, known }
    }

    /// Returns the cookie of the namespace that was found to be a pod's.
    pub fn netns_cookie_of_pod(&self, uid: &str) -> Option<u64> {
        self.known.iter().find(|(_, known)| *known == uid).map(|(cookie, _)| *cookie)
    }

    /// Returns the pod whose a network namespace is.
    pub fn pod_of_netns(&self, cookie: u64) -> Option<&str> {
        self.known.get(&cookie).map(String::as_str)
    }

    /// Adds an entry. One of the same pod that is there already stays as it was: a predecessor may have
    /// written it since this keeper began.
    pub fn insert_or_keep(&mut self, cookie: u64, pod: &str, preexisting_judged: bool) -> Result<(), Error> {
        if self.map.get(&cookie, 0).is_ok_and(|there| uid(&there) == pod) {
            self.known.insert(cookie, pod.to_owned());
            return Ok(());
        }
        let mut sandbox = SandboxOwner { uid: [0; 40], preexisting_judged: preexisting_judged.into() };
        sandbox.uid.iter_mut().zip(pod.bytes()).for_each(|(place, byte)| *place = byte);
        self.map.insert(cookie, sandbox, 0).map_err(map_error(MAP))?;
        self.known.insert(cookie, pod.to_owned());
        Ok(())
    }

    /// Whether the preexisting connections of a namespace have been judged.
    pub fn is_preexisting_judged(&self, cookie: u64) -> bool {
        self.map.get(&cookie, 0).is_ok_and(|sandbox| sandbox.preexisting_judged != 0)
    }

    /// Notes that they have. Errors: the map can't be written.
    pub fn mark_preexisting_judged(&mut self, cookie: u64) -> Result<(), Error> {
        let sandbox = self.map.get(&cookie, 0).map_err(map_error(MAP))?;
        self.map.insert(cookie, SandboxOwner { preexisting_judged: 1, ..sandbox }, 0).map_err(map_error(MAP))
    }

    pub fn remove(&mut self, cookie: u64) -> Result<(), Error> {
        self.known.remove(&cookie);
        ignore_missing(self.map.remove(&cookie)).map_err(map_error(MAP))
    }

    pub fn retain(&mut self, cookies: &HashSet<u64>) -> Result<(), Error> {
        let stale: Vec<u64> = self.known.keys().filter(|cookie| !cookies.contains(cookie)).copied().collect();
        stale.into_iter().try_for_each(|cookie| self.remove(cookie))
    }
}

fn uid(sandbox: &SandboxOwner) -> String {
    String::from_utf8_lossy(&sandbox.uid).trim_end_matches('\0').to_owned()
}
