//! What a source found: objects that count, and what is wrong with the others.

use std::sync::Arc;

use mesh_api::admin::ResourceStatus;
use mesh_api::compile::{Condition, ObjectChange};
use mesh_api::manifest::ManifestError;

/// What has changed since the last time, and what is wrong now.
#[derive(Debug, Default)]
pub struct Loaded {
    /// Good objects that are there or gone, no two with the same key.
    pub changes: Vec<ObjectChange>,
    /// Objects that are in force now.
    pub objects: usize,
    /// Mistakes.
    pub errors: Vec<ManifestError>,
    /// What has no effect, or less than its author may think.
    pub warnings: Vec<ManifestError>,
}

/// What is wrong with the configuration now, for people.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Findings {
    /// Mistakes; the documents concerned are left out, or stay as they last were.
    pub errors: Vec<ManifestError>,
    /// What was accepted but has no effect, or less than its author may think.
    pub warnings: Vec<ManifestError>,
    /// What is not in force as it was written.
    pub conditions: Vec<Condition>,
    /// What became of each resource that people wrote for the mesh.
    pub resources: Arc<Vec<ResourceStatus>>,
}
