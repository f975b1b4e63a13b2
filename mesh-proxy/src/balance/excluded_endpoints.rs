//! Endpoints that are not to be chosen.

/// Endpoints that are not to be chosen for one connection, by index. Empty at first, which takes no memory.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EndpointsToSkip(Vec<bool>);

impl EndpointsToSkip {
    /// Leaves out one more endpoint.
    pub fn add(&mut self, index: usize) {
        if self.0.len() <= index {
            self.0.resize(index + 1, false);
        }
        self.0[index] = true;
    }

    /// Whether an endpoint is left out.
    pub fn contains(&self, index: usize) -> bool {
        self.0.get(index).copied().unwrap_or(false)
    }

    /// Whether no endpoint is left out.
    pub fn is_empty(&self) -> bool {
        !self.0.contains(&true)
    }
}

impl FromIterator<usize> for EndpointsToSkip {
    fn from_iter<I: IntoIterator<Item = usize>>(indices: I) -> Self {
        let mut excluded = Self::default();
        indices.into_iter().for_each(|index| excluded.add(index));
        excluded
    }
}
