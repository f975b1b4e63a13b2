//! End-to-end tests of nodemesh on a real Kubernetes cluster: what they share.
//!
//! Everything goes through kubectl, helm and the cluster's own programs, as a user would do it. `docs/e2e.md`
//! tells how the tests are run.
#![forbid(unsafe_code)]

pub mod audit;
mod capture;
pub mod cluster;
pub mod kubectl;
pub mod mesh;
pub mod meshctl;
mod scope;
mod traffic;
mod wait;
pub mod workload;

pub use capture::Capture;
pub use scope::{Enrolled, Scope};
pub use traffic::{Tally, Traffic};
pub use wait::{SOON, eventually, never_within};
