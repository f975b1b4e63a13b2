//! Namespaces and service accounts: nothing but metadata matters here.

use super::{Metadata, Readable, egress, lenient};
use crate::document::cursor::Findings;
use crate::document::yaml_tree;

/// A namespace.
#[derive(Clone, Debug)]
pub struct Namespace {
    /// Name and labels.
    pub metadata: Metadata,
}

impl Readable for Namespace {
    /// Reports what is wrong with what it says of egress, which then counts for the stricter.
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let report = |part: &str, name: &str, wrong: egress::Wrong| {
            lenient::warn(root, &["metadata", part, name], &wrong.problem, &wrong.fix, findings);
        };
        if let Err(wrong) = egress::check_label(&metadata.labels) {
            report("labels", egress::LABEL, wrong);
        }
        if let Err(wrong) = egress::allowed(&metadata) {
            report("annotations", egress::ALLOW, wrong);
        }
        Some(Self { metadata })
    }
}

/// A service account: the part of a pod's identity that its author chooses.
#[derive(Clone, Debug)]
pub struct ServiceAccount {
    /// Name and namespace.
    pub metadata: Metadata,
}

impl Readable for ServiceAccount {
    fn read(metadata: Metadata, _: &yaml_tree::YamlNode, _: &Findings) -> Option<Self> {
        Some(Self { metadata })
    }
}
