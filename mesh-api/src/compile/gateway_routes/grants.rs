//! Which references to other namespaces are granted.

use std::collections::HashMap;

use crate::compile::object_store::ObjectStore;
use crate::kind::Kind;
use crate::resource::ReferenceGrant;
use crate::resource::gateway_api::{GrantTo, ObjectRef};

/// All grants: by the namespace whose objects they let others name, by the namespace whose objects may name
/// them, and by the kind of these.
pub(super) struct Grants<'a>(HashMap<(&'a str, &'a str, Kind), Vec<&'a [GrantTo]>>);

impl<'a> Grants<'a> {
    pub fn new(objects: &'a ObjectStore) -> Self {
        let mut all: HashMap<_, Vec<_>> = HashMap::new();
        for ReferenceGrant { metadata, from, to } in objects.reference_grants() {
            for from in from {
                let kinds = [Kind::HTTPRoute, Kind::GRPCRoute].into_iter();
                let is_kind =
                    |kind: &Kind| kind.as_str() == from.kind && kind.table_row().group() == from.group;
                for kind in kinds.filter(is_kind) {
                    let key = (metadata.namespace.as_str(), from.namespace.as_str(), kind);
                    all.entry(key).or_default().push(to.as_slice());
                }
            }
        }
        Self(all)
    }

    /// Whether a route of a namespace may name an object of another one.
    pub fn permit(&self, (kind, namespace): (Kind, &str), object: &ObjectRef, of: &str) -> bool {
        let granted = self.0.get(&(of, namespace, kind));
        granted.is_some_and(|grants| {
            grants.iter().flat_map(|to| *to).any(|to| {
                to.group == object.group
                    && to.kind == object.kind
                    && to.name.as_ref().is_none_or(|name| *name == object.name)
            })
        })
    }
}
