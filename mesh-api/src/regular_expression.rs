//! Regular expressions of users, bounded: they come from whoever may write into one namespace.

use regex::{Regex, RegexBuilder};

/// Most bytes of a compiled expression. Those of the usual kind have a few thousand.
const MAX_COMPILED: usize = 64 << 10;
/// Most bytes of the cache that a search builds up, for each thread that searches.
const MAX_CACHE: usize = 256 << 10;

/// A regular expression in the syntax of RE2, compiled. A search takes a time that is linear in the text.
#[derive(Clone, Debug)]
pub struct RegularExpression {
    /// Finds it anywhere in a text.
    anywhere: Regex,
    /// Matches a whole text alone.
    whole: Regex,
}

impl RegularExpression {
    /// Compiles an expression. Errors: it is none, has a part that RE2 has and this library has not (`\C`,
    /// `\Q`), or takes too much room.
    pub fn new(pattern: &str) -> Result<Self, String> {
        let compile = |pattern: &str| {
            let mut builder = RegexBuilder::new(pattern);
            builder.size_limit(MAX_COMPILED).dfa_size_limit(MAX_CACHE).build().map_err(|error| match error {
                regex::Error::CompiledTooBig(limit) => {
                    format!("it takes more than {} KiB when it is compiled", limit >> 10)
                }
                other => other.to_string().lines().last().unwrap_or_default().to_owned(),
            })
        };
        Ok(Self { anywhere: compile(pattern)?, whole: compile(&format!(r"\A(?:{pattern})\z"))? })
    }

    /// Whether it matches the whole of a text.
    pub fn matches_whole(&self, text: &str) -> bool {
        self.whole.is_match(text)
    }

    /// Replaces each match by a substitution in which `\1` to `\9` stand for the groups, `\0` for the whole
    /// match, and `\\` for a backslash. None: the result would be longer than `most` bytes.
    pub fn replace_all(&self, text: &str, substitution: &str, most: usize) -> Option<String> {
        let mut result = String::new();
        let mut behind = 0;
        for groups in self.anywhere.captures_iter(text) {
            let found = groups.get_match();
            result.push_str(&text[behind..found.start()]);
            behind = found.end();
            let mut rest = substitution.chars();
            while let Some(next) = rest.next() {
                let escaped = if next == '\\' { rest.next() } else { None };
                match escaped.map(|next| (next, next.to_digit(10))) {
                    None => result.push(next),
                    Some((_, Some(group))) => {
                        result.push_str(groups.get(group as usize).map_or("", |found| found.as_str()));
                    }
                    Some((other, None)) => result.push(other),
                }
                if result.len() > most {
                    return None;
                }
            }
        }
        result.push_str(&text[behind..]);
        (result.len() <= most).then_some(result)
    }
}

impl PartialEq for RegularExpression {
    fn eq(&self, other: &Self) -> bool {
        self.anywhere.as_str() == other.anywhere.as_str()
    }
}

impl Eq for RegularExpression {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_expression_matches_the_whole_text() {
        let regex = RegularExpression::new("/v[12]|/x").unwrap();
        for (text, fits) in [("/v1", true), ("/x", true), ("/v1/a", false), ("a/x", false), ("/v1\n", false)]
        {
            assert_eq!(regex.matches_whole(text), fits, "{text:?}");
        }
    }

    #[test]
    fn groups_are_put_into_the_substitution() {
        let regex = RegularExpression::new("/([a-z]+)/([a-z]+)").unwrap();
        let replaced = |text: &str, substitution: &str| regex.replace_all(text, substitution, 10);
        assert_eq!(replaced("/a/b/c/d", r"/\2/\1").as_deref(), Some("/b/a/d/c"));
        assert_eq!(replaced("x/a/b", r"\0\\\3").as_deref(), Some(r"x/a/b\"));
        assert_eq!(replaced("nothing", "x").as_deref(), Some("nothing"));
        assert_eq!((replaced("/a/b/c/d", r"\0\0"), replaced("long nothing", "x")), (None, None));
    }

    #[test]
    fn what_is_none_or_takes_too_much_room_is_refused() {
        assert!(RegularExpression::new("(").is_err());
        let large = RegularExpression::new(r"(\pL{100}){100}").unwrap_err();
        assert!(large.contains("64 KiB"), "{large}");
    }
}
