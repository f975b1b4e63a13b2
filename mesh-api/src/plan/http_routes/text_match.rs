//! How a text of a request is compared.

use super::super::field_parsing::Invalid;
use crate::regular_expression::RegularExpression;
use crate::wire::ext as wire;
use crate::wire::ext::string_match::Form;

/// How a text is compared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TextMatch {
    /// It is there, whatever it says.
    Present,
    /// It is this one.
    Exact(Box<str>),
    /// It begins so.
    Prefix(Box<str>),
    /// It is this path, or goes on behind it with a slash. Empty: any path.
    PathPrefix(Box<str>),
    /// The expression matches the whole of it.
    Regex(RegularExpression),
}

impl TextMatch {
    /// Whether a text that is there fits.
    pub fn fits(&self, text: &str) -> bool {
        match self {
            Self::Present => true,
            Self::Exact(exact) => text == &**exact,
            Self::Prefix(prefix) => text.starts_with(&**prefix),
            Self::PathPrefix(prefix) => {
                let rest = text.strip_prefix(&**prefix);
                rest.is_some_and(|rest| prefix.is_empty() || rest.is_empty() || rest.starts_with('/'))
            }
            Self::Regex(regex) => regex.matches_whole(text),
        }
    }

    /// The same, with upper and lower case alike for an exact text and a prefix.
    pub fn fits_ignoring_case(&self, text: &str) -> bool {
        match self {
            Self::Exact(exact) => text.eq_ignore_ascii_case(exact),
            Self::Prefix(prefix) => {
                text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
            }
            Self::Present | Self::PathPrefix(_) | Self::Regex(_) => self.fits(text),
        }
    }
}

impl TryFrom<&wire::StringMatch> for TextMatch {
    type Error = Invalid;

    fn try_from(from: &wire::StringMatch) -> Result<Self, Invalid> {
        Ok(match &from.form {
            None => Self::Present,
            Some(Form::Exact(text)) => Self::Exact(text.as_str().into()),
            Some(Form::Prefix(text)) => Self::Prefix(text.as_str().into()),
            Some(Form::PathPrefix(path)) => Self::PathPrefix(path.trim_end_matches('/').into()),
            Some(Form::Regex(pattern)) => {
                let regex = RegularExpression::new(pattern);
                Self::Regex(regex.map_err(|reason| Invalid::Regex { reason })?)
            }
        })
    }
}
