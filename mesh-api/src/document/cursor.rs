//! Walking a document of a strict kind: every step knows its path and line, and complaints pile up, so that
//! one reading reports everything that is wrong, up to a limit.

use std::{borrow::Cow, cell::RefCell, collections::BTreeMap, ops::RangeInclusive, time::Duration};

use super::{
    manifest_error::FieldError,
    nearest_word::nearest_word,
    yaml_tree::{self, Entry, Value, YamlNode},
};
use crate::plan::MAX_DURATION;

/// The shortest span of time that a field may name.
const SHORTEST_SPAN: Duration = Duration::from_millis(1);

/// Most errors, and most warnings, of one object that are told: all of them go into logs and conditions, and
/// its author decides how many there are.
const MAX_TOLD: usize = 50;
/// Most characters of a document's text that a message repeats.
const MAX_QUOTED: usize = 100;
/// Most characters of a field's path, and of what is said of it. Longer ones have a document's text in them.
const MAX_MESSAGE: usize = 1000;

/// Where a walk leaves what it found wrong.
#[derive(Default)]
pub(crate) struct Findings {
    pub errors: RefCell<CappedList>,
    pub warnings: RefCell<CappedList>,
}

/// The first findings of an object. Those after them are counted, and said to be there in one more.
#[derive(Default)]
pub(crate) struct CappedList {
    told: Vec<FieldError>,
    untold: usize,
}

impl CappedList {
    pub fn push(&mut self, fault: FieldError) {
        if self.told.len() < MAX_TOLD {
            self.told.push(fault);
        } else {
            self.untold += 1;
        }
    }

    pub fn is_empty(&self) -> bool {
        self.told.is_empty()
    }
}

impl IntoIterator for CappedList {
    type Item = FieldError;
    type IntoIter = std::vec::IntoIter<FieldError>;

    fn into_iter(mut self) -> Self::IntoIter {
        if let Some(line) = self.told.last().map(|last| last.line).filter(|_| self.untold > 0) {
            self.told.push(FieldError {
                line,
                field: None,
                problem: format!("and {} more like these", self.untold),
                fix: "mend those that are named; the rest is named then".to_owned(),
            });
        }
        self.told.into_iter()
    }
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
        self.findings.errors.borrow_mut().push(self.fault(&problem.into(), fix.into()));
    }

    /// Reports that what is here has no effect.
    pub fn warn(&self, problem: impl Into<String>, fix: impl Into<String>) {
        self.findings.warnings.borrow_mut().push(self.fault(&problem.into(), fix.into()));
    }

    /// Says that a valid field is not acted upon yet.
    pub fn warn_unsupported(&self) {
        self.warn(
            "not supported yet, ignored",
            "remove it, or leave it for a mesh that has it; the rest of the resource counts",
        );
    }

    /// Whether this is a map, as [`Cursor::fields`] demands.
    pub fn is_map(&self) -> bool {
        matches!(self.node.value, Value::Map(_))
    }

    /// Whether this is a text without characters, which protobuf does not tell from an absent one.
    pub fn is_empty_text(&self) -> bool {
        matches!(&self.node.value, Value::String(text) if text.is_empty())
    }

    /// Whether this is the number 0, of which the same is true.
    pub fn is_zero(&self) -> bool {
        matches!(&self.node.value, Value::Number(number) if number.as_f64() == Some(0.0))
    }

    /// The field with which this map comes to hold more than `most` values, empty lists and maps among them.
    pub fn field_beyond(&self, most: usize) -> Option<Cursor<'a>> {
        let Value::Map(entries) = &self.node.value else { return None };
        let mut left = most;
        let is_beyond = |entry: &&Entry| match left.checked_sub(count_up_to(&entry.value, left)) {
            Some(rest) => {
                left = rest;
                false
            }
            None => true,
        };
        entries.iter().find(is_beyond).map(|entry| self.step(entry))
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
            self.error(format!("must be a number, but is {}", described(&self.node.value)), expected);
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
            self.error(format!("must be a number, but is {}", described(&self.node.value)), expected);
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
                self.error(format!("must be a duration, but is {}", described(other)), fix);
                return None;
            }
        };
        let duration = parse_duration(text).filter(|duration| allowed(duration) && *duration <= MAX_DURATION);
        if duration.is_none() {
            self.error(format!("{} is not a duration", quoted(text)), fix);
        }
        duration
    }

    /// One of a set of words.
    pub fn enum_value<T: Clone>(&self, allowed: &[(&str, T)]) -> Option<T> {
        let text = self.text()?;
        if let Some((_, value)) = allowed.iter().find(|(word, _)| *word == text) {
            return Some(value.clone());
        }
        let words: Vec<_> = allowed.iter().map(|(word, _)| *word).collect();
        let fix = match nearest_word(text, words.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? Allowed are {}", quote_words(&words)),
            None => format!("write one of {}", quote_words(&words)),
        };
        self.error(format!("{} is not a value of this field", quoted(text)), fix);
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
        self.error(format!("must be {expected}, but is {}", described(found)), format!("write {expected}"));
    }

    fn unquoted(&self, text: &str) {
        let found = self.node.value.describe();
        self.error(format!("must be a string, but is {found}"), format!("put it in quotes: {text:?}"));
    }

    fn fault(&self, problem: &str, fix: String) -> FieldError {
        let [path, problem] = [&self.path, problem].map(|text| cut(text, MAX_MESSAGE).into_owned());
        FieldError { line: self.line, field: Some(path), problem, fix }
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
        let is_it = |entry: &&Entry| entry.key == key && !matches!(entry.value.value, Value::Null);
        self.entries.iter().find(is_it).map(|entry| self.at.step(entry))
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

/// The beginning of `text` in quotes for a message, all of it if it is short.
pub(crate) fn quoted(text: &str) -> String {
    format!("{:?}", cut(text, MAX_QUOTED))
}

/// How a person would name a value, cut if it is long.
fn described(value: &Value) -> String {
    cut(&value.describe(), MAX_QUOTED).into_owned()
}

fn cut(text: &str, most: usize) -> Cow<'_, str> {
    match text.char_indices().nth(most) {
        Some((end, _)) => format!("{}…", &text[..end]).into(),
        None => text.into(),
    }
}

