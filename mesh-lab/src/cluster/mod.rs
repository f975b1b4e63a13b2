//! The objects of a lab and the controllers over them: what an API server and a controller manager do.
//!
//! Reading order: `store`, then `apply` and `delete` (what users do), then the controllers `deployments` and
//! `endpoints`, each a pure function from what is to what should be, run whenever something changed.

mod apply;
mod complete;
mod controllers;
mod delete;
mod deployments;
mod endpoints;
mod placement;
mod store;

pub use apply::apply;
pub use complete::machine_objects;
pub use controllers::{once as run_controllers_once, run as run_controllers};
pub use delete::{delete, one as delete_one};
pub use placement::Placement;
pub use store::{Store, StoreError, Stored};

use mesh_api::manifest::{Kind, ObjectKey};

/// The key of a namespaced object.
pub fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// Now, as Kubernetes writes times.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}
