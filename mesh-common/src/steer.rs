//! The rules that the programs follow, as plain functions: what to do with a `connect()` of an enrolled pod, and
//! with a packet that opens a connection to one.

use crate::address::Address;
use crate::maps::{ListenerKind, Pod};
use crate::{HBONE_PORT, OUTBOUND_PORT};

/// What to do with a `connect()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connect {
    /// Leave it as it is; no look-up is needed.
    Leave,
    /// Redirect it to the proxy if the mesh knows the destination.
    AskDestination,
}

/// Sorts out what needs no look-up: talk of a pod to itself never leaves the pod.
#[inline(always)]
pub fn connect(pod: &Pod, destination: Address) -> Connect {
    if destination.is_loopback()
        || destination == Address::UNSPECIFIED
        || destination == Address::v4([0; 4])
        || destination == pod.address_v4
        || destination == pod.address_v6
    {
        Connect::Leave
    } else {
        Connect::AskDestination
    }
}

/// Where a redirected connection goes: the proxy's listener on the pod's own loopback, in the family of the socket.
#[inline(always)]
pub const fn outbound_listener(destination: Address) -> (Address, u16) {
    let loopback = if destination.is_v4() {
        Address::v4([127, 0, 0, 1])
    } else {
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    };
    (loopback, OUTBOUND_PORT)
}

/// Whether a connection that arrives comes from the pod itself. It is not enough to look at the interface: for a pod's
/// own address the kernel names the interface that has the address (`rt_iif`, kernel: `ip_route_output_key_hash_rcu`).
/// From outside such a source can't come: the kernel drops it as martian.
#[inline(always)]
pub fn is_own(local: Address, remote: Address, interface: u32) -> bool {
    /// Index of the loopback device, the first of every network namespace.
    const LOOPBACK: u32 = 1;
    interface == LOOPBACK || remote == local || remote.is_loopback()
}

/// Address that the proxy delivers from. On loopback, because ports in `TIME_WAIT` can be used again after a second
/// there (`tcp_tw_reuse`), so that the rate of connections to one port has no bound of its own. For IPv4 the one that
/// Istio's sidecars use, which nobody trusts by name as they do 127.0.0.1; for IPv6 there is no other than `::1`.
#[inline(always)]
pub const fn delivery_source(application: Address) -> Address {
    if application.is_v4() {
        Address::v4([127, 0, 0, 6])
    } else {
        Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1])
    }
}

/// What an application may see as its peer where nothing was remembered. A delivery whose client was lost (no memory)
/// must not look like a connection from the pod itself, which applications trust: it shows no address at all.
#[inline(always)]
pub fn peer_or_nobody(local: Address, peer: Address) -> Address {
    if peer == delivery_source(local) && !local.is_loopback() {
        if local.is_v4() { Address::v4([0; 4]) } else { Address::UNSPECIFIED }
    } else {
        peer
    }
}

/// The listener that gets a new connection to a pod's port.
#[inline(always)]
pub const fn inbound_listener(port: u16) -> ListenerKind {
    if port == HBONE_PORT { ListenerKind::Hbone } else { ListenerKind::Plaintext }
}

/// Entries that pods share to count the connections of other nodes in. Two pods that share one disturb each other's
/// turns, and nothing else.
pub const TURNS: u32 = 256;

/// The entry of a pod: addresses of one node differ at their ends.
#[inline(always)]
pub const fn turns_of(pod: Address) -> u32 {
    pod.0[15] as u32
}

/// The worker that gets a pod's next connection from another node. A peer keeps one for each of its workers, and all that
/// the two pods have to do with each other goes over these few, so they are dealt out and not left to chance.
#[inline(always)]
pub const fn worker_of_turn(turn: u32, workers: u32) -> u8 {
    if workers <= 1 {
        return 0;
    }
    // There are at most 64 workers (the agent's settings).
    #[allow(clippy::cast_possible_truncation)]
    let worker = (turn % workers) as u8;
    worker
}

