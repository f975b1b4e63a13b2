//! What is wrong with a manifest, said so that its author can put it right.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One thing wrong with one field of one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ManifestError {
    /// File, as given to [`parse`](crate::manifest::parse); empty if it was not read from one.
    pub file: String,
    /// Line in the file, from 1.
    pub line: u32,
    /// `Kind namespace/name`, as far as the document says.
    pub resource: Option<String>,
    /// Path of the field: `spec.rules[0].from[0].source.principals[1]`.
    pub field: Option<String>,
    /// What is wrong.
    pub problem: String,
    /// What to write instead.
    pub fix: String,
}

impl fmt::Display for ManifestError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.file.is_empty() {
            write!(f, "{}:{}: ", self.file, self.line)?;
        }
        for part in [&self.resource, &self.field].into_iter().flatten() {
            write!(f, "{part}: ")?;
        }
        write!(f, "{}\n  fix: {}", self.problem, self.fix)
    }
}

impl std::error::Error for ManifestError {}

/// A [`ManifestError`] before it is known which file and resource it belongs to.
#[derive(Clone, Debug)]
pub(crate) struct FieldError {
    pub line: u32,
    pub field: Option<String>,
    pub problem: String,
    pub fix: String,
}

impl FieldError {
    pub fn into_manifest_error(self, file: &str, resource: Option<&str>) -> ManifestError {
        ManifestError {
            file: file.to_owned(),
            line: self.line,
            resource: resource.map(str::to_owned),
            field: self.field,
            problem: self.problem,
            fix: self.fix,
        }
    }
}
