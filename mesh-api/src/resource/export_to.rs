//! `exportTo` of Istio's kinds for traffic: the namespaces whose clients something is for.

use std::collections::HashSet;

use super::metadata::is_label;
use crate::document::cursor::Cursor;

/// Reads it. `may_be_nobody`: `~` means something there.
pub(super) fn read(at: &Cursor<'_>, may_be_nobody: bool) -> Vec<String> {
    let values = at.non_empty_strings();
    let mut seen = HashSet::new();
    for (at, value) in &values {
        match *value {
            "*" if values.len() > 1 => at.error("`*` includes the others", "write `*` alone, or remove it"),
            "~" if may_be_nobody && values.len() > 1 => {
                at.error("`~` excludes the others", "write `~` alone, or remove it");
            }
            "*" | "." => {}
            "~" if may_be_nobody => {}
            "~" => at.error("`~` is not for rules", "write `.` for the rule's own namespace only"),
            name if !is_label(name) => {
                at.error(format!("{name:?} is not a namespace"), "write `*`, `.` or a namespace");
            }
            _ => {}
        }
        if !seen.insert(*value) {
            at.error("this namespace is already listed", "remove one of the two");
        }
    }
    values.into_iter().map(|(_, value)| value.to_owned()).collect()
}
