//! The node agent of nodemesh: takes the pods of its node into the mesh.
//!
//! Reading order:
//! 1. [`keeper`]: the privileged process. It loads eBPF, holds pods' namespaces and listeners, and keeps a
//!    proxy running. [`sys`] has its system calls.
//! 2. [`run`]: the proxy's process, which puts everything else together; [`config`]: its settings;
//!    [`keeper_client`]: its end of the talk with the keeper; [`log`](mod@log): the log of both.
//! 3. [`pods`] and [`enrol`]: the node's pods, and taking them into the mesh; [`cni`]: the plugin that has
//!    pods wait for that; [`egress`]: pods that may not leave the mesh; [`cluster`]: events and questions to
//!    Kubernetes; [`annotation`]: what Istio is told of pods.
//! 4. [`mesh_proxy`]: the data path, a crate of its own; [`node`]: its surroundings on a node; [`direct`]:
//!    connections without it.
//! 5. [`admin`], [`check`]: what the agent tells about itself and its node.
#![deny(unsafe_code)]

pub mod admin;
pub mod annotation;
pub mod check;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod direct;
pub mod egress;
pub mod enrol;
pub mod keeper;
pub mod keeper_client;
pub mod log;
pub mod node;
pub mod pods;
pub mod run;
pub mod sys;
