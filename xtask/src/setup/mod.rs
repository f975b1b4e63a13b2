//! `cargo xtask setup`: makes this machine able to build, test and show the mesh.
//!
//! What is there is left alone, so a second run installs nothing and needs no network.

mod apt;
pub mod bpf_linker;
pub mod bpf_toolchain;
mod programs;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use bpf_toolchain::BpfToolchain;
use programs::Program;

use crate::command::CommandExt;

/// Finds or installs everything, saying for each item what it is for.
pub fn run() -> Result<()> {
    let missing = Missing::on_this_machine();
    if !missing.packages.is_empty() {
        missing.install_packages()?;
    }
    let toolchain = BpfToolchain::detect().context("no BPF toolchain")?;
    match toolchain.linker() {
        Some(path) => report("found", "bpf-linker", &format!("{}: {}", bpf_linker::PURPOSE, path.display())),
        None => install_bpf_linker(&toolchain)?,
    }
    Ok(())
}

/// Finds or installs what a cluster needs beside that; says nothing where it is all there.
pub fn cluster() -> Result<()> {
    let programs: Vec<_> = programs::CLUSTER.iter().filter(|program| !program.is_there()).collect();
    if programs.is_empty() {
        return Ok(());
    }
    let packages = programs.iter().flat_map(|program| program.packages).copied().collect();
    Missing { programs, bpf_toolchain: false, packages }.install_packages()
}

/// Finds or installs a C++ compiler; says nothing where there is one.
pub fn cplusplus() -> Result<()> {
    if programs::CPLUSPLUS.is_there() {
        return Ok(());
    }
    let packages = programs::CPLUSPLUS.packages.iter().copied().collect();
    Missing { programs: vec![&programs::CPLUSPLUS], bpf_toolchain: false, packages }.install_packages()
}

/// Finds or installs what makes Python environments, which Debian has apart from Python.
pub fn python_venv() -> Result<()> {
    if Command::new("python3").args(["-c", "import ensurepip, venv"]).outcome().is_ok_and(|out| out.success) {
        return Ok(());
    }
    let programs = vec![&programs::PYTHON_VENV];
    let packages = programs::PYTHON_VENV.packages.iter().copied().collect();
    Missing { programs, bpf_toolchain: false, packages }.install_packages()
}

/// Installs what lacks of `wanted`, each a file and Debian's package of it; says nothing where all are there.
pub fn files(wanted: &[(&str, &str)]) -> Result<()> {
    let packages: Vec<_> =
        wanted.iter().filter(|(path, _)| !Path::new(path).exists()).map(|(_, package)| *package).collect();
    if packages.is_empty() {
        return Ok(());
    }
    ensure!(
        is_debian_like() && is_root(),
        "these packages of Debian are needed, and root to install them: {}",
        packages.join(" ")
    );
    apt::install(&packages)
}

/// What apt has to bring.
struct Missing {
    programs: Vec<&'static Program>,
    bpf_toolchain: bool,
    packages: BTreeSet<&'static str>,
}

impl Missing {
    fn on_this_machine() -> Self {
        let (found, programs): (Vec<_>, Vec<_>) =
            programs::ALL.iter().partition(|program| program.is_there());
        for program in found {
            report("found", program.name, program.purpose);
        }
        let mut packages: BTreeSet<_> =
            programs.iter().flat_map(|program| program.packages).copied().collect();
        let toolchain = BpfToolchain::detect();
        match &toolchain {
            Some(toolchain) => {
                report("found", "BPF toolchain", &format!("{}: {toolchain}", bpf_toolchain::PURPOSE));
                if toolchain.linker().is_none() && toolchain.is_debian() && !bpf_linker::llvm_is_there() {
                    packages.insert(bpf_linker::LLVM_PACKAGE);
                }
            }
            None => packages.extend(bpf_toolchain::PACKAGES),
        }
        Self { programs, bpf_toolchain: toolchain.is_none(), packages }
    }

    fn install_packages(&self) -> Result<()> {
        for (name, purpose) in self.items() {
            report("missing", name, purpose);
        }
        let packages: Vec<_> = self.packages.iter().copied().collect();
        if !is_debian_like() {
            bail!("{}", self.by_hand());
        }
        if !is_root() {
            bail!("installing needs root. Run: sudo apt-get install {}", packages.join(" "));
        }
        apt::install(&packages)?;
        self.confirm()
    }

    /// Packages may install well and still lack what was wanted of them: another LLVM, a renamed program.
    fn confirm(&self) -> Result<()> {
        if self.bpf_toolchain {
            bpf_toolchain::confirm()?;
        }
        if let Some(program) = self.programs.iter().find(|program| !program.is_there()) {
            bail!(
                "{} is still missing after installing {}: look at the package",
                program.name,
                program.packages.join(", ")
            );
        }
        for (name, purpose) in self.items() {
            report("installed", name, purpose);
        }
        Ok(())
    }

    fn items(&self) -> Vec<(&'static str, &'static str)> {
        let toolchain = self.bpf_toolchain.then_some(("BPF toolchain", bpf_toolchain::PURPOSE));
        self.programs.iter().map(|program| (program.name, program.purpose)).chain(toolchain).collect()
    }

    /// What somebody on a distribution without apt has to do.
    fn by_hand(&self) -> String {
        let mut text = String::from("this is no Debian-like system, so install these yourself:");
        for program in &self.programs {
            text.extend(["\n  ", program.name, ": ", program.purpose]);
        }
        if self.bpf_toolchain {
            text.push_str(bpf_toolchain::BY_HAND);
        }
        text
    }
}

fn install_bpf_linker(toolchain: &BpfToolchain) -> Result<()> {
    report("missing", "bpf-linker", bpf_linker::PURPOSE);
    ensure!(toolchain.is_debian(), "{toolchain} needs a bpf-linker. Run: cargo install bpf-linker");
    let path = bpf_linker::install()?;
    report("installed", "bpf-linker", &format!("{}: {}", bpf_linker::PURPOSE, path.display()));
    Ok(())
}

fn report(state: &str, name: &str, purpose: &str) {
    say!("{state:<9}  {name:<14}  {purpose}");
}

fn is_debian_like() -> bool {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    names_debian(&release)
}

/// Whether `ID` or `ID_LIKE` of an os-release(5) file says Debian.
fn names_debian(os_release: &str) -> bool {
    os_release
        .lines()
        .filter_map(|line| line.split_once('='))
        .filter(|(key, _)| matches!(*key, "ID" | "ID_LIKE"))
        .flat_map(|(_, value)| value.trim_matches(['"', '\'']).split_whitespace())
        .any(|id| id == "debian")
}

/// Whether this process may install packages and make namespaces.
pub fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|metadata| metadata.uid() == 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_debian_and_its_children_from_others() {
        assert!(names_debian("PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\n"));
        assert!(names_debian("ID=linuxmint\nID_LIKE=\"ubuntu debian\"\n"));
        assert!(!names_debian("ID=fedora\nNAME=\"not debian\"\n"));
        assert!(!names_debian(""));
    }
}
