//! What every object has: a name, and what others know it by.

use std::sync::Arc;
use std::time::SystemTime;

use serde::{Deserialize, Deserializer};

use super::{DEFAULT_NAMESPACE, Labels, lenient};
use crate::document::{cursor::Findings, yaml_tree};
use crate::kind::Kind;

/// `metadata` of an object.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metadata {
    /// Name, unique for the kind in its namespace.
    pub name: String,
    /// Namespace; empty for kinds that have none.
    pub namespace: String,
    /// Kubernetes' unique id of the object's life, if it has been given one.
    pub uid: String,
    /// Labels.
    pub labels: Arc<Labels>,
    /// Annotations.
    pub annotations: Labels,
    /// When it was made. Objects without a time count as older than all that have one.
    #[serde(deserialize_with = "timestamp")]
    pub creation_timestamp: Option<SystemTime>,
    /// Set from the moment that the object is being deleted.
    #[serde(deserialize_with = "timestamp")]
    pub deletion_timestamp: Option<SystemTime>,
    /// Objects that this one was made by.
    pub owner_references: Vec<OwnerReference>,
}

/// One of `metadata.ownerReferences`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct OwnerReference {
    /// Kind of the owner.
    pub kind: String,
    /// Name of the owner.
    pub name: String,
    /// Whether it is the one that manages the object.
    pub controller: bool,
}

impl Metadata {
    /// Order by age: creation time, then name, then namespace (how Istio decides which of several counts).
    pub fn age_key(&self) -> (Option<SystemTime>, &str, &str) {
        (self.creation_timestamp, &self.name, &self.namespace)
    }

    /// `namespace/name`.
    pub fn full_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

/// What to write for a name that is none.
pub(super) const NAME_FIX: &str =
    "use lower-case letters, digits, `-` and `.`, with a letter or digit at both ends";
const LABEL_FIX: &str =
    "use at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends";

/// Reads and checks `metadata`; the names are checked since keys, file names and identities are made of them.
pub(super) fn read(kind: Kind, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Metadata> {
    let mut metadata: Metadata = lenient::field(root, "metadata", findings)?;
    let mut good = true;
    let mut refuse = |field: &str, problem: String, fix: &str| {
        lenient::report(root, &["metadata", field], &problem, fix, findings);
        good = false;
    };
    if metadata.name.is_empty() {
        refuse("name", "`metadata.name` is missing".into(), "add `name`");
    } else if !is_subdomain(&metadata.name) {
        refuse("name", format!("{:?} is not a name", metadata.name), NAME_FIX);
    }
    match (kind.is_namespaced(), metadata.namespace.as_str()) {
        (true, "") => DEFAULT_NAMESPACE.clone_into(&mut metadata.namespace),
        (true, namespace) if !is_label(namespace) => {
            refuse("namespace", format!("{namespace:?} is not a namespace"), LABEL_FIX);
        }
        (true, _) => {}
        (false, _) => metadata.namespace.clear(),
    }
    good.then_some(metadata)
}

/// DNS label of RFC 1123.
pub(super) fn is_label(text: &str) -> bool {
    text.len() <= 63 && is_label_of_any_length(text)
}

/// DNS subdomain as Kubernetes checks names: labels joined by dots, 253 characters at most.
pub(super) fn is_subdomain(text: &str) -> bool {
    text.len() <= 253 && text.split('.').all(is_label_of_any_length)
}

fn is_label_of_any_length(text: &str) -> bool {
    let inner = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    !text.is_empty() && text.chars().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn timestamp<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<SystemTime>, D::Error> {
    let text = String::deserialize(deserializer)?;
    humantime::parse_rfc3339(&text).map(Some).map_err(|_| {
        serde::de::Error::custom(format!("{text:?} is not a time, expected one like `2026-11-23T12:00:00Z`"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_directory() {
        for good in ["a", "web-1", "v1.example.com"] {
            assert!(is_subdomain(good), "{good}");
        }
        for bad in ["", "..", "../etc", "a/b", "A", "-a", "a-", "a..b", &"a".repeat(254)] {
            assert!(!is_subdomain(bad), "{bad}");
        }
        assert!(is_label("prod") && !is_label("a.b") && !is_label(&"a".repeat(64)));
    }
}
