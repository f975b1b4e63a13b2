//! `ReferenceGrant`: which objects of other namespaces may name objects of its own.

use super::parent_ref::is_core;
use super::values;
use crate::document::cursor::{Cursor, Findings};
use crate::document::yaml_tree::YamlNode;
use crate::resource::{Metadata, Readable, lenient};

/// What objects of other namespaces may name in the grant's.
#[derive(Clone, Debug)]
pub struct ReferenceGrant {
    /// Name and namespace.
    pub metadata: Metadata,
    /// Whose references are granted: any of these.
    pub from: Vec<GrantFrom>,
    /// References to what: any of these.
    pub to: Vec<GrantTo>,
}

/// Objects that may name others.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantFrom {
    /// API group.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Namespace.
    pub namespace: String,
}

/// Objects that may be named.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GrantTo {
    /// API group; empty for Services.
    pub group: String,
    /// Kind.
    pub kind: String,
    /// Name. `None`: all of the namespace.
    pub name: Option<String>,
}

const MOST: usize = 16;

impl Readable for ReferenceGrant {
    fn read(metadata: Metadata, root: &YamlNode, findings: &Findings) -> Option<Self> {
        let Some(spec) = Cursor::spec(root, findings) else {
            let fix = "add `spec: {from: …, to: …}`";
            lenient::report(root, &["spec"], "`spec` is missing", fix, findings);
            return None;
        };
        let fields = spec.fields(&["from", "to"]);
        for key in ["from", "to"] {
            fields.require(key);
        }
        Some(Self {
            metadata,
            from: values::items(&fields, "from", MOST).iter().filter_map(GrantFrom::read).collect(),
            to: values::items(&fields, "to", MOST).iter().filter_map(GrantTo::read).collect(),
        })
    }
}

impl GrantFrom {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["group", "kind", "namespace"]);
        let group = fields.require("group");
        let kind = fields.require("kind");
        fields.require("namespace");
        Some(Self {
            group: group?.text()?.to_owned(),
            kind: kind?.non_empty_string()?.to_owned(),
            namespace: values::namespace(&fields)?,
        })
    }
}

impl GrantTo {
    fn read(at: &Cursor<'_>) -> Option<Self> {
        let fields = at.fields(&["group", "kind", "name"]);
        let (group, kind) = (fields.require("group"), fields.require("kind"));
        let group = group?.text()?;
        let name = fields.get("name").and_then(|at| at.non_empty_string());
        Some(Self {
            group: if is_core(group) { String::new() } else { group.to_owned() },
            kind: kind?.non_empty_string()?.to_owned(),
            name: name.map(str::to_owned),
        })
    }
}
