//! The inputs of a target: those in the tree, and those that were found on this machine.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

use super::build;
use crate::command::CommandExt;
use crate::workspace::Workspace;

/// Most bytes of a corpus in the tree.
const MOST: u64 = 160 * 1024;

/// Directories of a target.
pub struct Corpus {
    /// `fuzz/corpus/TARGET`, small and the same everywhere.
    tree: PathBuf,
    /// What is found is put here and found again next time.
    found: PathBuf,
    artifacts: PathBuf,
}

impl Corpus {
    /// Makes the directories that are not there.
    pub fn of(workspace: &Workspace, target: &str) -> Result<Self> {
        let own = build::directory(workspace);
        let corpus = Self {
            tree: workspace.root().join("fuzz/corpus").join(target),
            found: own.join("corpus").join(target),
            artifacts: own.join("artifacts").join(target),
        };
        for directory in [&corpus.found, &corpus.artifacts] {
            fs::create_dir_all(directory).with_context(|| format!("can't make {}", directory.display()))?;
        }
        Ok(corpus)
    }

    /// Where inputs go that something is wrong with.
    pub fn artifacts(&self) -> &Path {
        &self.artifacts
    }

    /// The directories to read; libFuzzer writes into the first.
    pub fn directories(&self) -> [&Path; 2] {
        [&self.found, &self.tree]
    }

    /// Makes the corpus in the tree the smallest inputs that reach everything that both reach, beside those
    /// that a person has named. `program` is the target's.
    pub fn keep(&self, program: &Command) -> Result<()> {
        let fresh = self.found.with_extension("kept");
        // Left by a command that was killed.
        let _ = fs::remove_dir_all(&fresh);
        fs::create_dir_all(&fresh).with_context(|| format!("can't make {}", fresh.display()))?;
        let mut merge = Command::new(program.get_program());
        merge.args(program.get_args()).arg("-merge=1").arg(&fresh).args(self.directories());
        merge.captured()?;
        let size = size(&fresh)?;
        ensure!(size <= MOST, "{} would be {size} bytes, more than {MOST}", self.tree.display());
        for old in files(&self.tree)?.into_iter().filter(|file| is_digest(file)) {
            fs::remove_file(&old).with_context(|| format!("can't remove {}", old.display()))?;
        }
        for new in files(&fresh)? {
            let name = new.file_name().context("a file has a name")?;
            fs::copy(&new, self.tree.join(name)).with_context(|| format!("can't copy {}", new.display()))?;
        }
        say!("{}: {size} bytes", self.tree.display());
        fs::remove_dir_all(&fresh).context("can't remove what is in the tree now")
    }
}

/// libFuzzer names inputs by their SHA-1.
fn is_digest(file: &Path) -> bool {
    file.file_name()
        .is_some_and(|name| name.len() == 40 && name.as_encoded_bytes().iter().all(u8::is_ascii_hexdigit))
}

fn files(directory: &Path) -> Result<Vec<PathBuf>> {
    let entries = fs::read_dir(directory).with_context(|| format!("can't list {}", directory.display()))?;
    Ok(entries.flatten().map(|entry| entry.path()).collect())
}

fn size(directory: &Path) -> Result<u64> {
    Ok(files(directory)?.iter().filter_map(|file| file.metadata().ok()).map(|metadata| metadata.len()).sum())
}
