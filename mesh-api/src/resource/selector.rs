//! Labels, and choosing by them.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::document::cursor::Cursor;

/// Labels or annotations of an object.
pub type Labels = BTreeMap<String, String>;

/// Chooses objects that have every label of it, with that value.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct LabelSelector {
    /// The labels asked for. None at all chooses everything.
    pub match_labels: Labels,
}

impl LabelSelector {
    /// Whether `labels` has all that is asked for.
    pub fn matches(&self, labels: &Labels) -> bool {
        contains(labels, &self.match_labels)
    }
}

/// Whether `labels` has every one of `wanted`.
pub(crate) fn contains(labels: &Labels, wanted: &Labels) -> bool {
    wanted.iter().all(|(key, value)| labels.get(key) == Some(value))
}

/// Reads `selector` of a policy; one without labels counts as none.
pub(super) fn read(at: &Cursor<'_>) -> Option<LabelSelector> {
    let labels = at.fields(&["matchLabels"]).get("matchLabels")?;
    for (key, value) in labels.fields_with_any_key().all() {
        if key.is_empty() {
            value.error("a label's key is empty", "write the key, or remove the line");
        }
        if key.contains('*') || value.text().is_some_and(|text| text.contains('*')) {
            value.error("a selector takes no `*`", "name the label and its value in full");
        }
    }
    let match_labels = labels.string_map();
    (!match_labels.is_empty()).then_some(LabelSelector { match_labels })
}
