//! Peers that were cut off for a flood, which may not come back at once: a handshake costs more than the
//! flood that follows, when that is cut short.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::time::{Duration, Instant};

/// How long a peer that was cut off is refused.
const PENALTY: Duration = Duration::from_secs(1);

/// Most peers that are remembered at one time. Each has finished a handshake with a certificate of the mesh
/// from its address, so they can't be made up.
const MOST: usize = 1024;

/// One worker's penalties, by the peer's address and the time until which it is refused.
///
/// An IPv6 network counts by its single addresses here, and not as one as where places are counted: all pods
/// of a node usually share one of 64 bits, and none of them is to pay for another.
#[derive(Default)]
pub struct FloodPenalties(RefCell<HashMap<IpAddr, Instant>>);

impl FloodPenalties {
    /// Refuses a peer from `now` on. One too many is not remembered.
    pub fn add(&self, peer: IpAddr, now: Instant) {
        let mut until = self.0.borrow_mut();
        if until.len() >= MOST {
            until.retain(|_, until| *until > now);
        }
        if until.len() < MOST {
            until.insert(peer.to_canonical(), now + PENALTY);
        }
    }

    /// Whether a peer is refused `now`.
    pub fn is_refused(&self, peer: IpAddr, now: Instant) -> bool {
        self.0.borrow().get(&peer.to_canonical()).is_some_and(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn peer(number: u32) -> IpAddr {
        std::net::Ipv4Addr::from_bits(number).into()
    }

    #[test]
    fn a_peer_is_refused_for_a_while_and_others_are_not() {
        let penalties = FloodPenalties::default();
        let now = Instant::now();
        penalties.add(peer(1), now);
        assert!(penalties.is_refused(peer(1), now) && !penalties.is_refused(peer(2), now));
        assert!(penalties.is_refused("::ffff:0.0.0.1".parse().unwrap(), now), "the same in its other form");
        assert!(!penalties.is_refused(peer(1), now + PENALTY));
        let [one, other] = ["fd00:244:1::2", "fd00:244:1::3"].map(|pod| pod.parse().unwrap());
        penalties.add(one, now);
        assert!(penalties.is_refused(one, now) && !penalties.is_refused(other, now), "two pods of one node");
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let penalties = FloodPenalties::default();
        let now = Instant::now();
        (0_u32..).take(2 * MOST).for_each(|number| penalties.add(peer(number), now));
        assert_eq!(penalties.0.borrow().len(), MOST);
        penalties.add(peer(9999), now + PENALTY);
        assert!(penalties.is_refused(peer(9999), now + PENALTY), "those that are over make room");
        assert_eq!(penalties.0.borrow().len(), 1);
    }
}
