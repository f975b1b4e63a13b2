//! Reads the mesh's own words: lines of the access log and samples of its metrics.

/// The last line that has each of these `key=value` fields.
pub fn last_access<'a>(lines: &'a [String], fields: &[(&str, &str)]) -> Option<&'a str> {
    let matches = |line: &&String| fields.iter().all(|(key, value)| access_field(line, key) == Some(value));
    lines.iter().rev().find(matches).map(String::as_str)
}

/// The value of a field of an access log line, without quotes.
fn access_field<'a>(line: &'a str, key: &str) -> Option<&'a str> {
    let mut rest = line;
    loop {
        let (name, after) = rest.split_once('=')?;
        let (value, next) = match after.strip_prefix('"') {
            Some(quoted) => {
                let end = closing_quote(quoted)?;
                (&quoted[..end], quoted[end + 1..].trim_start())
            }
            None => after.split_once(' ').unwrap_or((after, "")),
        };
        if name == key {
            return Some(value);
        }
        rest = next;
    }
}

fn closing_quote(text: &str) -> Option<usize> {
    let mut escaped = false;
    text.char_indices().find_map(|(index, character)| {
        let closes = character == '"' && !escaped;
        escaped = character == '\\' && !escaped;
        closes.then_some(index)
    })
}

/// One sample of a counter.
#[derive(Debug)]
pub struct Sample<'a> {
    name: &'a str,
    labels: Vec<(&'a str, &'a str)>,
    /// How much was counted.
    pub value: u64,
}

impl<'a> Sample<'a> {
    /// The samples of metric `name` that have all these labels, in an `OpenMetrics` text.
    pub fn find(text: &'a str, name: &str, labels: &[(&str, &str)]) -> Vec<Self> {
        let wanted = |sample: &Self| {
            sample.name == name && labels.iter().all(|(key, value)| sample.label(key) == Some(value))
        };
        text.lines().filter_map(Self::parse).filter(wanted).collect()
    }

    /// The sample with some of its labels only: there are over twenty.
    pub fn shown_with(&self, keys: &[&str]) -> String {
        let shown: Vec<_> =
            keys.iter().filter_map(|key| Some(format!("{key}=\"{}\"", self.label(key)?))).collect();
        format!("{}{{{}, …}} {}", self.name, shown.join(", "), self.value)
    }

    fn label(&self, key: &str) -> Option<&'a str> {
        self.labels.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }

    fn parse(line: &'a str) -> Option<Self> {
        let (name, rest) = line.split_once('{')?;
        let (labels, value) = rest.rsplit_once("} ")?;
        let labels = labels.split("\",").filter_map(|label| label.trim_end_matches('"').split_once("=\""));
        Some(Self { name, labels: labels.collect(), value: value.parse().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn finds_fields_also_after_quoted_ones() {
        let line = r#"outcome=denied error="no \"a=b\" here" src.addr=10.244.1.2:1 policy=demo/x"#;
        assert_eq!(access_field(line, "outcome"), Some("denied"));
        assert_eq!(access_field(line, "error"), Some(r#"no \"a=b\" here"#));
        assert_eq!(access_field(line, "src.addr"), Some("10.244.1.2:1"));
        assert_eq!(access_field(line, "policy"), Some("demo/x"));
        assert_eq!(access_field(line, "a"), None);
        assert_eq!(access_field("no field at all", "a"), None);
    }

    #[test]
    fn takes_the_last_line_that_has_all_fields() {
        let lines = ["n=1 a=x b=y", "n=2 a=x b=y", "n=3 a=x b=z"].map(str::to_owned);
        assert_eq!(last_access(&lines, &[("a", "x"), ("b", "y")]), Some("n=2 a=x b=y"));
        assert_eq!(last_access(&lines, &[("a", "y")]), None);
    }

    #[test]
    fn finds_and_shows_samples() {
        let text = "# HELP c x\nc_total{reporter=\"source\",flags=\"-\"} 3\nc_total{reporter=\"destination\",flags=\"DENY\"} 1\nup 1\n";
        let found = Sample::find(text, "c_total", &[("flags", "DENY")]);
        assert_eq!(found.len(), 1);
        assert_eq!(found[0].value, 1);
        assert_eq!(found[0].shown_with(&["reporter"]), "c_total{reporter=\"destination\", …} 1");
    }
}
