//! The CNI plugin `nodemesh-cni` on this node: a pod that is to be in the mesh does not start before it is
//! enrolled.
//!
//! 1. [`Install`] puts it onto the node before the agent starts, and [`Follower`] keeps it there when the
//!    primary CNI plugin writes its network list anew. [`remove`] takes it away.
//! 2. [`tell`] has on disk, for the plugin, who is to be in the mesh.
//! 3. `server` is where the plugin asks the keeper.

pub(crate) mod server;

mod follow;
mod install;
mod plugin_config;

pub use follow::Follower;
pub use install::{Failure, Install, remove};
pub use plugin_config::tell;
