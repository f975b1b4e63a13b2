//! Merge keys: `<<: *defaults` takes a map's fields over (YAML 1.1, <https://yaml.org/type/merge.html>), as
//! kubectl and kustomize read them.

use std::collections::HashSet;

use super::yaml_tree::{Entry, Value, YamlNode};

/// The key that asks for it.
pub(super) const MERGE_KEY: &str = "<<";

/// The fields of each map that a merge key's value names; none if it is neither a map nor a list of maps.
pub(super) fn fields_to_merge(value: YamlNode) -> Option<Vec<Entry>> {
    let fields = |node: YamlNode| match node.value {
        Value::Map(entries) => Some(entries),
        _ => None,
    };
    match value.value {
        Value::List(items) => Some(items.into_iter().map(fields).collect::<Option<Vec<_>>>()?.concat()),
        _ => fields(value),
    }
}

/// Adds the fields that are not there yet: what a map says itself wins, then the map that is named first.
pub(super) fn add_missing_fields(entries: &mut Vec<Entry>, merged: Vec<Entry>) {
    let mut known: HashSet<String> = entries.iter().map(|entry| entry.key.clone()).collect();
    entries.extend(merged.into_iter().filter(|entry| known.insert(entry.key.clone())));
}
