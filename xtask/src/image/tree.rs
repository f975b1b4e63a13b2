//! Files of this machine at the paths that they have in an image.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Component, Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::libraries;
use crate::command::CommandExt;
use crate::oci::Layer;

/// As many symbolic links as the kernel follows for one path.
const MOST_LINKS: u32 = 40;

/// The layer of an image, which knows what of it is from this machine.
#[derive(Debug, Clone, Default)]
pub struct Tree {
    layer: Layer,
    taken: BTreeSet<PathBuf>,
}

impl Tree {
    /// One without a file.
    pub fn new() -> Self {
        Self::default()
    }

    /// Its files.
    pub fn layer(&self) -> &Layer {
        &self.layer
    }

    /// The real paths of this machine's files that are in it.
    pub fn taken(&self) -> impl Iterator<Item = &Path> {
        self.taken.iter().map(PathBuf::as_path)
    }

    /// Adds a text file that anybody may read.
    pub fn put(&mut self, path: &str, text: &str) -> Result<()> {
        self.layer.file(path, 0o644, text.as_bytes())
    }

    /// Adds a file that was made for the image, which anybody may read.
    pub fn put_made(&mut self, path: &str, content: &[u8]) -> Result<()> {
        self.layer.file(path, 0o644, content)
    }

    /// Adds a directory with these permission bits.
    pub fn directory(&mut self, path: &str, mode: u32) -> Result<()> {
        self.layer.directory(path, mode)
    }

    /// Adds a symbolic link.
    pub fn link(&mut self, path: &str, target: &str) -> Result<()> {
        self.layer.link(path, target)
    }

    /// Adds this machine's file `path` as it is, with the symbolic links on the way to it: `/lib` is one on
    /// Debian.
    pub fn take(&mut self, path: &Path) -> Result<()> {
        self.copy(path).with_context(|| format!("can't take {}", path.display()))
    }

    /// Adds a program, or a library, and all libraries that it needs.
    pub fn take_program(&mut self, path: &Path) -> Result<()> {
        self.take(path)?;
        libraries::of(path)?.iter().try_for_each(|library| self.take(library))
    }

    /// Adds a program of this workspace at `at` without its debug information, and all libraries that it
    /// needs. Symbols stay, so that a backtrace has names.
    pub fn take_stripped(&mut self, program: &Path, at: &str) -> Result<()> {
        let directory = program.parent().context("a program is in a directory")?;
        let stripped = tempfile::Builder::new().prefix(".strip-").tempfile_in(directory)?.into_temp_path();
        Command::new("strip").args(["--strip-debug", "-o"]).args([&stripped, program]).checked()?;
        self.layer.file(at, 0o755, &fs::read(&stripped)?)?;
        libraries::of(program)?.iter().try_for_each(|library| self.take(library))
    }

    fn copy(&mut self, path: &Path) -> Result<()> {
        let real = self.follow(path)?;
        let metadata = fs::metadata(&real)?;
        ensure!(metadata.is_file(), "not a file");
        // The machine's umask has no say in an image.
        let mode = if metadata.permissions().mode() & 0o100 == 0 { 0o644 } else { 0o755 };
        self.layer.file(inside(&real)?, mode, &fs::read(&real)?)?;
        self.taken.insert(real);
        Ok(())
    }

    /// Walks `path`, adding each symbolic link; where it ends.
    fn follow(&mut self, path: &Path) -> Result<PathBuf> {
        let mut real = PathBuf::from("/");
        let mut rest: VecDeque<OsString> = parts(path).collect();
        let mut links = 0;
        while let Some(part) = rest.pop_front() {
            if part == ".." {
                real.pop();
                continue;
            }
            let next = real.join(part);
            if !fs::symlink_metadata(&next)?.is_symlink() {
                real = next;
                continue;
            }
            links += 1;
            ensure!(links <= MOST_LINKS, "too many symbolic links");
            let target = fs::read_link(&next)?;
            self.layer.link(inside(&next)?, target.to_str().context("a link that is not UTF-8")?)?;
            if target.is_absolute() {
                real = "/".into();
            }
            for part in parts(&target).collect::<Vec<_>>().into_iter().rev() {
                rest.push_front(part);
            }
        }
        Ok(real)
    }
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// An absolute path as an image's layer has it.
fn inside(path: &Path) -> Result<&str> {
    path.strip_prefix("/")?.to_str().context("a path that is not UTF-8")
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn links_on_the_way_are_kept() {
        let directory = tempfile::tempdir().unwrap();
        let root = directory.path().canonicalize().unwrap();
        fs::create_dir(root.join("real")).unwrap();
        fs::write(root.join("real/thing-1"), "x").unwrap();
        symlink("thing-1", root.join("real/thing")).unwrap();
        symlink("real", root.join("short")).unwrap();
        let mut tree = Tree::new();
        tree.take(&root.join("short/thing")).unwrap();
        assert_eq!(tree.taken().collect::<Vec<_>>(), [root.join("real/thing-1")]);
        let layer = format!("{:?}", tree.layer());
        assert!(layer.contains("Link { target: \"real\" }"), "{layer}");
        assert!(layer.contains("Link { target: \"thing-1\" }"), "{layer}");
    }

    #[test]
    fn a_circle_of_links_ends() {
        let directory = tempfile::tempdir().unwrap();
        symlink("circle", directory.path().join("circle")).unwrap();
        let error = Tree::new().take(&directory.path().join("circle")).unwrap_err();
        assert!(format!("{error:#}").ends_with("too many symbolic links"), "{error:#}");
    }

    #[test]
    fn what_is_not_there_is_named() {
        let error = Tree::new().take(Path::new("/nonexistent/thing")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/thing"));
    }
}
