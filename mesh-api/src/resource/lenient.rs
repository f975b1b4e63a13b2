//! Reading Kubernetes' own kinds through serde, with the line and path of whatever does not fit.

use serde::{Deserialize, Deserializer, de::DeserializeOwned};
use serde_path_to_error::{Path, Segment};

use crate::document::{
    cursor::Findings,
    manifest_error::FieldError,
    yaml_tree::{self, Value, YamlNode},
};

/// Reads the field `key` of `root`; an absent one counts as its default.
pub(super) fn field<T: DeserializeOwned + Default>(
    root: &YamlNode,
    key: &str,
    findings: &Findings,
) -> Option<T> {
    if root.get(key).is_none() { Some(T::default()) } else { required(root, key, findings) }
}

/// Reads the field `key` of `root`, which must be there.
pub(super) fn required<T: DeserializeOwned>(root: &YamlNode, key: &str, findings: &Findings) -> Option<T> {
    let Some(entry) = root.get(key) else {
        report(root, &[key], &format!("`{key}` is missing"), &format!("add `{key}`"), findings);
        return None;
    };
    match serde_path_to_error::deserialize(without_nulls(&entry.value.value)) {
        Ok(value) => Some(value),
        Err(error) => {
            let fault = fault(root, key, error.path(), &error.inner().to_string());
            findings.errors.borrow_mut().push(fault);
            None
        }
    }
}

/// Reports an error at a path such as `["spec", "ports", "0"]`, at the line of as much of it as is there.
pub(super) fn report(root: &YamlNode, path: &[&str], problem: &str, fix: &str, findings: &Findings) {
    let (line, field) = locate(root, path.iter().copied());
    let fault = FieldError { line, field: Some(field), problem: problem.to_owned(), fix: fix.to_owned() };
    findings.errors.borrow_mut().push(fault);
}

/// The same for what has not the effect that one may expect, while the object counts.
pub(super) fn warn(root: &YamlNode, path: &[&str], problem: &str, fix: &str, findings: &Findings) {
    let (line, field) = locate(root, path.iter().copied());
    let fault = FieldError { line, field: Some(field), problem: problem.to_owned(), fix: fix.to_owned() };
    findings.warnings.borrow_mut().push(fault);
}

fn fault(root: &YamlNode, key: &str, path: &Path, message: &str) -> FieldError {
    let segments: Vec<String> = path
        .iter()
        .filter_map(|segment| match segment {
            Segment::Seq { index } => Some(index.to_string()),
            Segment::Map { key } => Some(key.clone()),
            Segment::Enum { .. } | Segment::Unknown => None,
        })
        .collect();
    let (line, field) = locate(root, std::iter::once(key).chain(segments.iter().map(String::as_str)));
    let (problem, fix) = explain(message);
    FieldError { line, field: Some(field), problem, fix }
}

/// serde says what it found and what it wanted in one sentence.
fn explain(message: &str) -> (String, String) {
    if message.contains("ProbeAction") {
        let fix = "add one of `httpGet`, `tcpSocket`, `grpc` and `exec`";
        return ("the probe does not say what to do".to_owned(), fix.to_owned());
    }
    if let Some((found, expected)) = message.split_once(", expected ") {
        let expected = match expected {
            "i64" | "u64" | "u32" | "u16" => "a whole number",
            other => other,
        };
        return (found.replace("invalid type:", "wrong type:"), format!("write {expected}"));
    }
    match message.strip_prefix("missing field ") {
        Some(name) => (format!("{name} is missing"), format!("add {name}")),
        None => {
            (message.to_owned(), "see the field's description in the Kubernetes API reference".to_owned())
        }
    }
}

fn locate<'a>(root: &YamlNode, path: impl Iterator<Item = &'a str>) -> (u32, String) {
    let mut text = String::new();
    let mut here = Some(root);
    let mut line = root.line;
    for segment in path {
        let index = segment.parse::<usize>().ok();
        here = match (here.map(|node| &node.value), index) {
            (Some(Value::List(items)), Some(index)) => {
                text = format!("{text}[{index}]");
                items.get(index).inspect(|node| line = node.line)
            }
            (Some(Value::Map(entries)), _) => {
                text = yaml_tree::child_path(&text, segment);
                let entry = entries.iter().find(|entry| entry.key == segment);
                entry.inspect(|entry| line = entry.line).map(|entry| &entry.value)
            }
            _ => {
                text = yaml_tree::child_path(&text, segment);
                None
            }
        };
    }
    (line, text)
}

/// Kubernetes takes a null for an absent field; serde's defaults do not.
fn without_nulls(value: &Value) -> serde_json::Value {
    match value {
        Value::List(items) => items.iter().map(|item| without_nulls(&item.value)).collect(),
        Value::Map(entries) => entries
            .iter()
            .filter(|entry| !matches!(entry.value.value, Value::Null))
            .map(|entry| (entry.key.clone(), without_nulls(&entry.value.value)))
            .collect(),
        scalar => scalar.to_json(),
    }
}

/// A port number.
pub(super) fn port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u16, D::Error> {
    let number = i64::deserialize(deserializer)?;
    u16::try_from(number).ok().filter(|port| *port != 0).ok_or_else(|| {
        serde::de::Error::custom(format!("{number} is not a port, expected a whole number from 1 to 65535"))
    })
}

/// The same where the field may be absent.
pub(super) fn optional_port<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u16>, D::Error> {
    port(deserializer).map(Some)
}
