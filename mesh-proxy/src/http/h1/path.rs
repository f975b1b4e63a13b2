//! The normal form of a request's path, in which routes and policies look at it and servers get it: RFC 3986,
//! 6.2.2, but for the case of escapes, and backslashes as slashes (Istio's `pathNormalization: BASE`).

use super::Malformed;

/// Appends the normal form of a path to `into`. Errors: it has none.
pub fn normalize_path(path: &str, into: &mut String) -> Result<(), Malformed> {
    if !path.contains(['%', '\\']) && !path.contains("/.") {
        into.push_str(path);
        return Ok(());
    }
    let start = into.len();
    for segment in unescape(path)?.split('/').skip(1) {
        into.push('/');
        into.push_str(segment);
    }
    let resolved = remove_dot_segments(&into[start..]);
    into.truncate(start);
    into.push_str(&resolved);
    Ok(())
}

/// Decodes what need not be escaped, and makes slashes of backslashes.
fn unescape(path: &str) -> Result<String, Malformed> {
    let mut text = String::with_capacity(path.len());
    let mut rest = path;
    while let Some(next) = rest.chars().next() {
        rest = &rest[next.len_utf8()..];
        match next {
            '\\' => text.push('/'),
            '%' => {
                let digits = rest.get(..2).filter(|two| two.bytes().all(|digit| digit.is_ascii_hexdigit()));
                let digits = digits.ok_or(Malformed::Invalid("the path has a `%` without two digits"))?;
                let byte = u8::from_str_radix(digits, 16).unwrap_or_default();
                if byte == 0 {
                    return Err(Malformed::Invalid("the path has a NUL"));
                }
                if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
                    text.push(char::from(byte));
                } else {
                    text.push('%');
                    text.push_str(digits);
                }
                rest = &rest[2..];
            }
            other => text.push(other),
        }
    }
    Ok(text)
}

/// Removes `.` and `..` segments (RFC 3986, 5.2.4). No path leads above the root.
fn remove_dot_segments(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    let segments: Vec<&str> = path.split('/').skip(1).collect();
    let last = segments.len().saturating_sub(1);
    for (index, segment) in segments.into_iter().enumerate() {
        match segment {
            "." | ".." => {
                if segment == ".." {
                    kept.pop();
                }
                if index == last {
                    kept.push("");
                }
            }
            other => kept.push(other),
        }
    }
    let mut resolved = String::with_capacity(path.len());
    for segment in kept {
        resolved.push('/');
        resolved.push_str(segment);
    }
    if resolved.is_empty() { "/".to_owned() } else { resolved }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn normal(path: &str) -> Result<String, Malformed> {
        let mut text = String::new();
        normalize_path(path, &mut text).map(|()| text)
    }

    #[test]
    fn paths_have_one_form() {
        for (path, expected) in [
            ("/", "/"),
            ("/a/b", "/a/b"),
            ("/a//b", "/a//b"),
            ("/a/./b/../c", "/a/c"),
            ("/a/b/..", "/a/"),
            ("/a/b/.", "/a/b/"),
            ("/..", "/"),
            ("/../../a", "/a"),
            ("/a\\..\\b", "/b"),
            ("/%61%2e%2E/%2e%2e/b", "/b"),
            ("/a%2Fb", "/a%2Fb"),
            ("/a%2fb", "/a%2fb"),
            ("/.a/..b/c.", "/.a/..b/c."),
            ("/a;x=1/b%20c", "/a;x=1/b%20c"),
            ("/a/..;/b", "/a/..;/b"),
        ] {
            assert_eq!(normal(path).as_deref(), Ok(expected), "{path}");
            assert_eq!(normal(expected).as_deref(), Ok(expected), "{expected} is normal");
        }
    }

    #[test]
    fn what_has_no_form_is_refused() {
        for path in ["/%", "/%1", "/%zz", "/%00", "/a%0", "/%\u{e9}1"] {
            assert!(normal(path).is_err(), "{path}");
        }
    }
}
