//! Versions of resources as the control plane named them. There are a hundred thousand, so they are small.

use std::fmt;

/// Version of a resource, as the control plane named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum ResourceVersion {
    /// Sixteen lower-case hexadecimal digits, as our own control plane writes them.
    Hash(u64),
    /// Anything else.
    Other(Box<OtherText>),
}

/// Any other text, behind a pointer since it is rare.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct OtherText(String);

impl ResourceVersion {
    pub(super) fn new(text: &str) -> Self {
        let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(hash) if digits => Self::Hash(hash),
            _ => Self::Other(Box::new(OtherText(text.to_owned()))),
        }
    }
}

impl fmt::Display for ResourceVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hash(hash) => write!(f, "{hash:016x}"),
            Self::Other(other) => f.write_str(&other.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_told_as_it_came() {
        for text in ["", "1", "0123456789abcdef", "0123456789ABCDEF", "+123456789abcdef", "0123456789abcdef0"]
        {
            assert_eq!(ResourceVersion::new(text).to_string(), text);
        }
        assert!(size_of::<ResourceVersion>() <= 16);
    }
}
