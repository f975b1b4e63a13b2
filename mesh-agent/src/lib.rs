//! The node agent of nodemesh: takes the pods of its node into the mesh.
//!
//! Reading order:
//! 1. [`keeper`]: the privileged process. It loads eBPF, holds pods' namespaces and listeners, and keeps a
//!    proxy running. [`sys`] is what it works with.
//! 2. [`run`]: the proxy, how its rooms are put together, and [`config`], what can be set; [`keeper_client`],
//!    what it has from the keeper; [`log`](mod@log), which both write.
//! 3. [`pods`] and [`enrol`]: which pods there are, and taking them in; [`cni`], the plugin that has them
//!    wait for it; [`egress`], which of them may not leave the mesh; [`cluster`], what Kubernetes is told and
//!    asked; [`annotation`], what Istio is.
//! 4. [`mesh_proxy`]: the data path, a crate of its own; [`node`], what it knows of its node; [`direct`],
//!    connections that go without it.
//! 5. [`admin`], [`check`]: what the agent tells.
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
