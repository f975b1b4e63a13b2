//! What the lab needs of the machine: cgroups, network namespaces, links, packet rules, processes in
//! namespaces.

pub mod cgroup;
mod error;
pub mod files;
pub mod limits;
pub mod mounts;
pub mod netns;
pub mod program;
pub mod sweep;

pub use error::{During, HostError};
