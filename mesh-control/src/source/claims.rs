//! Who defines an object: what is written now wins over what was kept; among equals, the file that sorts
//! first.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use mesh_api::compile::SharedObject;
use mesh_api::manifest::{ManifestError, ObjectKey};
use mesh_api::persistent_table::{PersistentTable, hash_of};

use super::directory::Held;

/// What is defined, by whom.
#[derive(Debug, Default)]
pub(super) struct Claims {
    fresh: PersistentTable<SharedObject>,
    kept: PersistentTable<SharedObject>,
    /// Objects that are defined more than once now, with the complaints.
    duplicates: BTreeMap<ObjectKey, Vec<ManifestError>>,
    /// Objects that are defined.
    pub in_force: usize,
}

/// How much a definition counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rank {
    /// It is written so now.
    Fresh,
    /// It was written so before the file broke.
    Kept,
}

impl Claims {
    pub(super) fn add(&mut self, rank: Rank, held: &Held) {
        self.edit(&held.object, |claims, hash| claims.table(rank).insert(hash, held.object.clone()));
    }

    pub(super) fn remove(&mut self, rank: Rank, held: &Held) {
        self.edit(&held.object, |claims, hash| {
            claims.table(rank).remove(hash, |object| Arc::ptr_eq(object, &held.object));
        });
    }

    /// What is in force.
    pub(super) fn winner(&self, key: &ObjectKey) -> Option<SharedObject> {
        let best = |table: &PersistentTable<SharedObject>| sorted(table, key).into_iter().next();
        best(&self.fresh).or_else(|| best(&self.kept))
    }

    /// Complaints about objects that are defined twice.
    pub(super) fn duplicates(&self) -> impl Iterator<Item = &ManifestError> {
        self.duplicates.values().flatten()
    }

    fn table(&mut self, rank: Rank) -> &mut PersistentTable<SharedObject> {
        match rank {
            Rank::Fresh => &mut self.fresh,
            Rank::Kept => &mut self.kept,
        }
    }

    fn edit(&mut self, object: &SharedObject, change: impl FnOnce(&mut Self, u64)) {
        let key = object.value.key();
        self.in_force -= usize::from(self.winner(&key).is_some());
        change(self, hash_of(&key));
        self.in_force += usize::from(self.winner(&key).is_some());
        match &*sorted(&self.fresh, &key) {
            [first, others @ ..] if !others.is_empty() => {
                let complaints = others.iter().map(|other| duplicate(other, first, &key)).collect();
                self.duplicates.insert(key, complaints);
            }
            _ => drop(self.duplicates.remove(&key)),
        }
    }
}

fn sorted(table: &PersistentTable<SharedObject>, key: &ObjectKey) -> Vec<SharedObject> {
    let claims = table.values_with_hash(hash_of(key)).filter(|object| object.value.key() == *key);
    let mut claims: Vec<_> = claims.cloned().collect();
    claims.sort_by(|a, b| (Path::new(&*a.file), a.line).cmp(&(Path::new(&*b.file), b.line)));
    claims
}

fn duplicate(object: &SharedObject, first: &SharedObject, key: &ObjectKey) -> ManifestError {
    ManifestError {
        file: object.file.to_string(),
        line: object.line,
        resource: Some(key.to_string()),
        field: Some("metadata.name".to_owned()),
        problem: format!("the same resource is already defined at {}:{}", first.file, first.line),
        fix: "remove one of the two, or rename it".to_owned(),
    }
}
