//! Peers that were cut off for a flood, which may not come back at once: a handshake costs more than the
//! flood that follows, when that is cut short.

use std::cell::RefCell;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// How long a peer that was cut off is refused.
const PENALTY: Duration = Duration::from_secs(1);

/// Most peers that are remembered at one time. Each has finished a handshake with a certificate of the mesh.
const MOST: usize = 1024;

/// One worker's penalties: at which pod, by its uid, which peer's address is refused until when.
///
/// At that pod alone, since it may have had its part in the flood: what an honest peer sends is caused by
/// applications at both ends. And an IPv6 network counts by its single addresses here, not as one as where
/// places are counted: all pods of a node usually share one of 64 bits, and none is to pay for another.
#[derive(Default)]
pub struct FloodPenalties(RefCell<HashMap<(Arc<str>, IpAddr), Instant>>);

impl FloodPenalties {
    /// Refuses a peer at a pod for a second from `now` on. One too many is not remembered.
    pub fn add(&self, pod: &Arc<str>, peer: IpAddr, now: Instant) {
        let mut until = self.0.borrow_mut();
        if until.len() >= MOST {
            until.retain(|_, until| *until > now);
        }
        if until.len() < MOST {
            until.insert((Arc::clone(pod), peer.to_canonical()), now + PENALTY);
        }
    }

    /// Whether a peer is refused at a pod `now`.
    pub fn is_refused(&self, pod: &Arc<str>, peer: IpAddr, now: Instant) -> bool {
        let until = self.0.borrow();
        // Nearly always there are none, and the key costs a little.
        !until.is_empty()
            && until.get(&(Arc::clone(pod), peer.to_canonical())).is_some_and(|until| now < *until)
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
        let (penalties, pod, now) = (FloodPenalties::default(), "uid".into(), Instant::now());
        penalties.add(&pod, peer(1), now);
        assert!(penalties.is_refused(&pod, peer(1), now) && !penalties.is_refused(&pod, peer(2), now));
        assert!(!penalties.is_refused(&"other".into(), peer(1), now), "another pod of the node");
        assert!(penalties.is_refused(&pod, "::ffff:0.0.0.1".parse().unwrap(), now), "the same address");
        assert!(!penalties.is_refused(&pod, peer(1), now + PENALTY));
        let [one, other] = ["fd00:244:1::2", "fd00:244:1::3"].map(|pod| pod.parse().unwrap());
        penalties.add(&pod, one, now);
        let refused = [one, other].map(|peer| penalties.is_refused(&pod, peer, now));
        assert_eq!(refused, [true, false], "two pods of one node");
    }

    #[test]
    fn no_more_are_remembered_than_there_is_room_for() {
        let (penalties, pod, now) = (FloodPenalties::default(), "uid".into(), Instant::now());
        (0_u32..).take(2 * MOST).for_each(|number| penalties.add(&pod, peer(number), now));
        assert_eq!(penalties.0.borrow().len(), MOST);
        penalties.add(&pod, peer(9999), now + PENALTY);
        assert!(penalties.is_refused(&pod, peer(9999), now + PENALTY), "those that are over make room");
        assert_eq!(penalties.0.borrow().len(), 1);
    }
}
