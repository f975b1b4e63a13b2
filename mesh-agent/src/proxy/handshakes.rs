//! Places for handshakes: whoever has not proved who it is holds little, and no one address holds most of it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::rc::Rc;

/// Handshakes under way at a time on one core, of all pods and of one.
const MOST: usize = 1024;
const MOST_OF_POD: usize = 256;

/// One address has at most a quarter of either.
const SHARES: usize = 4;

/// The handshakes of one core.
pub struct CoreHandshakes(Rc<Counts>);

/// The handshakes of one pod's port 15008 on one core.
#[derive(Clone)]
pub struct Handshakes {
    all: Rc<Counts>,
    of_pod: Rc<Counts>,
}

/// A place for one handshake, given back when it is dropped.
pub struct Handshake {
    _all: Held,
    _of_pod: Held,
}

/// Handshakes by the address that they come from.
struct Counts {
    most: usize,
    sources: RefCell<Sources>,
}

#[derive(Default)]
struct Sources {
    held: usize,
    by_address: HashMap<IpAddr, usize>,
}

struct Held(Rc<Counts>, IpAddr);

impl Default for CoreHandshakes {
    /// None yet.
    fn default() -> Self {
        Self(Counts::new(MOST))
    }
}

impl CoreHandshakes {
    /// Those of one more pod.
    #[must_use]
    pub fn of_pod(&self) -> Handshakes {
        Handshakes { all: Rc::clone(&self.0), of_pod: Counts::new(MOST_OF_POD) }
    }
}

impl Handshakes {
    /// A place; none if the core, the pod or the source has as many as may be.
    pub fn try_place(&self, source: IpAddr) -> Option<Handshake> {
        Some(Handshake { _all: self.all.try_place(source)?, _of_pod: self.of_pod.try_place(source)? })
    }
}

impl Counts {
    fn new(most: usize) -> Rc<Self> {
        Rc::new(Self { most, sources: RefCell::default() })
    }

    fn try_place(self: &Rc<Self>, source: IpAddr) -> Option<Held> {
        let Sources { held, by_address } = &mut *self.sources.borrow_mut();
        let of_source = by_address.get(&source).copied().unwrap_or_default();
        if *held == self.most || of_source == self.most / SHARES {
            return None;
        }
        *held += 1;
        by_address.insert(source, of_source + 1);
        Some(Held(Rc::clone(self), source))
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        let Sources { held, by_address } = &mut *self.0.sources.borrow_mut();
        *held -= 1;
        let of_source = by_address.remove(&self.1).unwrap_or_default();
        if of_source > 1 {
            by_address.insert(self.1, of_source - 1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn taken(handshakes: &Handshakes, source: IpAddr) -> Vec<Handshake> {
        std::iter::from_fn(|| handshakes.try_place(source)).collect()
    }

    #[test]
    fn one_address_has_its_share_and_leaves_the_rest_to_others() {
        let handshakes = CoreHandshakes::default().of_pod();
        let first = taken(&handshakes, address(1));
        assert_eq!(first.len(), MOST_OF_POD / SHARES);
        let others: Vec<_> = (2..100).flat_map(|last| taken(&handshakes, address(last))).collect();
        assert_eq!(first.len() + others.len(), MOST_OF_POD);
        drop(first);
        assert_eq!(taken(&handshakes, address(100)).len(), MOST_OF_POD / SHARES);
        drop(others);
        assert!(handshakes.all.sources.borrow().by_address.is_empty());
        assert_eq!(handshakes.all.sources.borrow().held, 0);
    }

    #[test]
    fn one_address_has_no_more_of_all_pods_together() {
        let core = CoreHandshakes::default();
        let pods: Vec<_> = (0..20).map(|_| core.of_pod()).collect();
        let held: Vec<_> = pods.iter().flat_map(|pod| taken(pod, address(1))).collect();
        assert_eq!(held.len(), MOST / SHARES);
        assert!(pods[0].try_place(address(2)).is_some());
    }
}
