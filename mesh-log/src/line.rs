//! How a line looks, and why nothing in a value can look like a line or a field.

use std::fmt::{Display, Write as _};
use std::time::SystemTime;

use tracing::Level;

/// A line with its end is no longer than this (`PIPE_BUF`): a pipe takes it whole or not at all, so that
/// lines of the processes that share a pipe are never mixed.
pub(crate) const LONGEST_LINE: usize = 4096;

/// Bytes of one value, escaped. What is longer is cut.
const LONGEST_VALUE: usize = 1024;

/// Bytes of the sentence that a line is about, escaped.
const LONGEST_MESSAGE: usize = 2048;

/// Kept free for what is added last: a count, and that something was cut.
const RESERVE: usize = 64;

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `key=value` pairs (logfmt).
    Text,
    /// One JSON object.
    Json,
}

/// A line that is being written. Writing to a string does not fail, so its results are let go.
#[derive(Debug)]
pub struct Line {
    format: Format,
    text: String,
    scratch: String,
    /// Nothing stands before the next field.
    first: bool,
    /// Something did not fit.
    cut: bool,
    end: &'static str,
}

impl Line {
    /// A line that is nothing but fields.
    pub fn of_fields(format: Format) -> Self {
        match format {
            Format::Text => Self::starting(format, String::with_capacity(512), "\n"),
            Format::Json => Self::starting(format, String::from("{"), "}\n"),
        }
    }

