//! Reading the directory: every `*.yaml`, `*.yml` and `*.json` below it.
//!
//! A file is parsed again only when it changed, and an object counts as changed only if its text did. While a
//! file has mistakes, every object that it had before and that is missing now stays as it last was: a slip in
//! a policy must not switch the policy off.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::compile::{ObjectChange, SharedObject};
use mesh_api::manifest::{Located, ManifestError, ObjectKey, ParsedManifest, parse};
use mesh_api::resource::{Object, SharedLabels};

use super::claims::{Claims, Rank};
use super::last_good;
use crate::findings::Loaded;
use crate::watch::Touched;

/// Nothing that people write is larger; it keeps a stray image or archive from being parsed.
const LARGEST_FILE: u64 = 16 << 20;
/// Two changes within this time may leave the same time stamp, so a file as young as that is always read.
const STAMP_GRAIN: Duration = Duration::from_millis(100);

/// A directory of manifests.
pub struct Directory {
    path: PathBuf,
    last_good: PathBuf,
    files: BTreeMap<PathBuf, File>,
    claims: Claims,
    labels: SharedLabels,
    /// What an earlier run kept, by file, until the directory is read.
    remembered: BTreeMap<PathBuf, Vec<Held>>,
}

/// An object of a file.
#[derive(Clone, Debug)]
pub(super) struct Held {
    /// The object.
    pub object: SharedObject,
    /// As it was written, as JSON: to be kept for the next run, should the file break.
    pub raw: Box<str>,
}

impl Held {
    /// The part of it that is needed.
    pub(super) fn new(mut located: Located<Object>, labels: &mut SharedLabels) -> Self {
        let raw = std::mem::take(&mut located.raw).to_string().into();
        located.value.forget_programs(labels);
        Self { object: Arc::new(located), raw }
    }

    fn key(&self) -> ObjectKey {
        self.object.value.key()
    }
}

impl Directory {
    /// Nothing is read yet, except what `last_good` remembers from an earlier run.
    pub fn new(path: PathBuf, last_good: PathBuf) -> Self {
        let mut labels = SharedLabels::default();
        let remembered = last_good::read(&last_good, &mut labels);
        Self { path, last_good, files: BTreeMap::new(), claims: Claims::default(), labels, remembered }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what changed of what was touched. Fails only if the directory itself can't be read.
    pub fn read(&mut self, touched: &Touched) -> io::Result<Loaded> {
        let paths = match touched {
            Touched::Anything => {
                let mut paths = BTreeSet::new();
                list(&self.path, &mut paths)?;
                paths.extend(self.files.keys().cloned());
                paths
            }
            Touched::Files(files) => files.iter().filter(|path| is_manifest(path)).cloned().collect(),
        };
        let mut changes = BTreeSet::new();
        for path in paths {
            self.refresh(path, &mut changes);
        }
        // Of a file that is not there any more.
        self.remembered.clear();
        let kept = self.files.iter().filter(|(_, file)| !file.kept.is_empty());
        last_good::write(&self.last_good, kept.map(|(path, file)| (path.as_path(), file.kept.as_slice())));
        let changes = changes.into_iter().map(|key| ObjectChange { object: self.claims.winner(&key), key });
        Ok(Loaded {
            changes: changes.collect(),
            objects: self.claims.in_force,
            errors: self.all(|file| &file.errors).chain(self.claims.duplicates()).cloned().collect(),
            warnings: self.all(|file| &file.warnings).cloned().collect(),
        })
    }

    /// Reads a file again if it has changed, and notes which objects that may change.
    fn refresh(&mut self, path: PathBuf, changes: &mut BTreeSet<ObjectKey>) {
        let mut old = self.files.remove(&path).unwrap_or_default();
        let (before, was_kept) = (old.fresh.clone(), old.kept.clone());
        old.kept.extend(self.remembered.remove(&path).unwrap_or_default());
        let new = old.refresh(&path, &mut self.labels);
        let (fresh, kept): (&[Held], &[Held]) =
            new.as_ref().map_or((&[], &[]), |file| (&file.fresh, &file.kept));
        for (rank, from, to) in [(Rank::Fresh, &*before, fresh), (Rank::Kept, &*was_kept, kept)] {
            for gone in without(from, to) {
                self.claims.remove(rank, gone);
                changes.insert(gone.key());
            }
            for come in without(to, from) {
                self.claims.add(rank, come);
                changes.insert(come.key());
            }
        }
        if let Some(file) = new {
            self.files.insert(path, file);
        }
    }

    fn all<'a>(
        &'a self,
        of: impl Fn(&'a File) -> &'a Vec<ManifestError>,
    ) -> impl Iterator<Item = &'a ManifestError> {
        self.files.values().flat_map(of)
    }
}