/// How many values that hold no others are in `node`, itself among them; if they are more than `most`, some
/// number above that.
fn count_up_to(node: &YamlNode, most: usize) -> usize {
    let (mut count, mut rest) = (0, vec![node]);
    while let Some(node) = rest.pop().filter(|_| count <= most) {
        match &node.value {
            Value::List(items) if !items.is_empty() => rest.extend(items),
            Value::Map(entries) if !entries.is_empty() => rest.extend(entries.iter().map(|it| &it.value)),
            _ => count += 1,
        }
    }
    count
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
    fn what_is_past_the_first_findings_is_counted() {
        let count = |all: u32| {
            let mut list = CappedList::default();
            for line in 1..=all {
                let field = Some("spec".to_owned());
                list.push(FieldError { line, field, problem: "wrong".to_owned(), fix: "mend it".to_owned() });
            }
            assert_eq!(list.is_empty(), all == 0);
            let told: Vec<_> = list.into_iter().collect();
            (told.len(), told.last().map(|last| last.problem.clone()).unwrap_or_default())
        };
        assert_eq!(count(0), (0, String::new()));
        assert_eq!(count(50), (50, "wrong".to_owned()));
        assert_eq!(count(51), (51, "and 1 more like these".to_owned()));
        assert_eq!(count(150), (51, "and 100 more like these".to_owned()));
    }

    #[test]
    fn values_are_counted_wherever_they_are() {
        let list = serde_json::json!(["b", {"c": 1, "d": [], "e": {"f": null}}]);
        let json = serde_json::json!({"a": list, "g": "h", "i": {"j": true}});
        let findings = Findings::default();
        let entry = Entry { key: "spec".to_owned(), line: 1, value: YamlNode::from_json(json) };
        let field = |most| Cursor::at_root_field(&entry, &findings).field_beyond(most).map(|at| at.path);
        assert_eq!(field(3).as_deref(), Some("spec.a"));
        assert_eq!(field(4).as_deref(), Some("spec.g"));
        assert_eq!(field(5).as_deref(), Some("spec.i"));
        assert_eq!(field(6), None);
    }

    #[test]
    fn long_texts_are_cut_where_a_message_repeats_them() {
        assert_eq!(quoted("a\n"), r#""a\n""#);
        assert_eq!(quoted(&"é".repeat(100)), format!("{:?}", "é".repeat(100)));
        assert_eq!(quoted(&"é".repeat(101)), format!("{:?}", "é".repeat(100) + "…"));
        let findings = Findings::default();
        let text = "a".repeat(10_000);
        let entry = Entry { key: text.clone(), line: 1, value: YamlNode::from_json(text.into()) };
        let at = Cursor::at_root_field(&entry, &findings);
        at.boolean();
        at.duration();
        at.enum_value::<()>(&[]);
        at.integer(0..=1);
        at.number(0.0..=1.0);
        for error in findings.errors.into_inner() {
            assert!(error.problem.len() < 200, "{error:?}");
            assert!(error.field.is_some_and(|path| path.len() < 1100));
        }
    }

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
