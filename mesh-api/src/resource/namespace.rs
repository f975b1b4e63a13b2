//! Namespaces and service accounts: nothing but metadata matters here.

use super::Metadata;

/// A namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: Metadata,
}

/// A service account: the part of a pod's identity that its author chooses.
#[derive(Clone, Debug)]
pub struct ServiceAccount {
    /// Name and namespace.
    pub metadata: Metadata,
}
