//! Label selectors as kubectl takes them: `app=x,tier!=y,env in (a,b),stage notin (c),owner,!z`.

use kube::core::{Expression, Selector};

/// Longest name or value of a label.
const LONGEST: usize = 63;

/// Reads a selector. Errors say which part is wrong and how it is written.
pub fn parse(text: &str) -> Result<Selector, String> {
    parts(text)?.into_iter().map(requirement).collect()
}

/// What stands between commas, those in brackets apart.
fn parts(text: &str) -> Result<Vec<&str>, String> {
    let (mut parts, mut start, mut is_inside) = (Vec::new(), 0, false);
    for (at, character) in text.char_indices() {
        match character {
            '(' if is_inside => return Err(format!("{text:?} has a bracket in brackets")),
            '(' => is_inside = true,
            ')' if !is_inside => return Err(format!("{text:?} has a bracket that nothing opens")),
            ')' => is_inside = false,
            ',' if !is_inside => {
                parts.push(text[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
    }
    if is_inside {
        return Err(format!("{text:?} has a bracket that nothing closes"));
    }
    parts.push(text[start..].trim());
    Ok(parts)
}

fn requirement(part: &str) -> Result<Expression, String> {
    if let Some(list) = part.strip_suffix(')') {
        return of_set(part, list);
    }
    if let Some((key, value)) = part.split_once("!=") {
        return Ok(Expression::NotEqual(self::key(key)?, self::value(value)?));
    }
    if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        return Ok(Expression::Equal(self::key(key)?, self::value(value)?));
    }
    match part.strip_prefix('!') {
        Some(key) => Ok(Expression::DoesNotExist(self::key(key)?)),
        None => Ok(Expression::Exists(key(part)?)),
    }
}

/// `KEY in (A,B` or `KEY notin (A,B`.
fn of_set(part: &str, list: &str) -> Result<Expression, String> {
    let wrong = || format!("{part:?} is neither `KEY in (A,B)` nor `KEY notin (A,B)`");
    let (head, values) = list.split_once('(').ok_or_else(wrong)?;
    let values = values.split(',').map(value).collect::<Result<_, _>>()?;
    let (key, operator) = head.trim().split_once(char::is_whitespace).ok_or_else(wrong)?;
    match operator.trim() {
        "in" => Ok(Expression::In(self::key(key)?, values)),
        "notin" => Ok(Expression::NotIn(self::key(key)?, values)),
        _ => Err(wrong()),
    }
}

/// A label's key: a name, and a DNS name and a slash before it or not.
fn key(text: &str) -> Result<String, String> {
    let text = text.trim();
    let (prefix, name) = text.rsplit_once('/').map_or((None, text), |(prefix, name)| (Some(prefix), name));
    let is_dns =
        |it: &str| it.chars().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || ".-".contains(c));
    if name.is_empty() || !is_word(name) || prefix.is_some_and(|it| it.is_empty() || !is_dns(it)) {
        return Err(format!("{text:?} is no key of a label, such as `app` or `example.com/tier`"));
    }
    Ok(text.to_owned())
}

/// A label's value, which may be empty.
fn value(text: &str) -> Result<String, String> {
    let text = text.trim();
    if !is_word(text) {
        return Err(format!(
            "{text:?} is no value of a label: at most {LONGEST} letters, digits, `-`, `_`, `.`"
        ));
    }
    Ok(text.to_owned())
}

/// Of what names and values consist. They begin and end with a letter or digit.
fn is_word(text: &str) -> bool {
    let is_plain = |c: char| c.is_ascii_alphanumeric();
    text.len() <= LONGEST
        && text.chars().all(|c| is_plain(c) || "-_.".contains(c))
        && text.chars().next().is_none_or(is_plain)
        && text.chars().last().is_none_or(is_plain)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kube::core::SelectorExt;

    #[test]
    fn selectors_choose_as_kubectls_do() {
        let labels = |pairs: &[(&str, &str)]| {
            pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
        };
        let web = labels(&[("app", "web"), ("env", "a"), ("example.com/tier", "front")]);
        for (selector, expected) in [
            ("app=web", true),
            ("app==web", true),
            ("app = web , env=a", true),
            ("app=db", false),
            ("app!=db,other!=x", true),
            ("app!=web", false),
            ("env in (a,b)", true),
            ("env in ( b , c )", false),
            ("env notin (b),missing notin (a)", true),
            ("app,!missing", true),
            ("missing", false),
            ("!app", false),
            ("example.com/tier=front", true),
            ("empty=", false),
        ] {
            assert_eq!(parse(selector).unwrap().matches(&web), expected, "{selector}");
        }
    }

    #[test]
    fn what_is_no_selector_is_named() {
        for (selector, named) in [
            ("", "no key"),
            ("app=web,", "no key"),
            ("=web", "no key"),
            ("app in a,b", "no key"),
            ("app is (a)", "neither"),
            ("app in (a", "nothing closes"),
            ("app in a)", "nothing opens"),
            ("app in ((a))", "in brackets"),
            ("app=we b", "no value"),
            ("app=-web", "no value"),
            ("Example.com/a", "no key"),
        ] {
            let error = parse(selector).unwrap_err();
            assert!(error.contains(named), "{selector}: {error}");
        }
    }
}
