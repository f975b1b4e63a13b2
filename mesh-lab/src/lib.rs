//! A cluster on one machine: nodes and pods as network namespaces, containers as ordinary processes.
//!
//! The lab does what a kubelet and the controllers around it do for a pod, and no more: it gives it
//! namespaces, a cgroup, addresses and a name, runs its containers' commands, probes them, and keeps Services
//! pointing at the ready ones. With it run the mesh's own programs, one `mesh-agent` per node and one
//! `mesh-control`.
//!
//! Reading order: [`layout`] (where everything of a lab is found), [`api`] (what the command line asks the
//! daemon for), `daemon` (one process per lab), `cluster` (the objects and the controllers over them), `node`
//! (a thread in a node's network namespace: pods, probes, names, Services, the agent), `host` (namespaces,
//! cgroups, links). [`Lab`] is the same for tests: up, apply, exec, and down when dropped.
#![forbid(unsafe_code)]

pub mod api;
pub mod client;
pub mod layout;

#[doc(hidden)]
pub mod cli;

mod cluster;
mod daemon;
mod enter;
mod harness;
mod host;
pub mod launch;
mod mesh;
mod node;
mod random;

pub use harness::{Lab, LabError, Options, Program, poll};
