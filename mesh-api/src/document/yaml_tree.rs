//! One parsed document, in which every value and key still knows its line.

use std::collections::HashMap;

use granit_parser::{Event, Parser, ScalarStyle, Span, StrInput};
use serde_json::Number;

use super::{manifest_error::FieldError, merge_keys, split_documents::YamlDocument, yaml_scalar};

/// Most nodes that a document may have after aliases are put in place: a few lines of nested aliases can
/// otherwise ask for any amount of memory.
const MAX_NODES: usize = 1_000_000;
/// Deepest nesting, aliases included; the parser itself refuses more than this without them.
const MAX_DEPTH: usize = 255;

/// A value and the line of the file at which it begins.
#[derive(Clone, Debug)]
pub(crate) struct YamlNode {
    pub line: u32,
    pub value: Value,
}

/// A value, with maps in the order of the text.
#[derive(Clone, Debug)]
pub(crate) enum Value {
    Null,
    Bool(bool),
    Number(Number),
    String(String),
    List(Vec<YamlNode>),
    Map(Vec<Entry>),
}

/// A key with its value.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub key: String,
    pub line: u32,
    pub value: YamlNode,
}

impl Value {
    /// How a person would name this value in "must be X, but is Y".
    pub fn describe(&self) -> String {
        match self {
            Self::Null => "empty".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Number(value) => format!("the number {value}"),
            Self::String(value) => format!("the string {value:?}"),
            Self::List(_) => "a list".to_owned(),
            Self::Map(_) => "a map".to_owned(),
        }
    }

    /// The value as JSON, nulls included.
    pub fn to_json(&self) -> serde_json::Value {
        match self {
            Self::Null => serde_json::Value::Null,
            Self::Bool(value) => (*value).into(),
            Self::Number(value) => value.clone().into(),
            Self::String(value) => value.clone().into(),
            Self::List(items) => items.iter().map(|item| item.value.to_json()).collect(),
            Self::Map(entries) => entries.iter().map(|e| (e.key.clone(), e.value.value.to_json())).collect(),
        }
    }
}

impl YamlNode {
    /// A value that was read already, all of it on line 1. JSON strings may hold characters that no YAML text
    /// may.
    pub(crate) fn from_json(value: serde_json::Value) -> Self {
        let entry = |(key, value)| Entry { key, line: 1, value: Self::from_json(value) };
        let value = match value {
            serde_json::Value::Null => Value::Null,
            serde_json::Value::Bool(value) => Value::Bool(value),
            serde_json::Value::Number(value) => Value::Number(value),
            serde_json::Value::String(value) => Value::String(value),
            serde_json::Value::Array(items) => Value::List(items.into_iter().map(Self::from_json).collect()),
            serde_json::Value::Object(entries) => Value::Map(entries.into_iter().map(entry).collect()),
        };
        Self { line: 1, value }
    }

    /// The value of a key, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<&Entry> {
        let Value::Map(entries) = &self.value else { return None };
        entries.iter().find(|entry| entry.key == key && !matches!(entry.value.value, Value::Null))
    }

    /// The text of a key whose value is a string.
    pub fn text(&self, key: &str) -> Option<&str> {
        match &self.get(key)?.value.value {
            Value::String(text) => Some(text),
            _ => None,
        }
    }

    fn size(&self) -> (usize, usize) {
        let children: Vec<_> = match &self.value {
            Value::List(items) => items.iter().map(YamlNode::size).collect(),
            Value::Map(entries) => entries.iter().map(|entry| entry.value.size()).collect(),
            _ => Vec::new(),
        };
        let nodes = children.iter().map(|(nodes, _)| nodes).sum::<usize>();
        (nodes + 1, children.iter().map(|(_, depth)| depth).max().map_or(1, |depth| depth + 1))
    }
}

/// A document's root, if it has one, and the keys that were written twice.
pub(crate) struct ParsedDocument {
    pub root: Option<YamlNode>,
    pub duplicates: Vec<FieldError>,
}

/// Parses one document. The error carries the path that had been reached.
pub(crate) fn parse_document(document: &YamlDocument<'_>) -> Result<ParsedDocument, FieldError> {
    let mut loader = Loader {
        parser: Parser::new_from_str_with_options(
            document.text,
            granit_parser::options! { emit_comments: false },
        ),
        first_line: document.first_line,
        path: String::new(),
        depth: 0,
        nodes: 0,
        anchors: HashMap::new(),
        duplicates: Vec::new(),
    };
    let root = loader.document().map_err(|fault| explain(fault, document))?;
    Ok(ParsedDocument { root, duplicates: loader.duplicates })
}

struct Loader<'a> {
    parser: Parser<'a, StrInput<'a>>,
    first_line: u32,
    path: String,
    depth: usize,
    nodes: usize,
    anchors: HashMap<usize, Anchor>,
    duplicates: Vec<FieldError>,
}

struct Anchor {
    node: YamlNode,
    nodes: usize,
    depth: usize,
}

