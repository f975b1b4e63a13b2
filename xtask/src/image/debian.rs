//! Which of Debian's packages files come from.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result};

use super::spdx::Material;
use crate::command::CommandExt;

/// The packages that own `files`, given by real paths. A file that no package owns is left out: this
/// checkout's own.
pub fn materials(files: &[PathBuf]) -> Result<Vec<Material>> {
    if files.is_empty() {
        return Ok(Vec::new());
    }
    // Some packages still name `/lib/…` what is `/usr/lib/…` since these became one.
    let names = files.iter().flat_map(|file| [Some(file.clone()), without_usr(file)]).flatten();
    // It fails if one path is unknown, but tells of all others.
    let answer = Command::new("dpkg-query").arg("--search").args(names).outcome()?;
    let packages = owners(&answer.stdout);
    Command::new("dpkg-query")
        .args(["--show", "--showformat=${Package}\\t${Version}\\t${Architecture}\\n"])
        .args(packages)
        .captured()?
        .lines()
        .map(|line| material(line).with_context(|| format!("dpkg-query said {line:?}")))
        .collect()
}

fn without_usr(file: &Path) -> Option<PathBuf> {
    Some(Path::new("/").join(file.strip_prefix("/usr").ok()?))
}

/// Lines are `package[:architecture][, package…]: path`.
fn owners(search: &str) -> BTreeSet<String> {
    let lines = search.lines().filter(|line| !line.starts_with("diversion by "));
    let lists = lines.filter_map(|line| line.split_once(": /").map(|(packages, _)| packages));
    lists.flat_map(|packages| packages.split(", ")).map(ToOwned::to_owned).collect()
}

fn material(line: &str) -> Option<Material> {
    let mut fields = line.split('\t');
    let (name, version, architecture) = (fields.next()?, fields.next()?, fields.next()?);
    Some(Material {
        name: name.into(),
        version: version.into(),
        // Debian's copyright files are not made of SPDX expressions.
        licence: None,
        purl: format!("pkg:deb/debian/{name}@{}?arch={architecture}", version.replace('+', "%2B")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn owners_are_told_apart_from_paths() {
        let text = "libc6:amd64: /lib/x86_64-linux-gnu/libc.so.6\n\
            diversion by dash from: /bin/sh\n\
            a, b: /usr/share/both\n";
        let expected = ["a", "b", "libc6:amd64"].map(String::from);
        assert_eq!(owners(text), expected.into());
    }

    #[test]
    fn a_package_has_a_package_url() {
        let material = material("libc6\t2.36-9+deb12u1\tamd64").unwrap();
        assert_eq!(material.purl, "pkg:deb/debian/libc6@2.36-9%2Bdeb12u1?arch=amd64");
        assert_eq!(material.licence, None);
    }
}
