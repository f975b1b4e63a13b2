//! Reading manifests: text in, typed objects and precise complaints out.
//!
//! [`parse`] takes a file of any number of YAML or JSON documents. Each document stands for itself: one that
//! is broken is reported with file, line, resource, field and fix, and the others are used.
//!
//! `crate::document` cuts a text up and parses it; `read_objects` decides what a document is, and which
//! reader it goes to.

mod read_objects;

use std::{collections::HashMap, sync::Arc};

pub use crate::document::manifest_error::ManifestError;
use crate::document::{manifest_error::FieldError, split_documents::split_documents, yaml_tree::YamlNode};
pub use crate::kind::{Kind, ObjectKey};
use crate::resource::Object;

/// An object and where it was written.
#[derive(Clone, Debug)]
pub struct Located<T> {
    /// File that it came from, as given to [`parse`].
    pub file: Arc<str>,
    /// Line of the file (from 1) at which it begins.
    pub line: u32,
    /// The typed object.
    pub value: T,
    /// The object as it was written, to be stored or sent on.
    pub raw: serde_json::Value,
}

/// What [`parse`] found.
#[derive(Clone, Debug, Default)]
pub struct ParsedManifest {
    /// The good objects, in the order of the text; no two have the same key.
    pub objects: Vec<Located<Object>>,
    /// Documents that were left out, with the reason. A document may have several.
    pub errors: Vec<ManifestError>,
    /// What was accepted but has no effect, or less than its author may think.
    pub warnings: Vec<ManifestError>,
    seen: HashMap<ObjectKey, (Arc<str>, u32)>,
}

impl ParsedManifest {
    /// Adds another file's result. An object that is already there is reported and left out.
    pub fn merge(&mut self, other: Self) {
        self.errors.extend(other.errors);
        self.warnings.extend(other.warnings);
        for object in other.objects {
            self.push(object);
        }
    }

    fn push(&mut self, object: Located<Object>) {
        let key = object.value.key();
        if let Some((file, line)) = self.seen.get(&key) {
            self.errors.push(duplicate(&object, &key, file, *line));
            return;
        }
        self.seen.insert(key, (Arc::clone(&object.file), object.line));
        self.objects.push(object);
    }
}

/// Reads every document of a YAML or JSON text; a `List` counts as the documents in it.
///
/// `file_name` is only used to say where an error is.
pub fn parse(file_name: &str, text: &str) -> ParsedManifest {
    let file: Arc<str> = file_name.into();
    let mut parsed = ParsedManifest::default();
    for document in split_documents(text) {
        read_objects::read_document(&file, &document, &mut parsed);
    }
    parsed
}

/// Reads an object that was parsed already, such as the Kubernetes API sends it. Every line is 1.
///
/// `origin` is only used to say where an error is; nothing is said if it is empty.
pub fn parse_json_object(origin: &str, value: serde_json::Value) -> ParsedManifest {
    let mut parsed = ParsedManifest::default();
    read_objects::read_objects(&origin.into(), &YamlNode::from_json(value), &mut parsed);
    parsed
}

/// The complaint about `object`, whose key an earlier object has taken.
fn duplicate(object: &Located<Object>, key: &ObjectKey, file: &str, line: u32) -> ManifestError {
    let fault = FieldError {
        line: object.line,
        field: Some("metadata.name".to_owned()),
        problem: format!("the same resource is already defined at {file}:{line}"),
        fix: "remove one of the two, or rename it".to_owned(),
    };
    fault.into_manifest_error(&object.file, Some(&key.to_string()))
}

#[cfg(test)]
mod tests;
