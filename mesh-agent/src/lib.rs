//! The node agent of nodemesh: takes the pods of its node into the mesh.
//!
//! Reading order:
//! 1. [`keeper`]: the privileged process. It loads eBPF, holds pods' namespaces and listeners, and keeps a
//!    proxy running. [`sys`] has its system calls.
//! 2. [`proxy_main`]: the proxy's process, which puts everything else together; [`config`]: its settings;
//!    [`keeper_client`]: its end of the talk with the keeper; [`log_setup`]: the log of both;
//!    [`panic_abort`]: its end on a panic.
//! 3. [`pods`] and [`enrol`]: the node's pods, and taking them into the mesh; [`cni`]: the plugin that has
//!    pods wait for that; [`strict_egress`]: pods that may not leave the mesh; [`connect_to_kubernetes`]: the
//!    client of Kubernetes; [`not_enrolled_events`]: its events about pods that are not enrolled
//!    ([`truncate_event_note`]: how long their text may be); [`uninstall_watch`]: whether the mesh is being
//!    uninstalled; [`istio_annotation`]: what Istio is told of pods.
//! 4. [`mesh_proxy`]: the data path, a crate of its own; [`node_surroundings`]: its surroundings on a node;
//!    [`direct`]: connections without it.
//! 5. [`admin`], [`node_check`]: what the agent tells about itself and its node.
#![deny(unsafe_code)]

pub mod admin;
pub mod cni;
pub mod config;
pub mod connect_to_kubernetes;
pub mod direct;
pub mod enrol;
pub mod istio_annotation;
pub mod keeper;
pub mod keeper_client;
pub mod log_setup;
pub mod node_check;
pub mod node_surroundings;
pub mod not_enrolled_events;
pub mod panic_abort;
pub mod pods;
pub mod proxy_main;
pub mod strict_egress;
pub mod sys;
pub mod truncate_event_note;
pub mod uninstall_watch;
