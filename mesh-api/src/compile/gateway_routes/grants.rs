//! Which references to other namespaces are granted.

use std::collections::HashMap;

use crate::compile::object_store::ObjectStore;
use crate::kind::Kind;
use crate::resource::ReferenceGrant;
use crate::resource::gateway_api::ObjectRef;

/// All grants, by the namespace whose objects they let others name.
pub(super) struct Grants<'a>(HashMap<&'a str, Vec<&'a ReferenceGrant>>);

impl<'a> Grants<'a> {
    pub fn new(objects: &'a ObjectStore) -> Self {
        let mut all: HashMap<&str, Vec<&ReferenceGrant>> = HashMap::new();
        for grant in objects.reference_grants() {
            all.entry(&grant.metadata.namespace).or_default().push(grant);
        }
        Self(all)
    }

    /// Whether a route of a namespace may name an object of another one.
    pub fn permit(&self, (kind, namespace): (Kind, &str), object: &ObjectRef, of: &str) -> bool {
        let group = kind.table_row().group();
        let is_from = |grant: &ReferenceGrant| {
            let mut from = grant.from.iter();
            from.any(|it| it.group == group && it.kind == kind.as_str() && it.namespace == namespace)
        };
        let is_to = |grant: &ReferenceGrant| {
            grant.to.iter().any(|it| {
                it.group == object.group
                    && it.kind == object.kind
                    && it.name.as_ref().is_none_or(|name| *name == object.name)
            })
        };
        self.0.get(of).is_some_and(|grants| grants.iter().any(|grant| is_from(grant) && is_to(grant)))
    }
}
