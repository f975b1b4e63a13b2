//! Reading the directory: every `*.yaml`, `*.yml` and `*.json` below it.
//!
//! A file is parsed again only when it changed. While a file has mistakes, every object that it had before and that
//! is missing now stays as it last was: a slip in a policy must not switch the policy off.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use mesh_api::manifest::{Located, ManifestError, ObjectKey, Parsed, parse};
use mesh_api::resource::Object;

use super::last_good;

/// Nothing that people write is larger; it keeps a stray image or archive from being parsed.
const LARGEST_FILE: u64 = 16 << 20;
/// Two changes within this time may leave the same time stamp, so a file as young as that is always read.
const STAMP_GRAIN: Duration = Duration::from_millis(100);

type SharedObject = Arc<Located<Object>>;

/// A directory of manifests.
pub struct Directory {
    path: PathBuf,
    last_good: PathBuf,
    files: BTreeMap<PathBuf, File>,
}

/// What the directory says.
#[derive(Debug, Default)]
pub struct Loaded {
    /// The good objects, no two with the same key.
    pub objects: Vec<SharedObject>,
    /// Mistakes.
    pub errors: Vec<ManifestError>,
    /// What has no effect, or less than its author may think.
    pub warnings: Vec<ManifestError>,
}

impl Directory {
    /// Nothing is read yet, except what `last_good` remembers from an earlier run.
    pub fn new(path: PathBuf, last_good: PathBuf) -> Self {
        let files =
            last_good::read(&last_good).into_iter().map(|(file, kept)| (file, File::remembered(kept)));
        Self { files: files.collect(), path, last_good }
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Reads what changed and puts everything together. Fails only if the directory itself can't be read.
    pub fn read(&mut self) -> io::Result<Loaded> {
        let mut before = std::mem::take(&mut self.files);
        let mut paths = Vec::new();
        let listed = list(&self.path, &mut paths);
        if let Err(error) = listed {
            self.files = before;
            return Err(error);
        }
        for path in paths {
            let old = before.remove(&path).unwrap_or_default();
            if let Some(file) = old.refresh(&path) {
                self.files.insert(path, file);
            }
        }
        let kept = self.files.iter().filter(|(_, file)| !file.kept.is_empty());
        last_good::write(&self.last_good, kept.map(|(path, file)| (path.as_path(), file.kept.as_slice())));
        Ok(self.merge())
    }

    /// What is written now wins over what was kept; among equals, the file that sorts first.
    fn merge(&self) -> Loaded {
        let mut loaded = Loaded::default();
        let mut seen: HashMap<ObjectKey, SharedObject> = HashMap::new();
        for file in self.files.values() {
            loaded.errors.extend_from_slice(&file.errors);
            loaded.warnings.extend_from_slice(&file.warnings);
            for object in &file.fresh {
                let key = object.value.key();
                if let Some(first) = seen.get(&key) {
                    loaded.errors.push(duplicate(object, first, &key));
                } else {
                    seen.insert(key, Arc::clone(object));
                    loaded.objects.push(Arc::clone(object));
                }
            }
        }
        for object in self.files.values().flat_map(|file| &file.kept) {
            if let std::collections::hash_map::Entry::Vacant(entry) = seen.entry(object.value.key()) {
                entry.insert(Arc::clone(object));
                loaded.objects.push(Arc::clone(object));
            }
        }
        loaded
    }
}

/// One file as it was last read.
#[derive(Default)]
struct File {
    stamp: Option<Stamp>,
    fresh: Vec<SharedObject>,
    /// Objects that the file had before, and that its mistakes may hide now.
    kept: Vec<SharedObject>,
    errors: Vec<ManifestError>,
    warnings: Vec<ManifestError>,
}

impl File {
    fn remembered(kept: Vec<SharedObject>) -> Self {
        Self { kept, ..Self::default() }
    }

    /// The file as it is now; none if it has gone.
    fn refresh(self, path: &Path) -> Option<Self> {
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
            Ok(text) => Some(self.parsed(stamp, parse(&path.to_string_lossy(), &text))),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => Some(self.unreadable(path, &error.to_string())),
        }
    }

    fn parsed(self, stamp: Option<Stamp>, parsed: Parsed) -> Self {
        let fresh: Vec<SharedObject> = parsed.objects.into_iter().map(Arc::new).collect();
        let kept = if parsed.errors.is_empty() { Vec::new() } else { self.missing_from(&fresh) };
        Self { stamp, fresh, kept, errors: parsed.errors, warnings: parsed.warnings }
    }

    /// Objects that the file was good for until now, without those in `fresh`.
    fn missing_from(self, fresh: &[SharedObject]) -> Vec<SharedObject> {
        let present: Vec<ObjectKey> = fresh.iter().map(|object| object.value.key()).collect();
        let mut held = self.fresh;
        held.extend(self.kept);
        held.retain(|object| !present.contains(&object.value.key()));
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

/// Files below `directory` in the order of their names. Names with a leading dot are passed over: editors, atomic
/// writers and Kubernetes' mounts keep their own files there.
fn list(directory: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    let mut entries = fs::read_dir(directory)?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = entry.path();
        if entry.file_name().as_encoded_bytes().starts_with(b".") {
            continue;
        }
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            match list(&path, paths) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        } else if path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json") {
            paths.push(path);
        }
    }
    Ok(())
}

fn duplicate(object: &Located<Object>, first: &Located<Object>, key: &ObjectKey) -> ManifestError {
    ManifestError {
        file: object.file.to_string(),
        line: object.line,
        resource: Some(key.to_string()),
        field: Some("metadata.name".to_owned()),
        problem: format!("the same resource is already defined at {}:{}", first.file, first.line),
        fix: "remove one of the two, or rename it".to_owned(),
    }
}

#[cfg(test)]
mod tests;
