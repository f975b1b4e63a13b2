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
pub use controllers::run as run_controllers;
pub use delete::{delete, one as delete_one};
pub use placement::Placement;
pub use store::{Store, StoreError, Stored};

use mesh_api::manifest::{Kind, ObjectKey};

/// The key of a namespaced object.
pub fn key(kind: Kind, namespace: &str, name: &str) -> ObjectKey {
    ObjectKey { kind, namespace: namespace.to_owned(), name: name.to_owned() }
}

/// A fresh unique id, as version 4 of RFC 9562 draws it.
pub fn fresh_uid() -> String {
    let mut bytes: [u8; 16] = rand::random();
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    format!("{}-{}-{}-{}-{}", &hex[..8], &hex[8..12], &hex[12..16], &hex[16..20], &hex[20..])
}

/// Now, as Kubernetes writes times.
pub fn now() -> String {
    humantime::format_rfc3339_seconds(std::time::SystemTime::now()).to_string()
}
