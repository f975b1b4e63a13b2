//! Limits TLS handshakes under way: a peer that has not proved its identity holds little, no address holds
//! most of it, and a newcomer takes the oldest place of the address that holds most.

use std::net::IpAddr;

use mesh_listen::{Bounds, Gate, Group, Place};

/// Handshakes at a time on one worker: of all pods, and of one. One address (or IPv6 network of 64
/// bits) has at most a quarter of either. Each holds up to 40 kB.
const ALL: Bounds = Bounds { total: 1024, each: 256 };
const OF_POD: Bounds = Bounds { total: 256, each: 64 };

/// The limit of one worker's handshakes.
pub struct WorkerHandshakeLimit(Gate);

/// The limits of handshakes at one pod's port 15008 on one worker.
#[derive(Clone)]
pub struct PodHandshakeLimit {
    all: Gate,
    of_pod: Gate,
}

/// A place for one handshake, given back when it is dropped.
pub struct HandshakePlace {
    all: Place,
    of_pod: Place,
}

impl Default for WorkerHandshakeLimit {
    /// Creates the limit, with no handshake under way.
    fn default() -> Self {
        Self(Gate::new(ALL))
    }
}

impl WorkerHandshakeLimit {
    /// Returns the limits for one more pod.
    #[must_use]
    pub fn new_pod_limit(&self) -> PodHandshakeLimit {
        PodHandshakeLimit { all: self.0.clone(), of_pod: Gate::new(OF_POD) }
    }
}

impl PodHandshakeLimit {
    /// Takes a place for a handshake from `source`; another may be told to end for it. None if there is none
    /// to take.
    pub fn take_or_evict(&self, source: IpAddr) -> Option<HandshakePlace> {
        let source = Group::of(source);
        let of_pod = self.of_pod.enter(source)?;
        Some(HandshakePlace { all: self.all.enter(source)?, of_pod })
    }
}

impl HandshakePlace {
    /// Returns when a newcomer has the place.
    pub async fn wait_until_evicted(&self) {
        tokio::select! {
            () = self.all.evicted() => {}
            () = self.of_pod.evicted() => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt as _;

    use super::*;

    fn address(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    fn alive(held: &[HandshakePlace]) -> usize {
        held.iter().filter(|handshake| handshake.wait_until_evicted().now_or_never().is_none()).count()
    }

    #[test]
    fn one_address_pushes_out_itself_and_many_leave_room_for_one_more() {
        let handshakes = WorkerHandshakeLimit::default().new_pod_limit();
        let honest = [handshakes.take_or_evict(address(250)).unwrap()];
        let first: Vec<_> = (0..1000).filter_map(|_| handshakes.take_or_evict(address(1))).collect();
        assert_eq!(alive(&first), OF_POD.each);
        let others: Vec<_> =
            (2..10_u8).cycle().take(2000).filter_map(|n| handshakes.take_or_evict(address(n))).collect();
        let newcomer = [handshakes.take_or_evict(address(251)).unwrap()];
        assert_eq!(alive(&first) + alive(&others) + 2, OF_POD.total);
        assert_eq!((alive(&honest), alive(&newcomer)), (1, 1));
        drop((first, others, honest, newcomer));
        assert_eq!((handshakes.all.held(), handshakes.of_pod.held()), (0, 0));
    }

    #[test]
    fn as_many_ipv6_addresses_as_a_host_likes_count_as_one() {
        let handshakes = WorkerHandshakeLimit::default().new_pod_limit();
        let network = |host: u128| IpAddr::from((0xfd00_u128 << 112 | host).to_be_bytes());
        let held: Vec<_> = (1..1000).filter_map(|host| handshakes.take_or_evict(network(host))).collect();
        assert_eq!(alive(&held), OF_POD.each);
    }

    #[test]
    fn one_address_has_no_more_of_all_pods_together() {
        let worker = WorkerHandshakeLimit::default();
        let pods: Vec<_> = (0..20).map(|_| worker.new_pod_limit()).collect();
        let enter = |pod: &PodHandshakeLimit| pod.take_or_evict(address(1));
        let held: Vec<_> = (0..100).flat_map(|_| pods.iter().filter_map(enter).collect::<Vec<_>>()).collect();
        assert_eq!(alive(&held), ALL.each);
    }
}
