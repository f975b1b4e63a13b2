//! What shows of a regular expression of RE2 without compiling it: brackets that do not match, repetitions of
//! nothing, escapes and groups that other engines have and RE2 has not.

use crate::document::cursor::{Cursor, quoted};

/// Most bytes of an expression, as in Istio.
const MAX_LENGTH: usize = 1024;
/// Most times that `{n}` may repeat, as in RE2.
const MAX_REPETITIONS: u32 = 1000;
/// Names of classes of characters, which stand in `[[:…:]]`, also with a `^` before them.
const CLASSES: [&str; 14] = [
    "alnum", "alpha", "ascii", "blank", "cntrl", "digit", "graph", "lower", "print", "punct", "space",
    "upper", "word", "xdigit",
];

/// Reports what is wrong with `pattern`.
pub(in crate::resource) fn check(at: &Cursor<'_>, pattern: &str) {
    if pattern.is_empty() {
        at.error("the regular expression is empty", "write one, or remove the condition");
    } else if pattern.len() > MAX_LENGTH {
        let problem = format!("the regular expression is longer than {MAX_LENGTH} bytes");
        at.error(problem, "shorten it, or compare with several");
    } else if let Err(fault) = parse(pattern) {
        let fix = "write a regular expression of RE2 (https://github.com/google/re2/wiki/Syntax)";
        at.error(format!("{} is not a regular expression: {fault}", quoted(pattern)), fix);
    }
}

fn parse(pattern: &str) -> Result<(), &'static str> {
    let mut parser = Parser { rest: pattern, open: 0, before: Before::Nothing };
    while let Some(next) = parser.take() {
        parser.step(next)?;
    }
    if parser.open > 0 { Err("a `(` is not closed") } else { Ok(()) }
}

struct Parser<'a> {
    rest: &'a str,
    /// Groups that are not closed.
    open: usize,
    before: Before,
}

/// What is before the next character.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing that could be repeated.
    Nothing,
    /// Something that could be.
    Part,
    /// A repetition, which can't be repeated.
    Repetition,
}

impl Parser<'_> {
    fn take(&mut self) -> Option<char> {
        let next = self.rest.chars().next()?;
        self.rest = &self.rest[next.len_utf8()..];
        Some(next)
    }

    fn step(&mut self, next: char) -> Result<(), &'static str> {
        match next {
            '\\' => self.escape()?,
            '[' => self.class()?,
            '(' => return self.group(),
            ')' => self.open = self.open.checked_sub(1).ok_or("a `)` has no `(` before it")?,
            '|' => {
                self.before = Before::Nothing;
                return Ok(());
            }
            '*' | '+' | '?' => return self.repetition(),
            '{' => {
                if let Some(length) = counted(self.rest)? {
                    self.rest = &self.rest[length..];
                    return self.repetition();
                }
            }
            _ => {}
        }
        self.before = Before::Part;
        Ok(())
    }

    fn repetition(&mut self) -> Result<(), &'static str> {
        if self.before != Before::Part {
            return Err("a repetition has nothing before it that it could repeat");
        }
        // The one that takes as little as it can.
        self.rest = self.rest.strip_prefix('?').unwrap_or(self.rest);
        self.before = Before::Repetition;
        Ok(())
    }

    fn escape(&mut self) -> Result<(), &'static str> {
        match self.take().ok_or("it ends within an escape")? {
            'Q' => self.rest = self.rest.split_once("\\E").map_or("", |(_, behind)| behind),
            '8' | '9' => return Err("RE2 has no back-references"),
            '1'..='7' if !self.rest.starts_with(|digit| matches!(digit, '0'..='7')) => {
                return Err("RE2 has no back-references");
            }
            letter if letter.is_ascii_alphabetic() && !"aAbBCdDEfnpPrsStvwWxz".contains(letter) => {
                return Err("RE2 does not know one of its escapes");
            }
            _ => {}
        }
        Ok(())
    }

    fn class(&mut self) -> Result<(), &'static str> {
        self.rest = self.rest.strip_prefix('^').unwrap_or(self.rest);
        // A bracket that comes first stands for itself.
        self.rest = self.rest.strip_prefix(']').unwrap_or(self.rest);
        while let Some(next) = self.take() {
            match next {
                ']' => return Ok(()),
                '\\' => self.escape()?,
                '[' => self.named_class()?,
                _ => {}
            }
        }
        Err("a `[` is not closed")
    }

    /// What is behind a `[` within a class. Without an end it is no name, and the bracket stands for itself.
    fn named_class(&mut self) -> Result<(), &'static str> {
        let named = self.rest.strip_prefix(':').and_then(|rest| rest.split_once(":]"));
        let Some((name, behind)) = named else { return Ok(()) };
        if !CLASSES.contains(&name.strip_prefix('^').unwrap_or(name)) {
            return Err("RE2 does not know one of its classes of characters");
        }
        self.rest = behind;
        Ok(())
    }

    fn group(&mut self) -> Result<(), &'static str> {
        self.open += 1;
        let before = std::mem::replace(&mut self.before, Before::Nothing);
        let Some(kind) = self.rest.strip_prefix('?') else { return Ok(()) };
        if ["=", "!", "<=", "<!"].iter().any(|look| kind.starts_with(look)) {
            return Err("RE2 has no look-around");
        }
        let is_named = kind.starts_with('<') || kind.starts_with("P<");
        let end = if is_named { kind.find('>') } else { kind.find([':', ')']) };
        let end = end.ok_or("a `(?` is not ended")?;
        if !is_named && !kind[..end].chars().all(|flag| "imsU-".contains(flag)) {
            return Err("RE2 does not know one of its groups");
        }
        // What has flags alone ends here, and is nothing itself.
        if kind[end..].starts_with(')') {
            self.open -= 1;
            self.before = if before == Before::Repetition { Before::Part } else { before };
        }
        self.rest = &kind[end + 1..];
        Ok(())
    }
}