    /// A line of a program's log, in the forms that `tracing` has: what happened and the fields come next.
    pub fn of_event(format: Format, level: Level, target: &str) -> Self {
        let time = humantime::format_rfc3339_micros(SystemTime::now());
        let mut text = String::with_capacity(256);
        let end = match format {
            Format::Text => {
                let _written = write!(text, "{time} {level:>5} ");
                push_escaped(&mut text, target, LONGEST_VALUE);
                text.push_str(": ");
                "\n"
            }
            Format::Json => {
                let _written = write!(text, r#"{{"timestamp":"{time}","level":"{level}","target":""#);
                push_escaped(&mut text, target, LONGEST_VALUE);
                text.push_str(r#"","fields":{"#);
                "}}\n"
            }
        };
        Self::starting(format, text, end)
    }

    /// A line that is nothing but words.
    pub(crate) fn of_words(words: &str) -> Self {
        Self::starting(Format::Text, escaped(words), "\n")
    }

    fn starting(format: Format, text: String, end: &'static str) -> Self {
        Self { format, text, scratch: String::new(), first: true, cut: false, end }
    }

    /// What happened, in words.
    pub fn message(&mut self, message: &str) {
        if self.format == Format::Json {
            return self.value("message", message, LONGEST_MESSAGE);
        }
        // Words without quotes; but what could be taken for a field, or for more than a line, gets them.
        let are_words = |text: &str| text.chars().all(|it| is_plain(it) && !"\"=\\".contains(it));
        if !self.first {
            self.text.push(' ');
        }
        if message.len() <= LONGEST_MESSAGE && are_words(message) {
            self.text.push_str(message);
        } else {
            self.cut |= push_quoted(&mut self.text, message, LONGEST_MESSAGE);
        }
        self.first = false;
    }

    /// A value, wherever it comes from. Quoted where it must be, as `logfmt` readers expect.
    pub fn text(&mut self, name: &str, value: &str) {
        self.value(name, value, LONGEST_VALUE);
    }

    /// The same of what has a form as text.
    pub fn show(&mut self, name: &str, value: impl Display) {
        let mut scratch = std::mem::take(&mut self.scratch);
        let _written = write!(scratch, "{value}");
        self.value(name, &scratch, LONGEST_VALUE);
        scratch.clear();
        self.scratch = scratch;
    }

    /// A number.
    pub fn number(&mut self, name: &str, value: impl Into<i128>) {
        self.bare(name, value.into());
    }

    /// Yes or no.
    pub fn flag(&mut self, name: &str, value: bool) {
        self.bare(name, value);
    }

    /// How many this line stands for, and whether their fields were not all the same.
    pub(crate) fn count(&mut self, count: u64, mixed: bool) {
        self.name("count");
        let _written = write!(self.text, "{count}");
        if mixed {
            self.name("mixed");
            self.text.push_str("true");
        }
    }

    /// The line and its end.
    pub(crate) fn finish(mut self) -> String {
        if self.cut {
            self.name("cut");
            self.text.push_str("true");
        }
        self.text.push_str(self.end);
        self.text
    }

    fn value(&mut self, name: &str, value: &str, most: usize) {
        // Its name, an equals sign or colon, quotes and a separator.
        let room = LONGEST_LINE.saturating_sub(self.text.len() + name.len() + RESERVE + 8);
        if room < RESERVE {
            self.cut = true;
            return;
        }
        let most = most.min(room);
        self.name(name);
        let is_safe = |byte: u8| byte.is_ascii_graphic() && !b"\"=\\".contains(&byte);
        let is_bare = self.format == Format::Text && !value.is_empty() && value.len() <= most;
        if is_bare && value.bytes().all(is_safe) {
            self.text.push_str(value);
        } else {
            self.cut |= push_quoted(&mut self.text, value, most);
        }
    }

    /// A value of which no form needs quotes.
    fn bare(&mut self, name: &str, value: impl Display) {
        if self.text.len() + name.len() + 2 * RESERVE > LONGEST_LINE {
            self.cut = true;
            return;
        }
        self.name(name);
        let _written = write!(self.text, "{value}");
    }

    /// Names are ours: they are written in the code.
    fn name(&mut self, name: &str) {
        let (separator, quote, after) = match self.format {
            Format::Text => (" ", "", "="),
            Format::Json => (",", "\"", "\":"),
        };
        if !self.first {
            self.text.push_str(separator);
        }
        self.first = false;
        for part in [quote, name, after] {
            self.text.push_str(part);
        }
    }
}

/// What somebody else said, for a place that shows text as it is: escaped as in a line, and cut.
pub fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    push_escaped(&mut escaped, text, LONGEST_MESSAGE);
    escaped
}

/// A string as JSON has it, which is what `logfmt` readers take too. True if it had to be cut.
fn push_quoted(out: &mut String, value: &str, most: usize) -> bool {
    out.push('"');
    let cut = push_escaped(out, value, most);
    out.push('"');
    cut
}

/// Appends a value so that nothing in it ends a line or a string, or moves a terminal's cursor: everything
/// that can't be seen is escaped as in JSON. At most `most` bytes; true if the value was cut for that.
fn push_escaped(out: &mut String, value: &str, most: usize) -> bool {
    const ELLIPSIS: char = '…';
    let limit = out.len() + most.saturating_sub(ELLIPSIS.len_utf8());
    let mut safe = out.len();
    for char in value.chars() {
        push_char(out, char);
        if out.len() <= limit {
            safe = out.len();
        } else if out.len() > limit + ELLIPSIS.len_utf8() {
            out.truncate(safe);
            out.push(ELLIPSIS);
            return true;
        }
    }
    false
}

fn push_char(out: &mut String, char: char) {
    match char {
        '"' => out.push_str("\\\""),
        '\\' => out.push_str("\\\\"),
        '\n' => out.push_str("\\n"),
        '\r' => out.push_str("\\r"),
        '\t' => out.push_str("\\t"),
        _ if is_plain(char) => out.push(char),
        _ => {
            for unit in char.encode_utf16(&mut [0; 2]) {
                let _written = write!(out, "\\u{unit:04x}");
            }
        }
    }
}

/// Whether a character is seen as itself: no control, no line or paragraph separator, nothing that turns the
/// direction of text, joins the character before it or has no width.
fn is_plain(char: char) -> bool {
    char == ' ' || char.is_ascii_graphic() || (!char.is_ascii() && char.escape_debug().len() == 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a peer could send to be taken for more than a value.
    const HOSTILE: [&str; 9] = [
        "bye\n2026-11-29T00:00:00.000000Z  WARN mesh_agent: FORGED",
        "carriage\rreturn",
        "\u{1b}[2K\u{1b}[1A erased",
        "next\u{85}line \u{2028} \u{2029}",
        "\u{202e}desrever",
        "x outcome=closed",
        "a\" outcome=\"closed",
        "back\\slash\\",
        "zero\0 and \u{7f}",
    ];

    fn access(format: Format) -> String {
        let mut line = Line::of_fields(format);
        line.show("plain", "10.0.0.1:80");
        line.text("spaced", "denied by \"x\"\nnew");
        line.text("empty", "");
        line.text("safe", "shop/web");
        line.number("number", 5);
        line.finish()
    }

    #[test]
    fn text_is_quoted_where_it_must_be() {
        assert_eq!(
            access(Format::Text),
            "plain=10.0.0.1:80 spaced=\"denied by \\\"x\\\"\\nnew\" empty=\"\" safe=shop/web number=5\n"
        );
    }

    #[test]
    fn json_is_one_object() {
        let read: serde_json::Value = serde_json::from_str(&access(Format::Json)).unwrap();
        let expected = serde_json::json!({
            "plain": "10.0.0.1:80", "spaced": "denied by \"x\"\nnew", "empty": "", "safe": "shop/web", "number": 5
        });
        assert_eq!(read, expected);
    }

    /// Splits a line as `logfmt` readers do.
    fn fields(line: &str) -> Vec<(String, String)> {
        let (mut rest, mut fields) = (line.strip_suffix('\n').unwrap(), Vec::new());
        while let Some((name, after)) = rest.split_once('=') {
            let length = if let Some(quoted) = after.strip_prefix('"') {
                let mut escaped = false;
                let end = quoted.find(|it| {
                    let ends = it == '"' && !escaped;
                    escaped = it == '\\' && !escaped;
                    ends
                });
                end.unwrap() + 2
            } else {
                after.find(' ').unwrap_or(after.len())
            };
            let value = &after[..length];
            let value =
                if value.starts_with('"') { serde_json::from_str(value).unwrap() } else { value.to_owned() };
            fields.push((name.trim().to_owned(), value));
            rest = &after[length..];
        }
        fields
    }

    #[test]
    fn nothing_in_a_value_is_a_line_or_a_field() {
        for hostile in HOSTILE {
            let mut line = Line::of_fields(Format::Text);
            line.text("error", hostile);
            line.text("after", "x");
            let text = line.finish();
            assert!(text.trim_end_matches('\n').chars().all(is_plain), "{text:?}");
            let expected = [("error", hostile), ("after", "x")].map(|(a, b)| (a.to_owned(), b.to_owned()));
            assert_eq!(fields(&text), expected);
        }
    }

    #[test]
    fn nothing_in_a_message_is_a_line_or_a_field() {
        for hostile in HOSTILE {
            for format in [Format::Text, Format::Json] {
                let mut line = Line::of_event(format, Level::WARN, "mesh_agent::x");
                line.message(hostile);
                line.text("peer", "10.0.0.1");
                let text = line.finish();
                assert!(text.trim_end_matches('\n').chars().all(is_plain), "{text:?}");
                if format == Format::Json {
                    let read: serde_json::Value = serde_json::from_str(&text).unwrap();
                    assert_eq!(read["fields"]["message"], hostile);
                    assert_eq!(read["fields"]["peer"], "10.0.0.1");
                } else {
                    let (_, after) = text.split_once("mesh_agent::x: ").unwrap();
                    let outside_of_quotes = after.rsplit('"').next().unwrap().trim_end();
                    assert!(outside_of_quotes.ends_with(" peer=10.0.0.1"), "{text}");
                    assert_eq!(outside_of_quotes.matches('=').count(), 1, "{text}");
                }
            }
        }
    }

    #[test]
    fn a_line_is_never_longer_than_a_pipe_takes_at_once_and_stays_readable() {
        let long = "\"\u{1b}x".repeat(10_000);
        for format in [Format::Text, Format::Json] {
            let mut line = Line::of_event(format, Level::WARN, &long);
            line.message(&long);
            for name in ["a", "b", "c", "d"] {
                line.text(name, &long);
            }
            (0..100).for_each(|number| line.number("number", number));
            line.count(u64::MAX, true);
            let text = line.finish();
            assert!(text.len() <= LONGEST_LINE, "{}", text.len());
            assert!(text.contains("cut") && text.contains("18446744073709551615"), "{text}");
            if format == Format::Json {
                serde_json::from_str::<serde_json::Value>(&text).unwrap();
            }
        }
    }

    #[test]
    fn what_fits_is_not_cut() {
        for length in LONGEST_VALUE - 4..LONGEST_VALUE + 3 {
            let mut line = Line::of_fields(Format::Json);
            line.text("x", &"y".repeat(length));
            let text = line.finish();
            assert_eq!(text.contains("cut"), length > LONGEST_VALUE, "{length}");
        }
    }
}
