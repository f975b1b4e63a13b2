//! Places for connections: how many there are, how many of them one group may have, and who has to go for a
//! newcomer.
//!
//! Plain accounting, without sockets and without time: [`Gate`](crate::Gate) has it for tasks.

mod tier;

#[cfg(test)]
mod tests;

use std::collections::HashMap;

use tier::Tier;

use crate::Group;

/// How many places there are.
#[derive(Clone, Copy, Debug)]
pub struct Bounds {
    /// Of all.
    pub total: usize,
    /// Of one group.
    pub each: usize,
}

/// What is known of a connection: the less, the sooner it has to go. Whoever is evicted is of the lowest
/// standing that there is, and has had it for longest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It has not shown yet what it is: no whole request, no finished handshake.
    Unproven,
    /// It has, and is silent now.
    Idle,
    /// It is being answered.
    Busy,
    /// It has proved who it is, and is never evicted.
    Proven,
}

/// Names a place. No two ever have the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PlaceId(u64);

/// What came of a newcomer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// It has this place, and another one may have lost its own for it.
    Placed {
        /// The newcomer's.
        id: PlaceId,
        /// Whose connection is to be ended now.
        evicted: Option<PlaceId>,
    },
    /// It has none: all places that it could have are held by those who proved who they are.
    Full,
}

/// The places and who has them.
///
/// A newcomer whose group has its share takes the place of one of its own group. One who finds everything
/// taken gets the place of one of the group that holds most: so one address among many pushes nobody out but
/// itself. Everything here takes time with the logarithm of the number of places.
#[derive(Debug)]
pub struct Places {
    bounds: Bounds,
    /// Counts newcomers and changes of standing.
    turn: u64,
    held: HashMap<PlaceId, Held>,
    of_group: HashMap<Group, usize>,
    /// Those that may be evicted, by [`Standing`].
    tiers: [Tier; 3],
}

#[derive(Clone, Copy, Debug)]
struct Held {
    group: Group,
    standing: Standing,
    /// Since when it has that standing.
    turn: u64,
}

impl Places {
    /// All of them free.
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, turn: 0, held: HashMap::new(), of_group: HashMap::new(), tiers: Default::default() }
    }

    /// Gives a newcomer a place, as [`Standing::Unproven`].
    pub fn enter(&mut self, group: Group) -> Entry {
        let victim = if self.held_by(group) >= self.bounds.each {
            self.tiers.iter().find_map(|tier| tier.oldest_of(group))
        } else if self.held.len() >= self.bounds.total {
            self.tiers.iter().find_map(Tier::oldest_of_the_largest)
        } else {
            return Entry::Placed { id: self.place(group), evicted: None };
        };
        let Some(victim) = victim else { return Entry::Full };
        self.leave(victim);
        Entry::Placed { id: self.place(group), evicted: Some(victim) }
    }

    /// Notes another standing. Without effect for one that lost its place.
    pub fn stand(&mut self, id: PlaceId, standing: Standing) {
        let turn = self.next_turn();
        let Some(held) = self.held.get_mut(&id) else { return };
        let before = std::mem::replace(held, Held { standing, turn, ..*held });
        let now = *held;
        self.take_out(before);
        self.put_in(id, now);
    }

    /// Frees a place. Without effect for one that is free already.
    pub fn leave(&mut self, id: PlaceId) {
        let Some(held) = self.held.remove(&id) else { return };
        self.take_out(held);
        if let Some(count) = self.of_group.get_mut(&held.group) {
            *count -= 1;
            if *count == 0 {
                self.of_group.remove(&held.group);
            }
        }
    }

    /// Places that are taken.
    pub fn len(&self) -> usize {
        self.held.len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// Places that a group has.
    pub fn held_by(&self, group: Group) -> usize {
        self.of_group.get(&group).copied().unwrap_or_default()
    }

    fn place(&mut self, group: Group) -> PlaceId {
        let turn = self.next_turn();
        let (id, held) = (PlaceId(turn), Held { group, standing: Standing::Unproven, turn });
        self.held.insert(id, held);
        *self.of_group.entry(group).or_default() += 1;
        self.put_in(id, held);
        id
    }

    fn put_in(&mut self, id: PlaceId, held: Held) {
        if let Some(tier) = self.tiers.get_mut(held.standing as usize) {
            tier.insert(held.group, held.turn, id);
        }
    }

    fn take_out(&mut self, held: Held) {
        if let Some(tier) = self.tiers.get_mut(held.standing as usize) {
            tier.remove(held.group, held.turn);
        }
    }

    fn next_turn(&mut self) -> u64 {
        self.turn += 1;
        self.turn
    }
}
