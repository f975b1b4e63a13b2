//! Embeds the eBPF object that `cargo xtask build-ebpf` makes.
//!
//! Without one the workspace still builds and its tests that need no kernel still run; the agent then refuses
//! to start with a sentence that says what to do.

use std::path::{Path, PathBuf};
use std::{env, fs, io};

fn main() -> io::Result<()> {
    println!("cargo::rerun-if-env-changed=MESH_EBPF_OBJECT");
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or(io::ErrorKind::NotFound)?);
    let embedded = out.join("mesh-ebpf.o");
    let object = object_path(&out);
    println!("cargo::rerun-if-changed={}", object.display());
    if object.exists() {
        fs::copy(&object, &embedded)?;
    } else {
        println!(
            "cargo::warning=no eBPF object at {}: this mesh-agent will not run; use `cargo xtask build-ebpf`",
            object.display()
        );
        fs::write(&embedded, [])?;
    }
    Ok(())
}

/// `$MESH_EBPF_OBJECT`, or `ebpf/mesh-ebpf.o` in the target directory, which is found from `OUT_DIR`
/// (`<target>/[<triple>/]<profile>/build/<package>/out`).
fn object_path(out: &Path) -> PathBuf {
    if let Some(path) = env::var_os("MESH_EBPF_OBJECT") {
        return path.into();
    }
    let relative = Path::new("ebpf/mesh-ebpf.o");
    let candidates: Vec<_> = out.ancestors().skip(4).take(2).map(|target| target.join(relative)).collect();
    let fallback = candidates.first().cloned().unwrap_or_else(|| relative.into());
    candidates.into_iter().find(|path| path.exists()).unwrap_or(fallback)
}
