//! The places of one standing, by group and by age.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::PlaceId;
use crate::Group;

/// In order: how many a group has here, the turn of its oldest (the older, the greater), and the group.
type Crowd = (usize, Reverse<u64>, Group);

/// Those of one standing.
#[derive(Debug, Default)]
pub(super) struct Tier {
    /// By turn, the oldest first.
    groups: HashMap<Group, BTreeMap<u64, PlaceId>>,
    /// Each group of `groups`, the one with most places last.
    crowds: BTreeSet<Crowd>,
}

impl Tier {
    pub fn insert(&mut self, group: Group, turn: u64, id: PlaceId) {
        self.change(group, |places| {
            places.insert(turn, id);
        });
    }

    pub fn remove(&mut self, group: Group, turn: u64) {
        self.change(group, |places| {
            places.remove(&turn);
        });
    }

    pub fn oldest_of(&self, group: Group) -> Option<PlaceId> {
        self.groups.get(&group)?.first_key_value().map(|(_, id)| *id)
    }

    /// The oldest of the group that has most; of two with as many, of the one whose oldest is older.
    pub fn oldest_of_the_largest(&self) -> Option<PlaceId> {
        let (_, _, group) = self.crowds.last()?;
        self.oldest_of(*group)
    }

    fn change(&mut self, group: Group, change: impl FnOnce(&mut BTreeMap<u64, PlaceId>)) {
        let places = self.groups.entry(group).or_default();
        if let Some(crowd) = crowd(group, places) {
            self.crowds.remove(&crowd);
        }
        change(places);
        match crowd(group, places) {
            Some(crowd) => {
                self.crowds.insert(crowd);
            }
            None => {
                self.groups.remove(&group);
            }
        }
    }
}

fn crowd(group: Group, places: &BTreeMap<u64, PlaceId>) -> Option<Crowd> {
    let (oldest, _) = places.first_key_value()?;
    Some((places.len(), Reverse(*oldest), group))
}