/// The worker that gets a new plaintext connection, spread by the client's port: the same for the packets of one
/// handshake, which may be looked up more than once (`tcp_syncookies`).
#[inline(always)]
pub const fn worker_of(client_port: u16, workers: u32) -> u8 {
    if workers <= 1 {
        return 0;
    }
    // Linux hands out even ephemeral ports first (RFC 6056 shuffle by twos), so the lowest bit alone says nothing.
    let mixed = (client_port as u32).wrapping_mul(0x9e37_79b1) >> 16;
    // There are at most 64 workers (the agent's settings).
    #[allow(clippy::cast_possible_truncation)]
    let worker = (mixed % workers) as u8;
    worker
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::IpAddr;

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().unwrap())
    }

    #[test]
    fn talk_to_itself_is_left_alone() {
        let pod = Pod { address_v4: address("10.244.1.5"), address_v6: address("fd00:244:1::5") };
        for (text, expected) in [
            ("127.0.0.1", Connect::Leave),
            ("::1", Connect::Leave),
            ("::ffff:127.0.0.53", Connect::Leave),
            ("0.0.0.0", Connect::Leave),
            ("::", Connect::Leave),
            ("10.244.1.5", Connect::Leave),
            ("::ffff:10.244.1.5", Connect::Leave),
            ("fd00:244:1::5", Connect::Leave),
            ("10.244.1.6", Connect::AskDestination),
            ("fd00:244:1::6", Connect::AskDestination),
        ] {
            assert_eq!(connect(&pod, address(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_without_ipv6_does_not_claim_the_unspecified_address() {
        let pod = Pod { address_v4: address("10.244.1.5"), address_v6: Address::UNSPECIFIED };
        assert_eq!(connect(&pod, address("fd00::1")), Connect::AskDestination);
    }

    #[test]
    fn redirection_keeps_the_family() {
        assert_eq!(outbound_listener(address("10.0.0.1")), (address("127.0.0.1"), 15001));
        assert_eq!(outbound_listener(address("fd00::1")), (address("::1"), 15001));
    }

    #[test]
    fn a_pods_own_connections_are_told_apart() {
        let (pod, other) = (address("10.244.1.5"), address("10.244.1.6"));
        assert!(is_own(pod, pod, 2), "its own address, over the interface that has it");
        assert!(is_own(pod, address("127.0.0.1"), 2));
        assert!(is_own(address("127.0.0.1"), address("127.0.0.1"), 1));
        assert!(!is_own(pod, other, 2));
    }

    #[test]
    fn a_lost_client_is_nobody_and_not_localhost() {
        for (local, source, nobody) in
            [("10.244.1.5", "127.0.0.6", "0.0.0.0"), ("fd00:244:1::5", "::1", "::")]
        {
            assert_eq!(delivery_source(address(local)), address(source));
            assert_eq!(peer_or_nobody(address(local), address(source)), address(nobody));
        }
        for (local, peer) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("10.244.1.5", "10.244.1.9")] {
            assert_eq!(peer_or_nobody(address(local), address(peer)), address(peer), "others stay");
        }
    }

    #[test]
    fn only_the_hbone_port_speaks_hbone() {
        assert_eq!(inbound_listener(15008), ListenerKind::Hbone);
        for port in [1, 80, 15001, 15006, 65535] {
            assert_eq!(inbound_listener(port), ListenerKind::Plaintext);
        }
    }

    #[test]
    fn connections_of_one_peer_are_dealt_out_to_all_workers() {
        for workers in 1..=8_u32 {
            let mut got: Vec<u8> = (7..7 + workers).map(|turn| worker_of_turn(turn, workers)).collect();
            got.sort_unstable();
            let all: Vec<u8> = (0..8).take(workers as usize).collect();
            assert_eq!(got, all);
        }
        assert!(turns_of(Address([0xff; 16])) < TURNS);
    }

    #[test]
    fn even_ports_reach_every_worker() {
        for workers in 1..=8_u32 {
            let mut hits = [0_u32; 8];
            for port in (32768..60999_u16).step_by(2) {
                hits[usize::from(worker_of(port, workers))] += 1;
            }
            let share = 14_116 / workers;
            for hit in &hits[..workers as usize] {
                assert!(hit.abs_diff(share) < share / 5, "{workers} workers: {hits:?}");
            }
        }
    }
}
