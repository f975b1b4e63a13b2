//! Interning: a text that occurs a hundred thousand times is held once.

use std::collections::HashSet;
use std::sync::Arc;

/// Interns texts that many resources have in common, such as names of nodes.
#[derive(Debug, Default)]
pub(super) struct Interner {
    held: HashSet<Arc<str>>,
    /// Number in use at the last sweep.
    in_use: usize,
}

/// Unused texts that are not worth a sweep.
const SLACK: usize = 256;

impl Interner {
    /// Returns the one copy of a text.
    pub(super) fn intern(&mut self, text: &str) -> Arc<str> {
        if let Some(held) = self.held.get(text) {
            return held.clone();
        }
        let text: Arc<str> = text.into();
        self.held.insert(text.clone());
        text
    }

    /// Forgets texts that nobody uses, once they may be the larger part.
    pub(super) fn sweep(&mut self) {
        if self.held.len() > 2 * self.in_use + SLACK {
            self.held.retain(|text| Arc::strong_count(text) > 1);
            self.held.shrink_to_fit();
            self.in_use = self.held.len();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_held_once_and_as_long_as_it_is_used() {
        let mut texts = Interner::default();
        let used = texts.intern("node-1");
        assert!(Arc::ptr_eq(&used, &texts.intern("node-1")));
        (0..1000).for_each(|number| drop(texts.intern(&number.to_string())));
        texts.sweep();
        assert_eq!(texts.held.len(), 1);
        assert!(Arc::ptr_eq(&used, &texts.intern("node-1")));
    }
}