/// Length of `n}`, `n,}` or `n,m}` at the beginning of `text`. Another brace stands for itself.
fn counted(text: &str) -> Result<Option<usize>, &'static str> {
    let Some((counts, _)) = text.split_once('}') else { return Ok(None) };
    let (least, most) = counts.split_once(',').unwrap_or((counts, counts));
    let is_number = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    if least.is_empty() || !is_number(least) || !is_number(most) {
        return Ok(None);
    }
    // What does not fit is too many as well.
    let [least, most] =
        [least, if most.is_empty() { least } else { most }].map(|n| n.parse().unwrap_or(u32::MAX));
    if most > MAX_REPETITIONS || least > most {
        return Err("it repeats more than 1,000 times, or at most less often than at least");
    }
    Ok(Some(counts.len() + 1))
}

#[cfg(test)]
mod tests {
    use super::parse;

    #[test]
    fn good_expressions_are_taken() {
        for good in [
            "a",
            ".*",
            "a.*b+?c??",
            "^/api/(v1|v2)/[^/]+$",
            "(?i)abc",
            "(?i:abc)*",
            "(?P<name>x)",
            "(?<name>x)",
            "[]a]",
            "[^]a]+",
            "[[:alpha:]_-]*",
            "[a\\]b]",
            "a{2}",
            "a{2,}",
            "a{2,5}?",
            "a{",
            "a{,5}",
            "{x}",
            "\\d+\\.\\w",
            "\\Q(*\\E+",
            "\\Q(",
            "\\pN",
            "\\x{10FFFF}",
            "\\012",
            "\\12",
            "a|b|",
            "()",
            "\\/",
            "é+",
            "(a*)*",
            "^*",
            "[^[:]+",
            "[[:]+",
            "[[:^digit:]x]",
            "[[a:]",
            "a(?i)+",
            "a*(?i)*",
        ] {
            assert_eq!(parse(good), Ok(()), "{good}");
        }
    }

    #[test]
    fn what_re2_would_not_take_is_refused() {
        for (bad, why) in [
            ("*", "nothing before"),
            ("a**", "nothing before"),
            ("a{2}{3}", "nothing before"),
            ("(*a)", "nothing before"),
            ("a|+", "nothing before"),
            ("(?i)+", "nothing before"),
            ("(a|(?i)+)", "nothing before"),
            ("[[:a-z:]]", "classes"),
            ("[[:]a:]]", "classes"),
            ("(a", "`(`"),
            ("a)", "`)`"),
            ("[a", "`[`"),
            ("[]", "`[`"),
            ("a\\", "ends within"),
            ("(a)\\1", "back-references"),
            ("(?=a)", "look-around"),
            ("(?<!a)b", "look-around"),
            ("(?>a)", "groups"),
            ("(?i", "not ended"),
            ("\\Za", "escapes"),
            ("a{1001}", "1,000 times"),
            ("a{3,2}", "less often"),
        ] {
            let fault = parse(bad).expect_err(bad);
            assert!(fault.contains(why), "{bad}: {fault}");
        }
    }
}
