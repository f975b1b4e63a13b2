//! What goes into each image, and how a container of it starts.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;

use super::spdx::Material;
use super::tree::Tree;
use super::{content, crates, debian, libraries, samples};
use crate::oci::Config;
use crate::workspace::Workspace;

/// Where images of this project are said to be; there need be no such registry.
const REGISTRY: &str = "nodemesh.io";
/// The tag of every image.
const VERSION: &str = env!("CARGO_PKG_VERSION");
/// A user that owns nothing; by number, so that Kubernetes can check `runAsNonRoot`.
const NONROOT: &str = "65532:65532";

/// One image of this project.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Name {
    /// The agent of a node
    MeshAgent,
    /// The control plane
    MeshControl,
    /// What the samples and end-to-end tests run
    Samples,
}

impl Name {
    /// All that there are.
    pub const ALL: &[Self] = &[Self::MeshAgent, Self::MeshControl, Self::Samples];

    /// The program of this workspace that is in it.
    pub fn program(self) -> Option<&'static str> {
        match self {
            Self::MeshAgent => Some("mesh-agent"),
            Self::MeshControl => Some("mesh-control"),
            Self::Samples => None,
        }
    }

    /// What pods call it.
    pub fn reference(self) -> String {
        format!("{REGISTRY}/{self}:{VERSION}")
    }

    /// Puts its content together.
    pub fn cook(self, workspace: &Workspace) -> Result<Image> {
        let mut tree = Tree::new();
        content::accounts(&mut tree)?;
        let config = match self.program() {
            Some(program) => {
                let built = workspace.program(program);
                ensure!(built.exists(), "{} is not built", built.display());
                tree.take_stripped(&built, &format!("usr/bin/{program}"))?;
                if self == Self::MeshAgent {
                    take_plugin(workspace, &mut tree)?;
                }
                self.start_of(program)
            }
            None => samples::fill(&mut tree)?,
        };
        let labels = labels(self);
        Ok(Image { name: self, tree, config: Config { labels, ..config } })
    }

    fn start_of(self, program: &str) -> Config {
        Config {
            entrypoint: vec![format!("/usr/bin/{program}")],
            arguments: vec!["run".into()],
            // The agent's capabilities work for root only; the pod's security context takes away the rest.
            user: if self == Self::MeshAgent { "0:0" } else { NONROOT }.into(),
            ..Config::default()
        }
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::MeshAgent => "mesh-agent",
            Self::MeshControl => "mesh-control",
            Self::Samples => "samples",
        })
    }
}

/// The CNI plugin, which the agent's image brings to the node. What it would need of an image it can't have
/// there.
fn take_plugin(workspace: &Workspace, tree: &mut Tree) -> Result<()> {
    let plugin = workspace.plugin();
    ensure!(plugin.exists(), "{} is not built", plugin.display());
    ensure!(libraries::of(&plugin)?.is_empty(), "{} is not static", plugin.display());
    tree.take_stripped(&plugin, "usr/bin/mesh-cni")
}

fn labels(name: Name) -> BTreeMap<String, String> {
    let label = |key: &str, value: &str| (format!("org.opencontainers.image.{key}"), value.to_owned());
    BTreeMap::from([
        label("title", &name.to_string()),
        label("version", VERSION),
        label("source", env!("CARGO_PKG_REPOSITORY")),
    ])
}

/// An image that is not yet written.
pub struct Image {
    name: Name,
    /// Its files.
    pub tree: Tree,
    /// How it starts.
    pub config: Config,
}

impl Image {
    /// Everything that others made of what is in it.
    pub fn materials(&self, workspace: &Workspace) -> Result<Vec<Material>> {
        let taken: Vec<PathBuf> = self.tree.taken().map(Into::into).collect();
        let mut materials = debian::materials(&taken).context("can't tell which packages files are of")?;
        if let Some(program) = self.name.program() {
            materials.extend(crates::materials(workspace, program)?);
        }
        if self.name == Name::MeshAgent {
            materials.extend(crates::of_ebpf(workspace)?);
        }
        materials.sort();
        materials.dedup();
        Ok(materials)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_those_of_the_command_line() {
        for name in Name::ALL {
            assert_eq!(name.to_possible_value().unwrap().get_name(), name.to_string());
            assert_eq!(name.reference(), format!("nodemesh.io/{name}:{VERSION}"));
        }
    }

    #[test]
    fn only_the_agent_is_root() {
        assert_eq!(Name::MeshAgent.start_of("mesh-agent").user, "0:0");
        assert_eq!(Name::MeshControl.start_of("mesh-control").user, "65532:65532");
    }
}
