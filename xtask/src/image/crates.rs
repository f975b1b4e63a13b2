//! Which crates are compiled into a program.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result};
use serde::Deserialize;

use super::spdx::Material;
use crate::command::CommandExt;
use crate::workspace::Workspace;

/// Rust's own library and the crates of `program`, of which nothing is only for building or testing.
pub fn materials(workspace: &Workspace, program: &str) -> Result<Vec<Material>> {
    let mut materials = of_manifest(workspace, &workspace.root().join("Cargo.toml"), program)?;
    let version = Command::new("rustc").arg("--version").current_dir(workspace.root()).captured()?;
    let version = version.split_whitespace().nth(1).context("rustc tells its version")?;
    materials.push(Material {
        name: "rust".into(),
        version: version.into(),
        licence: Some("MIT OR Apache-2.0".into()),
        purl: format!("pkg:generic/rust@{version}"),
    });
    Ok(materials)
}

/// The crates of the eBPF programs, which the agent has in it.
pub fn of_ebpf(workspace: &Workspace) -> Result<Vec<Material>> {
    of_manifest(workspace, &workspace.root().join("mesh-ebpf/Cargo.toml"), "mesh-ebpf")
}

fn of_manifest(workspace: &Workspace, manifest: &Path, program: &str) -> Result<Vec<Material>> {
    let answer = workspace
        .cargo()
        .args(["metadata", "--format-version=1", "--locked", "--manifest-path"])
        .arg(manifest)
        .args(["--filter-platform", &format!("{}-unknown-linux-gnu", std::env::consts::ARCH)])
        .captured()?;
    let metadata = serde_json::from_str(&answer).context("cargo metadata answered what is not its JSON")?;
    compiled_into(&metadata, program)
}

#[derive(Deserialize)]
struct Metadata {
    packages: Vec<Package>,
    resolve: Resolve,
}

#[derive(Deserialize)]
struct Package {
    id: String,
    name: String,
    version: String,
    license: Option<String>,
    source: Option<String>,
    targets: Vec<Target>,
}

#[derive(Deserialize)]
struct Target {
    kind: Vec<String>,
}

#[derive(Deserialize)]
struct Resolve {
    nodes: Vec<Node>,
}

#[derive(Deserialize)]
struct Node {
    id: String,
    deps: Vec<Dependency>,
}

#[derive(Deserialize)]
struct Dependency {
    pkg: String,
    dep_kinds: Vec<DependencyKind>,
}

#[derive(Deserialize)]
struct DependencyKind {
    kind: Option<String>,
}

/// Follows what is neither for building nor for testing, and no macro, from `program` on.
fn compiled_into(metadata: &Metadata, program: &str) -> Result<Vec<Material>> {
    let packages: BTreeMap<_, _> = metadata.packages.iter().map(|it| (it.id.as_str(), it)).collect();
    let nodes: BTreeMap<_, _> = metadata.resolve.nodes.iter().map(|it| (it.id.as_str(), it)).collect();
    let own = metadata.packages.iter().find(|it| it.name == program && it.source.is_none());
    let mut open = vec![own.with_context(|| format!("no package {program}"))?.id.as_str()];
    let mut seen = BTreeSet::new();
    let mut materials = Vec::new();
    while let Some(id) = open.pop() {
        let package = packages.get(id).with_context(|| format!("cargo metadata lacks {id}"))?;
        if package.is_macro() || !seen.insert(id) {
            continue;
        }
        materials.push(package.material());
        let node = nodes.get(id).with_context(|| format!("cargo metadata does not resolve {id}"))?;
        open.extend(node.deps.iter().filter(|it| it.is_normal()).map(|it| it.pkg.as_str()));
    }
    Ok(materials)
}

impl Package {
    fn is_macro(&self) -> bool {
        self.targets.iter().any(|target| target.kind.iter().any(|kind| kind == "proc-macro"))
    }

    fn material(&self) -> Material {
        Material {
            name: self.name.clone(),
            version: self.version.clone(),
            // The slash is how licences were listed before SPDX.
            licence: self.license.as_ref().map(|licence| licence.replace('/', " OR ")),
            purl: format!("pkg:cargo/{}@{}", self.name, self.version.replace('+', "%2B")),
        }
    }
}

impl Dependency {
    fn is_normal(&self) -> bool {
        self.dep_kinds.iter().any(|it| it.kind.is_none())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn package(name: &str, kind: &str) -> serde_json::Value {
        let targets = json!([{ "kind": [kind] }]);
        json!({ "id": name, "name": name, "version": "1.0.0", "license": "MIT/Apache-2.0", "targets": targets })
    }

    #[test]
    fn takes_what_is_compiled_in() {
        let dep = |name: &str, kind: Option<&str>| json!({ "pkg": name, "dep_kinds": [{ "kind": kind }] });
        let none: [u8; 0] = [];
        let metadata = json!({
            "packages": [
                package("program", "bin"), package("direct", "lib"), package("deep", "lib"),
                package("derive", "proc-macro"), package("tests", "lib"), package("builds", "lib"),
            ],
            "resolve": { "nodes": [
                { "id": "program", "deps": [
                    dep("direct", None), dep("derive", None), dep("tests", Some("dev")), dep("builds", Some("build")),
                ] },
                { "id": "direct", "deps": [dep("deep", None)] },
                { "id": "deep", "deps": none },
            ] },
        });
        let materials = compiled_into(&serde_json::from_value(metadata).unwrap(), "program").unwrap();
        let mut names: Vec<_> = materials.iter().map(|it| it.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["deep", "direct", "program"]);
        assert_eq!(materials[0].licence.as_deref(), Some("MIT OR Apache-2.0"));
        assert_eq!(materials[0].purl, "pkg:cargo/program@1.0.0");
    }
}
