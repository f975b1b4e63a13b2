//! Manifests: what users write, and what the Kubernetes API sends.

use std::sync::Arc;

use mesh_api::compile::{self, MeshConfig};
use mesh_api::manifest::{self, ManifestError, ParsedManifest};

use crate::agree;

const FILE: &str = "file.yaml";

/// A text of YAML or JSON documents. What is complained of has a place and a remedy; what is read is compiled
/// to what an agent takes.
pub fn check(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let parsed = manifest::parse(FILE, text);
    // A carriage return alone ends a line of YAML too.
    let ends = text.matches(['\r', '\n']).count();
    let lines = u32::try_from(ends).unwrap_or(u32::MAX).saturating_add(1);
    for error in parsed.errors.iter().chain(&parsed.warnings) {
        check_error(error, lines);
    }
    for object in &parsed.objects {
        assert!((1..=lines).contains(&object.line));
        let again = manifest::parse_json_object(FILE, object.raw.clone());
        let keys: Vec<_> = again.objects.iter().map(|object| object.value.key()).collect();
        assert_eq!(keys, [object.value.key()], "{:?}", again.errors);
    }
    check_compiled(parsed);
    if let Ok(value) = serde_json::from_str(text) {
        check_compiled(manifest::parse_json_object(FILE, value));
    }
}

fn check_error(error: &ManifestError, lines: u32) {
    assert_eq!(error.file, FILE);
    assert!((1..=lines).contains(&error.line), "{error:?}");
    assert!(!error.problem.is_empty() && !error.fix.is_empty(), "{error:?}");
    assert_ne!(error.field.as_deref(), Some(""));
}

fn check_compiled(parsed: ParsedManifest) {
    let objects = parsed.objects.into_iter().map(Arc::new);
    let compiled = compile::compile(objects, &MeshConfig::default());
    let (mut store, rejected) = agree::send(&compiled);
    assert_eq!(rejected, [], "what the control plane makes an agent takes");
    let snapshot = store.snapshot();
    agree::check(&store, &snapshot);
}
