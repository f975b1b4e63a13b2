//! The node agent of nodemesh: takes the pods of its node into the mesh.
//!
//! Reading order:
//! 1. [`run`]: how the rooms are put together, and [`config`], what can be set.
//! 2. [`sys`]: the privileged seam. eBPF, network namespaces, sockets in them.
//! 3. [`pods`] and [`enrol`]: which pods there are, and taking them in; [`cluster`], what Kubernetes is told and asked.
//! 4. [`xds`] and [`certs`]: what the control plane tells, and who the pods are.
//! 5. [`proxy`]: the data path, a room for each step of a connection.
//! 6. [`telemetry`], [`admin`], [`check`]: what the agent tells.
#![deny(unsafe_code)]

pub mod admin;
pub mod certs;
pub mod check;
pub mod cluster;
pub mod config;
pub mod direct;
pub mod enrol;
pub mod pods;
pub mod proxy;
pub mod run;
pub mod sys;
pub mod telemetry;
pub mod xds;