impl<'a> Loader<'a> {
    fn document(&mut self) -> Result<Option<YamlNode>, FieldError> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamEnd => return Ok(root),
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                event if root.is_none() => root = Some(self.node(event, span)?),
                _ => return Err(self.fault(span, "a second document begins here", "put `---` before it")),
            }
        }
    }

    fn next(&mut self) -> Result<(Event<'a>, Span), FieldError> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let line = self.file_line(error.marker().line());
                Err(FieldError { line, field: self.here(), problem: error.info(), fix: String::new() })
            }
            None => Ok((Event::StreamEnd, Span::default())),
        }
    }

    fn node(&mut self, event: Event<'a>, span: Span) -> Result<YamlNode, FieldError> {
        self.nodes += 1;
        let line = self.line(span);
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let quoted = style != ScalarStyle::Plain;
                let stringly = quoted || tag.is_some_and(|tag| tag.is_yaml_core_schema_tag("str"));
                (
                    if stringly {
                        Value::String(text.into_owned())
                    } else {
                        yaml_scalar::parse_plain_scalar(&text)
                    },
                    anchor,
                )
            }
            Event::SequenceStart(_, anchor, _) => (Value::List(self.list()?), anchor),
            Event::MappingStart(_, anchor, _) => (Value::Map(self.map()?), anchor),
            Event::Alias(id) => return self.alias(id, span),
            _ => return Err(self.fault(span, "this is no value", "write a value, or remove the line")),
        };
        let node = YamlNode { line, value };
        if anchor != 0 {
            let (nodes, depth) = node.size();
            self.anchors.insert(anchor, Anchor { node: node.clone(), nodes, depth });
        }
        Ok(node)
    }

    fn list(&mut self) -> Result<Vec<YamlNode>, FieldError> {
        let mut items = Vec::new();
        let outer = self.path.len();
        self.depth += 1;
        loop {
            self.path.truncate(outer);
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                self.depth -= 1;
                return Ok(items);
            }
            self.path = format!("{}[{}]", self.path, items.len());
            items.push(self.node(event, span)?);
        }
    }

    fn map(&mut self) -> Result<Vec<Entry>, FieldError> {
        let mut entries = Vec::new();
        let mut merged = Vec::new();
        let mut lines: HashMap<String, u32> = HashMap::new();
        let outer = self.path.len();
        self.depth += 1;
        loop {
            self.path.truncate(outer);
            let (event, span) = self.next()?;
            if matches!(event, Event::MappingEnd) {
                self.depth -= 1;
                merge_keys::add_missing_fields(&mut entries, merged);
                return Ok(entries);
            }
            let Event::Scalar(key, style, ..) = event else {
                return Err(self.fault(span, "a key must be plain text", "write `key: value`"));
            };
            // In quotes, as in JSON, it is a key like any other.
            let merges = key == merge_keys::MERGE_KEY && style == ScalarStyle::Plain;
            self.path = child_path(&self.path, &key);
            let line = self.line(span);
            if let Some(first) = lines.insert(key.to_string(), line) {
                let problem = format!("the key `{key}` is already there, at line {first}");
                let fault = self.fault(span, &problem, "keep one of the two");
                self.duplicates.push(fault);
            }
            let (event, span) = self.next()?;
            let value = self.node(event, span)?;
            if merges {
                let Some(found) = merge_keys::fields_to_merge(value) else {
                    let problem = "`<<` merges maps, and this is neither a map nor a list of maps";
                    return Err(self.fault(span, problem, "write `<<: *anchor`, or `<<: [*one, *other]`"));
                };
                merged = found;
                continue;
            }
            entries.push(Entry { key: key.into_owned(), line, value });
        }
    }

    fn alias(&mut self, id: usize, span: Span) -> Result<YamlNode, FieldError> {
        let Some(anchor) = self.anchors.get(&id) else {
            return Err(self.fault(span, "the alias is inside what it names", "write the value out"));
        };
        self.nodes += anchor.nodes;
        if self.nodes > MAX_NODES || self.depth + anchor.depth > MAX_DEPTH {
            return Err(self.fault(span, "aliases make this document too large", "write the values out"));
        }
        Ok(anchor.node.clone())
    }

    fn line(&self, span: Span) -> u32 {
        self.file_line(span.start.line())
    }

    fn file_line(&self, line: usize) -> u32 {
        (self.first_line - 1).saturating_add(u32::try_from(line).unwrap_or(u32::MAX))
    }

    fn here(&self) -> Option<String> {
        (!self.path.is_empty()).then(|| self.path.clone())
    }

    fn fault(&self, span: Span, problem: &str, fix: &str) -> FieldError {
        FieldError {
            line: self.line(span),
            field: self.here(),
            problem: problem.to_owned(),
            fix: fix.to_owned(),
        }
    }
}

/// Path of a key below `path`; a key that would be misread as several is quoted.
pub(crate) fn child_path(path: &str, key: &str) -> String {
    match (path, key.contains(['.', '/', '['])) {
        ("", false) => key.to_owned(),
        (_, false) => format!("{path}.{key}"),
        (_, true) => format!("{path}[{key:?}]"),
    }
}

/// Adds the fix to a syntax error of the YAML parser.
fn explain(fault: FieldError, document: &YamlDocument<'_>) -> FieldError {
    if !fault.fix.is_empty() {
        return fault;
    }
    let index = fault.line.saturating_sub(document.first_line) as usize;
    let line = document.text.lines().nth(index).unwrap_or_default();
    let indentation = &line[..line.len() - line.trim_start().len()];
    let (problem, fix) = if indentation.contains('\t') {
        ("a tab in the indentation".to_owned(), "indent with spaces: YAML allows no tabs there")
    } else {
        (fault.problem, "check indentation, quotes and brackets on this line and the one above it")
    };
    FieldError { problem: format!("not valid YAML: {problem}"), fix: fix.to_owned(), ..fault }
}
