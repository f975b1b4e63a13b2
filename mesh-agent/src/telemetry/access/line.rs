//! How a line looks.

use std::fmt::{Display, Write as _};

/// How a line looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// `key=value` pairs.
    Text,
    /// One JSON object.
    Json,
}

/// A line that is being written. Writing to a string does not fail, so its results are let go.
pub(super) struct Line {
    format: Format,
    text: String,
}

impl Line {
    pub(super) fn new(format: Format) -> Self {
        Self { format, text: String::with_capacity(512) }
    }

    /// A number.
    pub(super) fn number(&mut self, name: &str, value: u64) {
        self.name(name);
        let _written = write!(self.text, "{value}");
    }

    /// A value of our own making, such as an address, which never needs quotes in `key=value` pairs.
    pub(super) fn plain(&mut self, name: &str, value: impl Display) {
        self.name(name);
        let _written = match self.format {
            Format::Text => write!(self.text, "{value}"),
            Format::Json => write!(self.text, "\"{value}\""),
        };
    }

    /// Text from elsewhere. Quoted where it must be, as `logfmt` readers expect.
    pub(super) fn text(&mut self, name: &str, value: &str) {
        let is_safe = |byte: u8| byte.is_ascii_graphic() && !b"\"=\\".contains(&byte);
        if !value.is_empty() && value.bytes().all(is_safe) {
            return self.plain(name, value);
        }
        self.name(name);
        let _written = write!(self.text, "{}", serde_json::Value::from(value));
    }

    /// The line.
    pub(super) fn finish(mut self) -> String {
        if self.format == Format::Json {
            self.text.push('}');
        }
        self.text
    }

    fn name(&mut self, name: &str) {
        let first = self.text.is_empty();
        let _written = match self.format {
            Format::Text if first => write!(self.text, "{name}="),
            Format::Text => write!(self.text, " {name}="),
            Format::Json if first => write!(self.text, "{{\"{name}\":"),
            Format::Json => write!(self.text, ",\"{name}\":"),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(format: Format) -> String {
        let mut line = Line::new(format);
        line.plain("plain", "10.0.0.1:80");
        line.text("spaced", "denied by \"x\"\nnew");
        line.text("empty", "");
        line.text("safe", "shop/web");
        line.number("number", 5);
        line.finish()
    }

    #[test]
    fn text_is_quoted_where_it_must_be() {
        assert_eq!(
            line(Format::Text),
            r#"plain=10.0.0.1:80 spaced="denied by \"x\"\nnew" empty="" safe=shop/web number=5"#
        );
    }

    #[test]
    fn json_is_one_object() {
        let read: serde_json::Value = serde_json::from_str(&line(Format::Json)).unwrap();
        let expected = serde_json::json!({
            "plain": "10.0.0.1:80", "spaced": "denied by \"x\"\nnew", "empty": "", "safe": "shop/web", "number": 5
        });
        assert_eq!(read, expected);
    }
}
