//! The last good state of objects that are broken now, kept across restarts: a control plane that starts on a
//! broken policy must not serve a mesh without it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::{fs, io};

use mesh_api::manifest::parse;
use mesh_api::resource::SharedLabels;
use serde_json::Value;
use tracing::warn;

use super::directory::Held;
use crate::durable;

/// What was kept, by file. Nothing if there is no such file.
pub(super) fn read(path: &Path, labels: &mut SharedLabels) -> BTreeMap<PathBuf, Vec<Held>> {
    let text = match fs::read(path) {
        Ok(text) => text,
        Err(error) => {
            if error.kind() != io::ErrorKind::NotFound {
                warn!(path = %path.display(), %error, "last good state not read");
            }
            return BTreeMap::new();
        }
    };
    let kept: BTreeMap<PathBuf, Vec<Value>> = serde_json::from_slice(&text).unwrap_or_else(|error| {
        warn!(path = %path.display(), %error, "last good state not read");
        BTreeMap::new()
    });
    kept.into_iter().map(|(file, raw)| (file.clone(), objects(&file, &raw, labels))).collect()
}

fn objects(file: &Path, raw: &[Value], labels: &mut SharedLabels) -> Vec<Held> {
    let parsed = raw.iter().map(|value| parse(&file.to_string_lossy(), &value.to_string()));
    parsed.flat_map(|parsed| parsed.objects).map(|located| Held::new(located, labels)).collect()
}

/// Replaces what was kept. A failure costs the memory of it, not the service.
pub(super) fn write<'a>(path: &Path, kept: impl Iterator<Item = (&'a Path, &'a [Held])>) {
    let kept: BTreeMap<_, Vec<_>> =
        kept.map(|(file, held)| (file, held.iter().filter_map(|held| value(&held.raw)).collect())).collect();
    let result = if kept.is_empty() {
        match fs::remove_file(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    } else {
        replace(path, &kept)
    };
    if let Err(error) = result {
        warn!(path = %path.display(), %error, "last good state not kept");
    }
}

/// Never none: it was written from a value.
fn value(raw: &str) -> Option<Value> {
    serde_json::from_str(raw).ok()
}

fn replace(path: &Path, kept: &BTreeMap<&Path, Vec<Value>>) -> io::Result<()> {
    let text = serde_json::to_vec(kept)?;
    if fs::read(path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    durable::write(path, &text, durable::PRIVATE)
}
