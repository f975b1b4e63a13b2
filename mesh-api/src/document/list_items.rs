//! Lists: `kind: List`, whose items say what they are, and those of one kind (`PodList`), whose items may
//! leave it out.

use std::borrow::Cow;

use super::yaml_tree::{Entry, Value, YamlNode};

/// The items of a list, each with a kind and an API version as far as it or the list has them; none if `root`
/// is no list.
pub(crate) fn items_of_list(root: &YamlNode) -> Option<impl Iterator<Item = Cow<'_, YamlNode>>> {
    let kind = root.text("kind")?.strip_suffix("List")?;
    let Value::List(items) = &root.get("items")?.value.value else { return None };
    let of_list = [("kind", kind), ("apiVersion", root.text("apiVersion").unwrap_or_default())];
    // An untyped list has the API version `v1`, which is not its items'.
    let typed = !kind.is_empty();
    Some(items.iter().map(move |item| if typed { completed(item, of_list) } else { Cow::Borrowed(item) }))
}

/// The item, with the fields of its list that it lacks.
fn completed<'a>(item: &'a YamlNode, of_list: [(&str, &str); 2]) -> Cow<'a, YamlNode> {
    let mut item = Cow::Borrowed(item);
    for (key, text) in of_list {
        if text.is_empty() || item.get(key).is_some() {
            continue;
        }
        let line = item.line;
        if let Value::Map(entries) = &mut item.to_mut().value {
            entries.retain(|entry| entry.key != key);
            let value = YamlNode { line, value: Value::String(text.to_owned()) };
            entries.push(Entry { key: key.to_owned(), line, value });
        }
    }
    item
}
