//! The CNI plugin `nodemesh-cni` on this node: a pod that is to be in the mesh does not start before it is
//! enrolled.
//!
//! 1. [`InstallArgs`] puts it onto the node before the agent starts, and [`ConflistRepair`] keeps it there
//!    when the primary CNI plugin writes its network list anew. [`remove_plugin`] takes it away.
//! 2. [`publish_enrollment_to_plugin`] has on disk, for the plugin, who is to be in the mesh.
//! 3. `plugin_server` is the keeper's part: where the plugin asks it, and what writes that to disk.

pub(crate) mod plugin_server;

mod conflist_repair;
mod install;
mod publish_enrollment_to_plugin;

pub use conflist_repair::ConflistRepair;
pub use install::{InstallArgs, InstallError, remove_plugin};
pub use publish_enrollment_to_plugin::publish_enrollment_to_plugin;
