//! What the agent last knew of who is to be in the mesh. It is on disk, so that it counts while no agent runs
//! and after a restart of the node.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::call::Pod;

/// Most bytes of the file: some ten thousand namespaces.
pub const LONGEST: u64 = 1 << 20;

/// Who is to be in the mesh. Whoever is not mentioned is not.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Namespaces whose label says yes.
    pub namespaces: BTreeSet<String>,
    /// Pods of this node, by uid, of which the other answer is true than of their namespace: a label of their
    /// own counts more.
    pub pods: BTreeMap<String, bool>,
}

impl State {
    /// Reads it, or where it was lost with the power the one before. Errors: there is none, or it is none.
    pub fn read(path: &Path) -> io::Result<Self> {
        Self::read_one(path).or_else(|error| Self::read_one(&before(path)).map_err(|_| error))
    }

    fn read_one(path: &Path) -> io::Result<Self> {
        let mut bytes = Vec::new();
        File::open(path)?.take(LONGEST).read_to_end(&mut bytes)?;
        Ok(serde_json::from_slice(&bytes)?)
    }

    /// Whether a pod is to be in the mesh. One that the agent has not seen is what its namespace is.
    pub fn wants(&self, pod: Pod<'_>) -> bool {
        self.pods.get(pod.uid).copied().unwrap_or_else(|| self.namespaces.contains(pod.namespace))
    }

    /// As the file has it.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A map with texts for keys always has a JSON form.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// Writes the file anew: who reads it finds the old state or the new one. It does not wait for the disk,
/// since who writes has other things to do: if the power goes now, the state before is still there.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    let mut file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&fresh)?;
    io::Write::write_all(&mut file, bytes)?;
    match fs::rename(path, before(path)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    fs::rename(&fresh, path)
}

/// Where the state before that of a file is.
pub fn before(path: &Path) -> PathBuf {
    path.with_extension("before")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod<'a>(namespace: &'a str, uid: &'a str) -> Pod<'a> {
        Pod { namespace, name: "web", uid }
    }

    #[test]
    fn a_label_of_the_pod_counts_more_than_that_of_its_namespace() {
        let state = State {
            namespaces: BTreeSet::from(["shop".to_owned()]),
            pods: BTreeMap::from([("out".to_owned(), false), ("in".to_owned(), true)]),
        };
        assert!(state.wants(pod("shop", "new")), "unknown, in a namespace that is");
        assert!(!state.wants(pod("shop", "out")));
        assert!(state.wants(pod("bank", "in")));
        assert!(!state.wants(pod("bank", "new")));
        assert!(!state.wants(pod("", "")), "no pod of Kubernetes");
    }

    #[test]
    fn what_is_written_is_what_is_read() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cni.json");
        let state = State {
            namespaces: BTreeSet::from(["shop".to_owned()]),
            pods: BTreeMap::from([("in".to_owned(), true)]),
        };
        replace(&path, &state.to_bytes()).unwrap();
        assert_eq!(State::read(&path).unwrap(), state);
        for garbage in ["", "{", "[]", "\0\0\0", r#"{"namespaces": 7, "pods": {}}"#] {
            fs::write(&path, garbage).unwrap();
            State::read(&path).unwrap_err();
        }
    }

    #[test]
    fn the_state_before_counts_where_the_last_one_was_lost() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("cni.json");
        let of = |name: &str| State { namespaces: BTreeSet::from([name.to_owned()]), ..State::default() };
        for name in ["shop", "bank", "mint"] {
            replace(&path, &of(name).to_bytes()).unwrap();
        }
        assert_eq!(State::read(&path).unwrap(), of("mint"));
        fs::write(&path, "").unwrap();
        assert_eq!(State::read(&path).unwrap(), of("bank"), "nothing of it came to the disk");
        fs::remove_file(&path).unwrap();
        assert_eq!(State::read(&path).unwrap(), of("bank"), "between the two renames");
    }
}
