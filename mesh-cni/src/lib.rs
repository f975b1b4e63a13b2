//! The chained CNI plugin `nodemesh-cni`, and how it gets onto a node.
//!
//! A runtime calls the plugins of its network list when a pod's network namespace is there and no program
//! runs in it yet. Ours is the last: where the pod is to be in the mesh it waits until the agent has enrolled
//! that namespace, and fails otherwise, so that the kubelet tries again. For every other pod it does nothing.
//!
//! Reading order: [`call`] is what the runtime says, [`state`] what the agent last knew, [`agent`] the
//! waiting, [`plugin`] puts these together. [`conflist`] and [`install`] are for the agent, which puts the
//! plugin in place and takes it away.
#![forbid(unsafe_code)]

pub mod agent;
pub mod call;
pub mod conflist;
pub mod install;
pub mod plugin;
pub mod state;

/// The plugin's name in a network list, and of its file among the plugins.
pub const TYPE: &str = "nodemesh-cni";

/// File in the agent's run directory: the socket that the plugin asks at.
pub const SOCKET: &str = "cni.sock";

/// File in the agent's state directory: what the plugin decides by.
pub const STATE: &str = "cni.json";
