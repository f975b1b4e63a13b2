//! Applies the changes of headers that routes ask for.

use mesh_api::plan::http_routes::HeaderEdits;

use super::h1::Fields;

/// Changes fields: first what is removed, then what is set, then what is appended.
fn apply_edits(edits: &HeaderEdits, fields: &mut Fields) {
    for name in &edits.remove {
        fields.remove(name);
    }
    for (name, value) in &edits.set {
        fields.remove(name);
        fields.push(name, value.as_bytes());
    }
    for (name, value) in &edits.append {
        fields.push(name, value.as_bytes());
    }
}

/// Changes fields as a route and its destination ask for: the destination first, or last where it is the
/// route's only one.
pub(super) fn apply_route_edits(
    is_only_destination: bool,
    of_route: &HeaderEdits,
    of_destination: Option<&HeaderEdits>,
    fields: &mut Fields,
) {
    if !is_only_destination {
        of_destination.iter().for_each(|edits| apply_edits(edits, fields));
    }
    apply_edits(of_route, fields);
    if is_only_destination {
        of_destination.iter().for_each(|edits| apply_edits(edits, fields));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_removed_can_be_set_and_appended_to() {
        let pairs =
            |of: &[(&str, &str)]| of.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect();
        let edits = HeaderEdits {
            remove: ["x-gone".into(), "x-new".into()].into(),
            set: pairs(&[("x-new", "100%"), ("x-old", "set")]),
            append: pairs(&[("x-old", "more")]),
            authority: None,
        };
        let mut fields = Fields::default();
        for name in ["X-Gone", "X-Old", "X-Old", "X-Stays"] {
            fields.push(name, b"old");
        }
        apply_edits(&edits, &mut fields);
        let expected: [(&str, &[u8]); 4] =
            [("X-Stays", b"old"), ("x-new", b"100%"), ("x-old", b"set"), ("x-old", b"more")];
        assert_eq!(fields.iter().collect::<Vec<_>>(), expected);
    }
}
