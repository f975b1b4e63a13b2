//! Places for tasks: each connection holds one, gives it back when it is dropped, and hears when it is to
//! end.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

use crate::places::{Bounds, Entry, PlaceId, Places, Standing};
use crate::{Group, Peer};

/// Lets connections in as [`Places`] says. Clones are the same gate.
#[derive(Clone)]
pub struct Gate(Arc<Mutex<Inside>>);

struct Inside {
    places: Places,
    /// Tells each connection that its place went to another.
    leave: HashMap<PlaceId, Arc<Notify>>,
    counts: Counts,
}

/// What came of connections so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Ended so that a newcomer has a place.
    pub evicted: u64,
    /// Refused, since everybody inside has proved who he is.
    pub refused: u64,
}

/// A connection's place.
pub struct Place {
    gate: Gate,
    id: PlaceId,
    leave: Arc<Notify>,
}

impl Gate {
    /// A gate with nobody inside.
    pub fn new(bounds: Bounds) -> Self {
        let inside = Inside { places: Places::new(bounds), leave: HashMap::new(), counts: Counts::default() };
        Self(Arc::new(Mutex::new(inside)))
    }

    /// A place for a newcomer, as [`Standing::Unproven`]; another connection may be told to end for it. None
    /// if it has to be refused.
    pub fn enter(&self, group: Group) -> Option<Place> {
        let mut inside = self.inside();
        match inside.places.enter(group) {
            Entry::Full => {
                inside.counts.refused += 1;
                None
            }
            Entry::Placed { id, evicted } => {
                if let Some(other) = evicted.and_then(|evicted| inside.leave.remove(&evicted)) {
                    inside.counts.evicted += 1;
                    other.notify_one();
                }
                let leave = Arc::new(Notify::new());
                inside.leave.insert(id, Arc::clone(&leave));
                Some(Place { gate: self.clone(), id, leave })
            }
        }
    }

    /// The same by the ends of the connection.
    pub fn enter_peer(&self, peer: &Peer) -> Option<Place> {
        self.enter(peer.group())
    }

    /// Places that are taken.
    pub fn held(&self) -> usize {
        self.inside().places.len()
    }

    /// What came of connections so far.
    pub fn counts(&self) -> Counts {
        self.inside().counts
    }

    fn leave(&self, id: PlaceId) {
        let mut inside = self.inside();
        inside.places.leave(id);
        inside.leave.remove(&id);
    }

    fn inside(&self) -> MutexGuard<'_, Inside> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    /// Notes what is known of the connection from now on.
    pub fn stand(&self, standing: Standing) {
        self.gate.inside().places.stand(self.id, standing);
    }

    /// Gives the place back before it is dropped: the connection counts elsewhere from now on. It is not
    /// evicted any more.
    pub fn leave(&self) {
        self.gate.leave(self.id);
    }

    /// Returns when the place went to another: the connection is to be dropped at once.
    pub async fn evicted(&self) {
        self.leave.notified().await;
        // For whoever asks again.
        self.leave.notify_one();
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.gate.leave(self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_oldest_hears_that_it_is_to_leave_and_what_is_dropped_is_free() {
        let (gate, group) = (Gate::new(Bounds { total: 2, each: 2 }), Group::User(0));
        let (first, second) = (gate.enter(group).unwrap(), gate.enter(group).unwrap());
        let third = gate.enter(group).unwrap();
        first.evicted().await;
        first.evicted().await;
        let silent = tokio::time::timeout(Duration::from_millis(20), second.evicted()).await;
        assert!(silent.is_err() && gate.held() == 2);
        second.stand(Standing::Proven);
        third.stand(Standing::Proven);
        assert!(gate.enter(group).is_none());
        assert_eq!(gate.counts(), Counts { evicted: 1, refused: 1 });
        drop((first, second, third));
        assert_eq!(gate.held(), 0);
        assert!(gate.inside().leave.is_empty());
    }
}
