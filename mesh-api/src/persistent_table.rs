//! A hash table whose states share what they have in common.
//!
//! A copy costs one reference count. While a copy of the table is held, a change copies the shard that it is
//! in (some dozen entries) and the list of the shards; so a state among a hundred thousand entries costs what
//! differs from the last one. [`PersistentTable::changes_since`] finds what that is without looking at what
//! is shared.
//!
//! Like a raw table it stores values, not pairs: whoever asks brings the hash and says what fits, so keys
//! that a value has in itself take no room of their own. Several values may have one hash, and keep the order
//! that they came in.

use std::hash::{BuildHasher as _, Hash, RandomState};
use std::sync::{Arc, LazyLock};

/// The same for all tables of the process, so that tables can be compared shard by shard. Random, since names
/// come from users.
static HASHER: LazyLock<RandomState> = LazyLock::new(RandomState::new);

/// Entries for each shard, on average, before there are more shards.
const CROWD: usize = 24;

/// Hash of a key, as every table wants it.
pub fn hash_of<K: Hash + ?Sized>(key: &K) -> u64 {
    HASHER.hash_one(key)
}

/// The table. `V` should be cheap to clone.
#[derive(Debug)]
pub struct PersistentTable<V> {
    /// Always a power of two of them.
    shards: Arc<Vec<Shard<V>>>,
    len: usize,
}

type Shard<V> = Arc<Vec<Slot<V>>>;

#[derive(Clone, Debug)]
struct Slot<V> {
    hash: u64,
    value: V,
}

/// What became of a shard's entries.
#[derive(Debug)]
pub struct TableChanges<'a, V> {
    /// Values that the older table has and the newer one does not.
    pub gone: Vec<&'a V>,
    /// Values that the newer table has and the older one does not.
    pub come: Vec<&'a V>,
}

impl<V> Default for PersistentTable<V> {
    fn default() -> Self {
        Self { shards: Arc::new(vec![empty()]), len: 0 }
    }
}

impl<V> Clone for PersistentTable<V> {
    fn clone(&self) -> Self {
        Self { shards: Arc::clone(&self.shards), len: self.len }
    }
}

impl<V> PersistentTable<V> {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Values that have a hash and may be meant by it, the oldest first.
    pub fn values_with_hash(&self, hash: u64) -> impl Iterator<Item = &V> {
        let shard = &self.shards[place(hash, self.shards.len())];
        shard.iter().filter(move |slot| slot.hash == hash).map(|slot| &slot.value)
    }

    /// The oldest value of that hash that fits.
    pub fn find(&self, hash: u64, fits: impl Fn(&V) -> bool) -> Option<&V> {
        self.values_with_hash(hash).find(|value| fits(value))
    }

    /// All values, in no order.
    pub fn iter(&self) -> impl Iterator<Item = &V> {
        self.shards.iter().flat_map(|shard| shard.iter()).map(|slot| &slot.value)
    }

    /// Number of shards; [`Self::shard_changes`] counts through them.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// Whether both are one and the same state.
    pub fn ptr_eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shards, &other.shards)
    }
}

impl<V: Clone> PersistentTable<V> {
    /// Adds a value.
    pub fn insert(&mut self, hash: u64, value: V) {
        let slot = Slot { hash, value };
        let shard = self.shard_mut(hash);
        if let Some(own) = Arc::get_mut(shard) {
            own.push(slot);
        } else {
            let mut copy = Vec::with_capacity(shard.len() + 1);
            copy.extend(shard.iter().cloned());
            copy.push(slot);
            *shard = Arc::new(copy);
        }
        self.len += 1;
        self.settle();
    }

    /// Takes out the oldest value of that hash that fits.
    pub fn remove(&mut self, hash: u64, fits: impl Fn(&V) -> bool) -> Option<V> {
        let shard = &self.shards[place(hash, self.shards.len())];
        let index = shard.iter().position(|slot| slot.hash == hash && fits(&slot.value))?;
        let removed = Arc::make_mut(self.shard_mut(hash)).remove(index);
        self.len -= 1;
        self.settle();
        Some(removed.value)
    }

    /// Takes out the value of that hash that fits, if there is one, and adds another.
    pub fn replace(&mut self, hash: u64, fits: impl Fn(&V) -> bool, value: V) -> Option<V> {
        let removed = self.remove(hash, fits);
        self.insert(hash, value);
        removed
    }

    /// Keeps the values that `keep` says yes to.
    pub fn retain(&mut self, keep: impl Fn(&V) -> bool) {
        let shards = Arc::make_mut(&mut self.shards);
        for shard in shards.iter_mut().filter(|shard| !shard.iter().all(|slot| keep(&slot.value))) {
            *shard = Arc::new(shard.iter().filter(|slot| keep(&slot.value)).cloned().collect());
        }
        self.len = shards.iter().map(|shard| shard.len()).sum();
        self.settle();
    }

