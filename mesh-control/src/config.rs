//! The configuration that is served: immutable, compiled, encoded, with a version for each resource.
//!
//! Each state shares with the one before all that did not change
//! ([`PersistentTable`](mesh_api::persistent_table::PersistentTable)), so that whoever still looks at an
//! older one, such as a slow agent's stream, holds what differs and no more.

mod accounts;
mod resources;

use std::time::Instant;

pub use accounts::Accounts;
pub use resources::{Entry, Resources};

#[cfg(test)]
pub(crate) use resources::tests;

/// One state of everything that agents are told.
#[derive(Clone, Default)]
pub struct Configuration {
    /// Counts the states, from 1; 0 is the empty one before the first.
    pub generation: u64,
    /// Workloads and services.
    pub addresses: Resources,
    /// Policies.
    pub authorizations: Resources,
    /// Accounts with a pod, by node.
    pub accounts: Accounts,
    /// Objects that it was made of.
    pub objects: usize,
    /// When it was complete.
    pub built: Option<Instant>,
}

impl Configuration {
    /// Whether `node` has a pod of that account.
    pub fn runs_on(&self, node: &str, namespace: &str, account: &str) -> bool {
        self.accounts.runs_on(node, namespace, account)
    }
}
