//! The node agent of nodemesh: takes the pods of its node into the mesh.
//!
//! Reading order:
//! 1. [`keeper`]: the privileged process. It loads eBPF, holds pods' namespaces and listeners, and keeps a
//!    proxy running. [`sys`] is what it works with.
//! 2. [`run`]: the proxy, how its rooms are put together, and [`config`], what can be set; [`kept`], what it
//!    has from the keeper; [`log`](mod@log), which both write.
//! 3. [`pods`] and [`enrol`]: which pods there are, and taking them in; [`cni`], the plugin that has them
//!    wait for it; [`egress`], which of them may not leave the mesh; [`cluster`], what Kubernetes is told and
//!    asked; [`redirection`], what Istio is.
//! 4. [`xds`] and [`certs`]: what the control plane tells, and who the pods are; [`legacy`], what of it a
//!    next proxy gets.
//! 5. [`proxy`]: the data path, a room for each step of a connection; [`node`], what it knows of its node;
//!    [`direct`], connections that go without it.
//! 6. [`telemetry`], [`admin`], [`check`], [`liveness`]: what the agent tells.
#![deny(unsafe_code)]

pub mod admin;
pub mod certs;
pub mod check;
pub mod cluster;
pub mod cni;
pub mod config;
pub mod direct;
pub mod egress;
pub mod enrol;
pub mod keeper;
pub mod kept;
pub mod legacy;
pub mod liveness;
pub mod log;
pub mod node;
mod pause;
pub mod pods;
pub mod proxy;
pub mod redirection;
pub mod run;
mod stamp;
pub mod sys;
pub mod telemetry;
pub mod xds;
