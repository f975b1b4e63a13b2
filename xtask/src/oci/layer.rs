//! The file tree of an image.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use tar::{Builder, EntryType, Header};

/// Files, symbolic links and directories, all of root and of the epoch; paths are relative to the image's
/// root.
///
/// Directories above an entry are made with mode 0755 unless they are given. A path that is given twice keeps
/// the last entry.
#[derive(Debug, Clone, Default)]
pub struct Layer {
    entries: BTreeMap<String, Entry>,
}

#[derive(Debug, Clone)]
enum Entry {
    Directory { mode: u32 },
    File { mode: u32, content: Vec<u8> },
    Link { target: String },
}

impl Layer {
    /// A layer without a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a regular file with these permission bits; an error if `path` is absolute or has `..` in it.
    pub fn file(&mut self, path: &str, mode: u32, content: &[u8]) -> Result<()> {
        self.add(path, Entry::File { mode, content: content.into() })
    }

    /// Adds a directory with these permission bits, for example 0o1777 for `tmp`.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.add(path, Entry::Directory { mode })
    }

    /// Adds a symbolic link that says `target`.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.add(path, Entry::Link { target: target.into() })
    }

    fn add(&mut self, path: &str, entry: Entry) -> Result<()> {
        let parts: Vec<_> = path.split('/').collect();
        let fine = parts.iter().all(|part| !matches!(*part, "" | "." | ".."));
        ensure!(fine, "{path} is not a plain relative path");
        for length in 1..parts.len() {
            let parent = parts[..length].join("/");
            self.entries.entry(parent).or_insert(Entry::Directory { mode: 0o755 });
        }
        self.entries.insert(path.into(), entry);
        Ok(())
    }

    /// The layer as a tar file. Sorted, so that a directory comes before what is in it.
    pub(super) fn archive(&self) -> Result<Vec<u8>> {
        let mut tar = Builder::new(Vec::new());
        for (path, entry) in &self.entries {
            let context = || format!("adding {path}");
            match entry {
                Entry::Directory { mode } => {
                    let mut header = header(EntryType::Directory, *mode, 0);
                    tar.append_data(&mut header, Path::new(path), [].as_slice()).with_context(context)?;
                }
                Entry::File { mode, content } => add_file(&mut tar, path, *mode, content)?,
                Entry::Link { target } => {
                    let mut header = header(EntryType::Symlink, 0o777, 0);
                    tar.append_link(&mut header, path, target).with_context(context)?;
                }
            }
        }
        Ok(tar.into_inner()?)
    }
}

/// Appends a regular file of root and of the epoch.
pub(super) fn add_file(tar: &mut Builder<impl Write>, path: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = header(EntryType::Regular, mode, content.len() as u64);
    tar.append_data(&mut header, path, content).with_context(|| format!("adding {path}"))
}

fn header(kind: EntryType, mode: u32, size: u64) -> Header {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_comes_before_what_is_in_it() {
        let mut layer = Layer::new();
        layer.file("usr/bin/thing", 0o755, b"x").unwrap();
        layer.directory("tmp", 0o1777).unwrap();
        layer.link("bin", "usr/bin").unwrap();
        assert_eq!(
            list(&layer),
            [
                ("bin".into(), EntryType::Symlink, 0o777),
                ("tmp".into(), EntryType::Directory, 0o1777),
                ("usr".into(), EntryType::Directory, 0o755),
                ("usr/bin".into(), EntryType::Directory, 0o755),
                ("usr/bin/thing".into(), EntryType::Regular, 0o755),
            ]
        );
    }

    #[test]
    fn a_directory_keeps_its_mode_when_something_is_put_into_it() {
        let mut layer = Layer::new();
        layer.directory("root", 0o700).unwrap();
        layer.file("root/x", 0o600, b"").unwrap();
        assert_eq!(list(&layer)[0], ("root".into(), EntryType::Directory, 0o700));
    }

    #[test]
    fn no_path_leaves_the_image() {
        for path in ["/etc/passwd", "../x", "a/../b", "", "a//b", "./a"] {
            assert!(Layer::new().file(path, 0o644, b"").is_err(), "{path}");
        }
    }

    fn list(layer: &Layer) -> Vec<(String, EntryType, u32)> {
        let bytes = layer.archive().unwrap();
        let mut archive = tar::Archive::new(bytes.as_slice());
        let entries = archive.entries().unwrap().map(|entry| {
            let entry = entry.unwrap();
            let path = entry.path().unwrap().display().to_string();
            (path, entry.header().entry_type(), entry.header().mode().unwrap())
        });
        entries.collect()
    }
}