    /// What changed since an older state, of which `same` says whether values are alike.
    ///
    /// What both share is not looked at. Shards of tables that have different numbers of them can't be
    /// compared one by one; then everything is.
    pub fn changes_since<'a>(
        &'a self,
        older: &'a Self,
        same: impl Fn(&V, &V) -> bool,
    ) -> TableChanges<'a, V> {
        let mut changes = TableChanges { gone: Vec::new(), come: Vec::new() };
        if !self.ptr_eq(older) {
            for index in 0..self.shard_count() {
                self.shard_changes(older, index, &same, &mut changes);
            }
        }
        changes
    }

    /// The part of [`Self::changes_since`] that is about this table's shard `index`, added to `changes`.
    pub fn shard_changes<'a>(
        &'a self,
        older: &'a Self,
        index: usize,
        same: &impl Fn(&V, &V) -> bool,
        changes: &mut TableChanges<'a, V>,
    ) {
        let fewer = self.shard_count().min(older.shard_count());
        let ours = &self.shards[index];
        if self.shard_count() == older.shard_count() {
            let theirs = &older.shards[index];
            if !Arc::ptr_eq(ours, theirs) {
                compare(ours.iter(), theirs.iter().collect(), same, changes);
            }
            return;
        }
        // Shards that are congruent modulo the lesser number hold the same hashes. Each such group is
        // compared once, at its first member.
        if index < fewer {
            let group = |shards: &'a [Shard<V>]| shards.iter().skip(index).step_by(fewer);
            let ours = group(&self.shards).flat_map(|shard| shard.iter());
            let theirs = group(&older.shards).flat_map(|shard| shard.iter()).collect();
            compare(ours, theirs, same, changes);
        }
    }

    fn shard_mut(&mut self, hash: u64) -> &mut Shard<V> {
        let index = place(hash, self.shards.len());
        &mut Arc::make_mut(&mut self.shards)[index]
    }

    /// Makes more shards of a crowd, and fewer of what is nearly empty.
    fn settle(&mut self) {
        let (wanted, now) = (self.len.div_ceil(CROWD).next_power_of_two(), self.shards.len());
        // Never back by one step, so that a number which varies a little does not rebuild the table again and
        // again.
        if wanted <= now && wanted * 4 > now {
            return;
        }
        let mut sorted: Vec<Vec<Slot<V>>> = vec![Vec::new(); wanted];
        for slot in self.shards.iter().flat_map(|shard| shard.iter()) {
            sorted[place(slot.hash, wanted)].push(slot.clone());
        }
        self.shards = Arc::new(sorted.into_iter().map(Arc::new).collect());
    }
}

fn empty<V>() -> Shard<V> {
    Arc::default()
}

/// Where a hash belongs among so many shards.
#[allow(clippy::cast_possible_truncation)] // the remainder is below a `usize`
fn place(hash: u64, shards: usize) -> usize {
    (hash % shards as u64) as usize
}

fn compare<'a, V>(
    ours: impl Iterator<Item = &'a Slot<V>>,
    mut theirs: Vec<&'a Slot<V>>,
    same: &impl Fn(&V, &V) -> bool,
    changes: &mut TableChanges<'a, V>,
) {
    for slot in ours {
        let alike = |other: &&Slot<V>| other.hash == slot.hash && same(&other.value, &slot.value);
        match theirs.iter().position(alike) {
            Some(place) => drop(theirs.remove(place)),
            None => changes.come.push(&slot.value),
        }
    }
    changes.gone.extend(theirs.into_iter().map(|slot| &slot.value));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    /// By key; a value that is replaced is another one.
    type Pairs = PersistentTable<(u32, u32)>;

    fn set(table: &mut Pairs, key: u32, value: Option<u32>) {
        table.remove(hash_of(&key), |pair| pair.0 == key);
        if let Some(value) = value {
            table.insert(hash_of(&key), (key, value));
        }
    }

    fn content(table: &Pairs) -> BTreeMap<u32, u32> {
        table.iter().copied().collect()
    }

    /// A cheap sequence of numbers that look random.
    fn next(seed: &mut u32) -> u32 {
        *seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        *seed >> 8
    }

    #[test]
    fn it_is_what_a_map_is_and_older_states_stay() {
        let (mut table, mut map, mut seed) = (Pairs::default(), BTreeMap::new(), 1);
        let mut kept = Vec::new();
        for step in 0..20_000 {
            let (key, value) = (next(&mut seed) % 3000, (!next(&mut seed).is_multiple_of(4)).then_some(step));
            set(&mut table, key, value);
            match value {
                Some(value) => drop(map.insert(key, value)),
                None => drop(map.remove(&key)),
            }
            if step % 1000 == 0 {
                kept.push((table.clone(), map.clone()));
            }
        }
        assert_eq!((table.len(), content(&table)), (map.len(), map.clone()));
        for key in 0..3000 {
            let found = table.find(hash_of(&key), |pair| pair.0 == key).map(|pair| pair.1);
            assert_eq!(found, map.get(&key).copied());
        }
        for (older, was) in &kept {
            assert_eq!(content(older), *was);
            let changes = table.changes_since(older, |a, b| a == b);
            let mut rebuilt: std::collections::BTreeSet<_> = older.iter().copied().collect();
            changes.gone.iter().for_each(|pair| assert!(rebuilt.remove(pair)));
            changes.come.iter().for_each(|pair| assert!(rebuilt.insert(**pair)));
            assert_eq!(rebuilt, table.iter().copied().collect());
        }
        for key in 0..3000 {
            set(&mut table, key, None);
        }
        assert!(table.is_empty() && table.shard_count() <= 2);
    }

    #[test]
    fn a_change_copies_one_shard() {
        let mut table = Pairs::default();
        (0..10_000).for_each(|key| set(&mut table, key, Some(0)));
        let before = table.clone();
        set(&mut table, 77, Some(1));
        let copied = table.shards.iter().zip(&*before.shards).filter(|(a, b)| !Arc::ptr_eq(a, b)).count();
        assert_eq!(copied, 1);
        let changes = table.changes_since(&before, |a, b| a == b);
        assert_eq!((changes.gone, changes.come), (vec![&(77, 0)], vec![&(77, 1)]));
    }

    #[test]
    fn equal_keys_keep_their_order() {
        let mut table = PersistentTable::default();
        for value in ["a", "b", "c"] {
            table.insert(7, value);
        }
        assert_eq!(table.remove(7, |value| *value == "a"), Some("a"));
        table.insert(7, "a");
        assert_eq!(table.values_with_hash(7).copied().collect::<Vec<_>>(), ["b", "c", "a"]);
    }
}