/// What is in one list and not in the other. Lists that are the same cost nothing.
fn without<'a>(list: &'a [Held], other: &[Held]) -> Vec<&'a Held> {
    let there: HashSet<_> = other.iter().map(|held| Arc::as_ptr(&held.object)).collect();
    list.iter().filter(|held| !there.contains(&Arc::as_ptr(&held.object))).collect()
}

/// One file as it was last read.
#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    fresh: Vec<Held>,
    /// Objects that the file had before, and that its mistakes may hide now.
    kept: Vec<Held>,
    errors: Vec<ManifestError>,
    warnings: Vec<ManifestError>,
}

impl File {
    /// The file as it is now; none if it has gone.
    fn refresh(self, path: &Path, labels: &mut SharedLabels) -> Option<Self> {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return None,
            Err(error) => return Some(self.unreadable(path, &error.to_string())),
        };
        if !metadata.is_file() {
            return None;
        }
        let stamp = Stamp::of(&metadata);
        if stamp.is_some() && stamp == self.stamp {
            return Some(self);
        }
        if metadata.len() > LARGEST_FILE {
            return Some(self.unreadable(path, "the file is larger than 16 MiB"));
        }
        match fs::read_to_string(path) {
            // Also what a file looks like between being truncated and being written.
            Ok(text) if text.trim().is_empty() && !(self.fresh.is_empty() && self.kept.is_empty()) => {
                let problem = "the file is empty, which may be half of a change; what it said stays in force";
                Some(self.unreadable(path, problem))
            }
            Ok(text) => Some(self.parsed(stamp, parse(&path.to_string_lossy(), &text), labels)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(self.unreadable(path, &error.to_string())),
        }
    }

    fn parsed(self, stamp: Option<Stamp>, parsed: ParsedManifest, labels: &mut SharedLabels) -> Self {
        let held = parsed.objects.into_iter().map(|located| Held::new(located, labels));
        let fresh: Vec<Held> = held.map(|held| self.as_it_was_or(held)).collect();
        let kept = if parsed.errors.is_empty() { Vec::new() } else { self.missing_from(&fresh) };
        Self { stamp, fresh, kept, errors: parsed.errors, warnings: parsed.warnings }
    }

    /// What was there before, if it is the same: then nothing has to be compiled again.
    fn as_it_was_or(&self, now: Held) -> Held {
        let same = |before: &&Held| before.raw == now.raw && before.object.line == now.object.line;
        self.fresh.iter().find(same).cloned().unwrap_or(now)
    }

    /// Objects that the file was good for until now, without those in `fresh`.
    fn missing_from(self, fresh: &[Held]) -> Vec<Held> {
        let present: HashSet<ObjectKey> = fresh.iter().map(Held::key).collect();
        let mut held = self.fresh;
        held.extend(self.kept);
        held.retain(|object| !present.contains(&object.key()));
        held
    }

    fn unreadable(self, path: &Path, problem: &str) -> Self {
        let error = ManifestError {
            file: path.to_string_lossy().into_owned(),
            line: 1,
            resource: None,
            field: None,
            problem: problem.to_owned(),
            fix: "write its content, or remove the file to remove what it defined".to_owned(),
        };
        Self { errors: vec![error], kept: self.missing_from(&[]), ..Self::default() }
    }
}

/// Tells whether a file may have changed without reading it.
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    inode: (u64, u64),
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Stamp {
    /// None if the file is too young for its stamp to mean anything.
    fn of(metadata: &Metadata) -> Option<Self> {
        let age = SystemTime::now().duration_since(metadata.modified().ok()?).ok()?;
        (age > STAMP_GRAIN).then(|| Self {
            inode: (metadata.dev(), metadata.ino()),
            size: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Files below `directory`. Names with a leading dot are passed over: editors, atomic
/// writers and Kubernetes' mounts keep their own files there.
fn list(directory: &Path, paths: &mut BTreeSet<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match list(&path, paths) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else if is_manifest(&path) {
            paths.insert(path);
        }
    }
    Ok(())
}

/// Whether a file is one that is read.
fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.as_encoded_bytes().starts_with(b"."));
    !hidden && path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json")
}

#[cfg(test)]
mod tests;
