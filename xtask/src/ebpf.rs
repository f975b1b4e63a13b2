//! `cargo xtask build-ebpf`: compiles `mesh-ebpf` into the object that the agent embeds.

use std::collections::hash_map::DefaultHasher;
use std::env::consts::ARCH;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

use crate::command::CommandExt;
use crate::setup::bpf_toolchain::BpfToolchain;
use crate::workspace::Workspace;

/// Builds `<target>/ebpf/mesh-ebpf.o`, where the agent's build script looks, unless it is up to date.
pub fn build(workspace: &Workspace) -> Result<()> {
    let toolchain = BpfToolchain::detect().context("no Rust toolchain for BPF: run `cargo xtask setup`")?;
    let linker = toolchain.linker().context("no bpf-linker: run `cargo xtask setup`")?;
    let output = Output::of(workspace);
    let stamp = stamp(workspace, &toolchain, &linker)?;
    if output.is_made_from(&stamp) {
        remark!("eBPF object up to date, built with {toolchain}");
        return Ok(());
    }
    remark!("building the eBPF object with {toolchain}");
    compile(workspace, &toolchain, &linker, &output)?;
    output.publish(&stamp)
}

fn compile(workspace: &Workspace, toolchain: &BpfToolchain, linker: &Path, output: &Output) -> Result<()> {
    toolchain
        .cargo()
        .args(["--release", "--locked", "--target-dir"])
        .arg(&output.build_directory)
        .current_dir(workspace.root().join("mesh-ebpf"))
        .env("CARGO_ENCODED_RUSTFLAGS", rustflags().join("\x1f"))
        .env("CARGO_TARGET_BPFEL_UNKNOWN_NONE_LINKER", linker)
        .checked()
}

/// Full debug information is what `--btf` makes BTF of; aya's bindings choose register names by the
/// architecture.
///
/// The linker's own way with memory intrinsics, which is for packets that are read in place, makes a call of
/// each `memset`, and that goes byte by byte.
fn rustflags() -> [String; 4] {
    [
        "-Cdebuginfo=2".into(),
        "-Clink-arg=--btf".into(),
        "-Clink-arg=--disable-expand-memcpy-in-order".into(),
        format!("--cfg=bpf_target_arch=\"{ARCH}\""),
    ]
}

/// Where the build leaves things.
struct Output {
    /// A target directory of its own: another cargo would invalidate the workspace's.
    build_directory: PathBuf,
    object: PathBuf,
    stamp: PathBuf,
}

impl Output {
    fn of(workspace: &Workspace) -> Self {
        let directory = workspace.target().join("ebpf");
        Self {
            build_directory: directory.join("build"),
            object: directory.join("mesh-ebpf.o"),
            stamp: directory.join("mesh-ebpf.stamp"),
        }
    }

    fn is_made_from(&self, stamp: &str) -> bool {
        self.object.exists() && fs::read_to_string(&self.stamp).is_ok_and(|last| last == stamp)
    }

    /// Puts the object where the agent finds it. An unchanged one stays, so the agent isn't built anew.
    fn publish(&self, stamp: &str) -> Result<()> {
        let built = self.build_directory.join("bpfel-unknown-none/release/mesh-ebpf");
        let bytes = fs::read(&built).with_context(|| format!("can't read {}", built.display()))?;
        ensure!(bytes.starts_with(b"\x7fELF"), "{} is no ELF object: look at bpf-linker", built.display());
        if fs::read(&self.object).map_or(true, |last| last != bytes) {
            write_atomically(&self.object, &bytes)?;
        }
        write_atomically(&self.stamp, stamp.as_bytes())?;
        remark!("eBPF object: {} ({} kB)", self.object.display(), bytes.len() / 1000);
        Ok(())
    }
}

fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let fresh = path.with_extension(format!("{}.tmp", std::process::id()));
    fs::write(&fresh, bytes)
        .and_then(|()| fs::rename(&fresh, path))
        .with_context(|| format!("can't write {}", path.display()))
}

/// What the object depends on, as one line of text: sources, toolchain, linker and flags.
fn stamp(workspace: &Workspace, toolchain: &BpfToolchain, linker: &Path) -> Result<String> {
    let mut hasher = DefaultHasher::new();
    rustflags().hash(&mut hasher);
    for directory in ["mesh-ebpf", "mesh-common"] {
        let directory = workspace.root().join(directory);
        for path in sources(&directory)? {
            path.strip_prefix(&directory)?.hash(&mut hasher);
            fs::read(&path).with_context(|| format!("can't read {}", path.display()))?.hash(&mut hasher);
        }
    }
    Ok(format!("{:016x} {toolchain} {}\n", hasher.finish(), linker.display()))
}

/// Every file below `directory` but what cargo built there, sorted.
fn sources(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let entries = fs::read_dir(directory).with_context(|| format!("can't read {}", directory.display()))?;
    for entry in entries {
        let entry = entry?;
        match entry.file_type()? {
            kind if kind.is_dir() && entry.file_name() != "target" => files.extend(sources(&entry.path())?),
            kind if kind.is_file() => files.push(entry.path()),
            _ => {}
        }
    }
    files.sort();
    Ok(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_stamp_follows_the_sources_the_toolchain_and_the_linker() {
        let workspace = Workspace::locate().unwrap();
        let stamp = |version: &str, linker: &str| {
            stamp(&workspace, &BpfToolchain::Debian { version: version.into() }, Path::new(linker)).unwrap()
        };
        assert_eq!(stamp("1", "/a"), stamp("1", "/a"));
        assert_ne!(stamp("1", "/a"), stamp("2", "/a"));
        assert_ne!(stamp("1", "/a"), stamp("1", "/b"));
    }

    #[test]
    fn a_file_below_target_is_no_source() {
        let root = std::env::temp_dir().join(format!("nodemesh-sources-{}", std::process::id()));
        fs::create_dir_all(root.join("target/release")).unwrap();
        fs::create_dir_all(root.join("src")).unwrap();
        for file in ["target/release/out", "src/main.rs", "Cargo.toml"] {
            fs::write(root.join(file), "").unwrap();
        }
        let found = sources(&root).unwrap();
        fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [root.join("Cargo.toml"), root.join("src/main.rs")]);
    }
}
