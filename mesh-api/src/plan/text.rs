//! What repeats a hundred thousand times is held once.

use std::collections::HashSet;
use std::fmt;
use std::sync::Arc;

/// Texts that many resources have in common, such as names of nodes.
#[derive(Debug, Default)]
pub(super) struct Texts {
    held: HashSet<Arc<str>>,
    /// How many were in use when it was last looked.
    in_use: usize,
}

/// Unused texts that are not worth looking for.
const SLACK: usize = 256;

impl Texts {
    /// The one copy of a text.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.held.get(text) {
            return held.clone();
        }
        let text: Arc<str> = text.into();
        self.held.insert(text.clone());
        text
    }

    /// Forgets what nobody uses, once that may be the larger part.
    pub(super) fn sweep(&mut self) {
        if self.held.len() > 2 * self.in_use + SLACK {
            self.held.retain(|text| Arc::strong_count(text) > 1);
            self.held.shrink_to_fit();
            self.in_use = self.held.len();
        }
    }
}

/// Version of a resource, as the control plane named it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Version {
    /// Sixteen lower-case hexadecimal digits, as our own control plane writes them.
    Hash(u64),
    /// Anything else.
    Other(Box<Other>),
}

/// Behind a pointer, since it is seldom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Other(String);

impl Version {
    pub(super) fn new(text: &str) -> Self {
        let digits = text.len() == 16 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        match u64::from_str_radix(text, 16) {
            Ok(hash) if digits => Self::Hash(hash),
            _ => Self::Other(Box::new(Other(text.to_owned()))),
        }
    }
}

impl fmt::Display for Version {
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
            assert_eq!(Version::new(text).to_string(), text);
        }
        assert!(size_of::<Version>() <= 16);
    }

    #[test]
    fn a_text_is_held_once_and_as_long_as_it_is_used() {
        let mut texts = Texts::default();
        let used = texts.intern("node-1");
        assert!(Arc::ptr_eq(&used, &texts.intern("node-1")));
        (0..1000).for_each(|number| drop(texts.intern(&number.to_string())));
        texts.sweep();
        assert_eq!(texts.held.len(), 1);
        assert!(Arc::ptr_eq(&used, &texts.intern("node-1")));
    }
}
