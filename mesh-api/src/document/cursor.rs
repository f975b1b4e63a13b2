//! Walking a document of a strict kind: every step knows its path and line, and complaints pile up, so that
//! one reading reports everything that is wrong.

use std::{cell::RefCell, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use super::{
    manifest_error::FieldError,
    nearest_word::nearest_word,
    yaml_tree::{self, Entry, Value, YamlNode},
};
use crate::plan::MAX_DURATION;

/// The shortest span of time that a field may name.
const SHORTEST_SPAN: Duration = Duration::from_millis(1);

/// Where a walk leaves what it found wrong.
#[derive(Default)]
pub(crate) struct Findings {
    pub errors: RefCell<Vec<FieldError>>,
    pub warnings: RefCell<Vec<FieldError>>,
}

/// A place in a document.
#[derive(Clone)]
pub(crate) struct Cursor<'a> {
    node: &'a YamlNode,
    line: u32,
    path: String,
    findings: &'a Findings,
}

impl<'a> Cursor<'a> {
    /// The value of `entry`, a field of the document's root.
    pub fn at_root_field(entry: &'a Entry, findings: &'a Findings) -> Self {
        Self { node: &entry.value, line: entry.line, path: entry.key.clone(), findings }
    }

    /// Reports an error here.
    pub fn error(&self, problem: impl Into<String>, fix: impl Into<String>) {
        self.findings.errors.borrow_mut().push(self.fault(problem.into(), fix.into()));
    }

    /// Reports that what is here has no effect.
    pub fn warn(&self, problem: impl Into<String>, fix: impl Into<String>) {
        self.findings.warnings.borrow_mut().push(self.fault(problem.into(), fix.into()));
    }

    /// Says that a valid field is not acted upon yet.
    pub fn warn_unsupported(&self) {
        self.warn(
            "not supported yet, ignored",
            "remove it, or leave it for a mesh that has it; the rest of the resource counts",
        );
    }

    /// The value as a map whose keys must be among `known`.
    pub fn fields(&self, known: &[&str]) -> Fields<'a> {
        let fields = self.fields_with_any_key();
        for entry in fields.entries.iter().filter(|entry| !known.contains(&entry.key.as_str())) {
            let fix = match nearest_word(&entry.key, known.iter().copied()) {
                Some(near) => format!("did you mean `{near}`?"),
                None => format!("remove it; the fields here are {}", quote_words(known)),
            };
            fields.at.step(entry).error("unknown field", fix);
        }
        fields
    }

    /// The value as a map with arbitrary keys.
    pub fn fields_with_any_key(&self) -> Fields<'a> {
        let entries = match &self.node.value {
            Value::Map(entries) => entries.as_slice(),
            other => {
                self.wrong_type("a map", other);
                &[]
            }
        };
        Fields { at: self.clone(), entries }
    }

    /// The items of a list.
    pub fn items(&self) -> Vec<Cursor<'a>> {
        let Value::List(items) = &self.node.value else {
            self.wrong_type("a list", &self.node.value);
            return Vec::new();
        };
        items.iter().enumerate().map(|(index, node)| self.item(index, node)).collect()
    }

    /// Whether this is a list without items.
    pub fn is_empty_list(&self) -> bool {
        matches!(&self.node.value, Value::List(items) if items.is_empty())
    }

    /// The strings of a list, none of them empty.
    pub fn non_empty_strings(&self) -> Vec<(Cursor<'a>, &'a str)> {
        let items = self.items();
        items.into_iter().filter_map(|item| item.non_empty_string().map(|text| (item, text))).collect()
    }

    /// A string that says something.
    pub fn non_empty_string(&self) -> Option<&'a str> {
        let text = self.text()?;
        if text.is_empty() {
            self.error("the string is empty", "write a value, or remove the field");
            return None;
        }
        Some(text)
    }

    /// A string, possibly empty.
    pub fn text(&self) -> Option<&'a str> {
        match &self.node.value {
            Value::String(text) => return Some(text),
            // YAML took what was meant as text for something else.
            Value::Number(number) => self.unquoted(&number.to_string()),
            Value::Bool(value) => self.unquoted(&value.to_string()),
            other => self.wrong_type("a string", other),
        }
        None
    }

    /// A whole number within `range`.
    pub fn integer(&self, range: RangeInclusive<u32>) -> Option<u32> {
        let (low, high) = (range.start(), range.end());
        let expected = format!("write a whole number from {low} to {high}");
        let Value::Number(number) = &self.node.value else {
            self.error(format!("must be a number, but is {}", self.node.value.describe()), expected);
            return None;
        };
        let value = number.as_u64().and_then(|n| u32::try_from(n).ok()).filter(|n| range.contains(n));
        if value.is_none() {
            self.error(format!("{number} is out of range"), expected);
        }
        value
    }

    /// A number within `range`, not necessarily a whole one.
    pub fn number(&self, range: RangeInclusive<f64>) -> Option<f64> {
        let expected = format!("write a number from {} to {}", range.start(), range.end());
        let Value::Number(number) = &self.node.value else {
            self.error(format!("must be a number, but is {}", self.node.value.describe()), expected);
            return None;
        };
        let value = number.as_f64().filter(|number| range.contains(number));
        if value.is_none() {
            self.error(format!("{number} is out of range"), expected);
        }
        value
    }

    /// A boolean.
    pub fn boolean(&self) -> Option<bool> {
        let Value::Bool(value) = &self.node.value else {
            self.wrong_type("true or false", &self.node.value);
            return None;
        };
        Some(*value)
    }

    /// A duration as Go writes it, at least a millisecond and no longer than the wire types can say.
    pub fn duration(&self) -> Option<Duration> {
        self.duration_of(|duration| *duration >= SHORTEST_SPAN, "at least `1ms`")
    }

    /// Like [`Cursor::duration`], but takes `0s` as well, which means none.
    pub fn duration_or_zero(&self) -> Option<Duration> {
        let allowed = |duration: &Duration| duration.is_zero() || *duration >= SHORTEST_SPAN;
        self.duration_of(allowed, "`0s` for none, or at least `1ms`")
    }

    fn duration_of(&self, allowed: impl Fn(&Duration) -> bool, least: &str) -> Option<Duration> {
        let fix = format!(
            "write a number with a unit, such as `500ms`, `5s` or `1h30m`; {least}, and at most 10,000 years"
        );
        let text = match &self.node.value {
            Value::String(text) => text,
            other => {
                self.error(format!("must be a duration, but is {}", other.describe()), fix);
                return None;
            }
        };
        let duration = parse_duration(text).filter(|duration| allowed(duration) && *duration <= MAX_DURATION);
        if duration.is_none() {
            self.error(format!("{text:?} is not a duration"), fix);
        }
        duration
    }

    /// One of a set of words.
    pub fn enum_value<T: Copy>(&self, allowed: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = allowed.iter().find(|(word, _)| *word == text) {
            return Some(*value);
        }
        let words: Vec<_> = allowed.iter().map(|(word, _)| *word).collect();
        let fix = match nearest_word(text, words.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? Allowed are {}", quote_words(&words)),
            None => format!("write one of {}", quote_words(&words)),
        };
        self.error(format!("{text:?} is not a value of this field"), fix);
        None
    }

    /// A map of strings to strings.
    pub fn string_map(&self) -> BTreeMap<String, String> {
        let fields = self.fields_with_any_key();
        fields.all().filter_map(|(key, value)| Some((key.to_owned(), value.text()?.to_owned()))).collect()
    }

    fn item(&self, index: usize, node: &'a YamlNode) -> Self {
        Self { node, line: node.line, path: format!("{}[{index}]", self.path), findings: self.findings }
    }

    fn step(&self, entry: &'a Entry) -> Self {
        let path = yaml_tree::child_path(&self.path, &entry.key);
        Self { node: &entry.value, line: entry.line, path, findings: self.findings }
    }

    fn wrong_type(&self, expected: &str, found: &Value) {
        self.error(format!("must be {expected}, but is {}", found.describe()), format!("write {expected}"));
    }

    fn unquoted(&self, text: &str) {
        let found = self.node.value.describe();
        self.error(format!("must be a string, but is {found}"), format!("put it in quotes: {text:?}"));
    }

    fn fault(&self, problem: String, fix: String) -> FieldError {
        FieldError { line: self.line, field: Some(self.path.clone()), problem, fix }
    }
}

