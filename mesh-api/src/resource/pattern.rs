//! Values of a policy that may begin or end with `*`.

use std::fmt;

/// A value to compare a string with, in the forms that Istio's `AuthorizationPolicy` knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// `x`: the very string.
    Exact(String),
    /// `x*`: whatever begins so.
    Prefix(String),
    /// `*x`: whatever ends so.
    Suffix(String),
    /// `*`: whatever is not empty.
    Present,
    /// `x*y`: a star within. Only names of namespaces may be written so.
    Glob(String),
}

impl From<&str> for Pattern {
    fn from(text: &str) -> Self {
        let (head, tail) = (text.strip_prefix('*'), text.strip_suffix('*'));
        match (head, tail) {
            (Some(""), _) => Self::Present,
            (Some(rest), None) if !rest.contains('*') => Self::Suffix(rest.to_owned()),
            (None, Some(rest)) if !rest.contains('*') => Self::Prefix(rest.to_owned()),
            (None, None) if !text.contains('*') => Self::Exact(text.to_owned()),
            _ => Self::Glob(text.to_owned()),
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(text) | Self::Glob(text) => f.write_str(text),
            Self::Prefix(text) => write!(f, "{text}*"),
            Self::Suffix(text) => write!(f, "*{text}"),
            Self::Present => f.write_str("*"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_star_decides_the_form() {
        assert_eq!(Pattern::from("a"), Pattern::Exact("a".into()));
        assert_eq!(Pattern::from("a*"), Pattern::Prefix("a".into()));
        assert_eq!(Pattern::from("*a"), Pattern::Suffix("a".into()));
        assert_eq!(Pattern::from("*"), Pattern::Present);
        for glob in ["a*b", "*a*", "**", "a**", "*a*b"] {
            assert_eq!(Pattern::from(glob), Pattern::Glob(glob.into()), "{glob}");
            assert_eq!(Pattern::from(glob).to_string(), glob);
        }
    }
}