/// The fields of a map.
pub(crate) struct Fields<'a> {
    at: Cursor<'a>,
    entries: &'a [Entry],
}

impl<'a> Fields<'a> {
    /// A field, unless it is absent or null.
    pub fn get(&self, key: &str) -> Option<Cursor<'a>> {
        self.all().find(|(name, _)| *name == key).map(|(_, cursor)| cursor)
    }

    /// A field that must be there.
    pub fn require(&self, key: &str) -> Option<Cursor<'a>> {
        let found = self.get(key);
        // What is no map was refused as such.
        if found.is_none() && matches!(self.at.node.value, Value::Map(_)) {
            self.at.error(format!("`{key}` is missing"), format!("add `{key}`"));
        }
        found
    }

    /// Every field that is not null, in the order of the text.
    pub fn all(&self) -> impl Iterator<Item = (&'a str, Cursor<'a>)> {
        let at = self.at.clone();
        let present = self.entries.iter().filter(|entry| !matches!(entry.value.value, Value::Null));
        present.map(move |entry| (entry.key.as_str(), at.step(entry)))
    }

    /// Refuses fields that are null, which [`Fields::all`] leaves out: for maps of which each key is a
    /// condition, so that one that is left out would match more than was meant.
    pub fn refuse_nulls(&self, fix: &str) {
        for entry in self.entries.iter().filter(|entry| matches!(entry.value.value, Value::Null)) {
            self.at.step(entry).error("it has no value", fix);
        }
    }

    /// Says of each of `keys` that is there that it is not acted upon yet.
    pub fn warn_unsupported_fields(&self, keys: &[&str]) {
        keys.iter().filter_map(|key| self.get(key)).for_each(|field| field.warn_unsupported());
    }
}

/// `` `a`, `b` `` for a message.
pub(crate) fn quote_words(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}

/// Go's `time.ParseDuration`, without a sign: decimal numbers, each with a unit.
fn parse_duration(text: &str) -> Option<Duration> {
    const UNITS: [(&str, f64); 6] =
        [("ns", 1e-9), ("us", 1e-6), ("ms", 1e-3), ("s", 1.0), ("m", 60.0), ("h", 3600.0)];
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let (number, after) = rest.split_at(digits);
        let letters = after.find(|c: char| !c.is_ascii_alphabetic()).unwrap_or(after.len());
        let (unit, after) = after.split_at(letters);
        let seconds = UNITS.iter().find(|(name, _)| *name == unit)?.1;
        let part = Duration::try_from_secs_f64(number.parse::<f64>().ok()? * seconds).ok()?;
        total = total.checked_add(part)?;
        rest = after;
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations() {
        for (text, milliseconds) in
            [("5s", 5000), ("1h30m", 5_400_000), ("1.5s", 1500), ("250ms", 250), ("1m0.5s", 60_500)]
        {
            assert_eq!(parse_duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for text in ["", "5", "s", "5 s", "-5s", "5d", "1..5s", "99999999999999999999h"] {
            assert_eq!(parse_duration(text), None, "{text}");
        }
    }
}
