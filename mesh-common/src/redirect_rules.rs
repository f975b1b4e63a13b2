//! The rules of the programs, as plain functions: what to do with a `connect()` of an enrolled pod, and with
//! a packet that opens a connection to one.

use crate::address::Address;
use crate::maps::{AddressPort, EnrolledPod, InboundListenerKind};
use crate::{HBONE_PORT, OUTBOUND_PORT};

/// What to do with a `connect()`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnectAction {
    /// Leave it as it is; no look-up is needed.
    Leave,
    /// Redirect it to the proxy if the mesh knows the destination.
    AskDestination,
}

/// Decides what needs no look-up: a pod's connections to itself never leave the pod.
#[inline(always)]
pub fn connect_action(pod: &EnrolledPod, destination: Address) -> ConnectAction {
    if destination.is_loopback()
        || destination == Address::UNSPECIFIED
        || destination == Address::v4([0; 4])
        || destination == pod.address_v4
        || destination == pod.address_v6
    {
        ConnectAction::Leave
    } else {
        ConnectAction::AskDestination
    }
}

/// A network of IPv6 loopback addresses, like IPv4's 127/8, which IPv6 lacks. The keeper gives each pod a
/// route that makes its addresses local to the pod (a unique local prefix, RFC 4193, with a random global
/// id).
pub const LOOPBACK_V6_PREFIX: [u8; 8] = [0xfd, 0x5a, 0xe1, 0xc7, 0x9d, 0x02, 0x00, 0x15];

/// `::1`.
const LOCALHOST_V6: Address = Address([0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1]);

/// Returns where a redirected connection goes: the proxy's listener on the pod's own loopback, in the family
/// of the socket, at an address for each destination. So a pod can have as many connections to each
/// destination as there are ephemeral ports, not to all together, and may use one port for several.
#[inline(always)]
pub const fn outbound_listener_address(pod: &EnrolledPod, to: &AddressPort) -> (Address, u16) {
    let spread = spread(to);
    let loopback = if to.address.is_v4() {
        loopback_v4(0x40, spread)
    } else if pod.loopback_v6 == 0 {
        LOCALHOST_V6
    } else {
        let mut octets = [0; 16];
        let (network, host) = (LOOPBACK_V6_PREFIX, spread.to_be_bytes());
        [octets[0], octets[1], octets[2], octets[3]] = [network[0], network[1], network[2], network[3]];
        [octets[4], octets[5], octets[6], octets[7]] = [network[4], network[5], network[6], network[7]];
        octets[11] = 1;
        [octets[12], octets[13], octets[14], octets[15]] = host;
        Address(octets)
    };
    (loopback, OUTBOUND_PORT)
}

/// Whether an address is one of those, at which the proxy listens.
#[inline(always)]
pub const fn is_outbound_listener_address(address: Address) -> bool {
    let [network, subnet, ..] = address.to_be32x4();
    let [n0, n1, n2, n3, s0, s1, s2, s3] = LOOPBACK_V6_PREFIX;
    let widened =
        network == u32::from_ne_bytes([n0, n1, n2, n3]) && subnet == u32::from_ne_bytes([s0, s1, s2, s3]);
    widened || address.is_loopback()
}

/// Returns where it goes for a socket that its program has bound to an interface, which can't reach loopback.
/// It can reach the pod's own address, which belongs to that interface. Sockets of another interface have no
/// route, and fail.
#[inline(always)]
pub const fn outbound_listener_of_bound_socket(pod: &EnrolledPod, to: &AddressPort) -> (Address, u16) {
    (if to.address.is_v4() { pod.address_v4 } else { pod.address_v6 }, OUTBOUND_PORT)
}

/// Returns an address of 127/8, in a quarter of it that nobody else uses.
#[inline(always)]
const fn loopback_v4(quarter: u8, spread: u32) -> Address {
    let [_, a, b, c] = spread.to_be_bytes();
    Address::v4([127, quarter | (a & 0x3f), b, c])
}

/// Mixes an address and port so that small differences change the last bits.
#[inline(always)]
const fn spread(of: &AddressPort) -> u32 {
    let [a, b, c, d] = of.address.to_be32x4();
    // The finalizer of MurmurHash3, over the port and each word in turn.
    mixed(mixed(mixed(mixed(mixed(of.port as u32) ^ a) ^ b) ^ c) ^ d)
}

#[inline(always)]
const fn mixed(word: u32) -> u32 {
    let word = (word ^ (word >> 16)).wrapping_mul(0x85eb_ca6b);
    let word = (word ^ (word >> 13)).wrapping_mul(0xc2b2_ae35);
    word ^ (word >> 16)
}

/// Whether a connection that arrives comes from the pod itself. The interface alone does not tell: for a
/// pod's own address the kernel names the interface that has the address (`rt_iif`, kernel:
/// `ip_route_output_key_hash_rcu`). From outside such a source can't come: the kernel drops it as martian.
#[inline(always)]
pub fn is_from_pod_itself(local: Address, remote: Address, interface: u32) -> bool {
    /// Index of the loopback device, the first of every network namespace.
    const LOOPBACK: u32 = 1;
    interface == LOOPBACK || remote == local || remote.is_loopback()
}

/// Returns the address that the proxy delivers from. It is on loopback, where ports in `TIME_WAIT` can be
/// used again after a second (`tcp_tw_reuse`), so that the rate of connections to one port has no bound of
/// its own. For IPv4 it is one for each client, of addresses which nobody trusts as they do 127.0.0.1: an
/// application can have as many clients as without a mesh. For IPv6 only `::1` can't be sent from outside.
#[inline(always)]
pub const fn delivery_source_address(application: Address, client: &AddressPort) -> Address {
    if application.is_v4() { loopback_v4(0x80, spread(client)) } else { LOCALHOST_V6 }
}

/// Whether an address is one that the proxy delivers from.
#[inline(always)]
const fn is_delivery_source_address(address: Address) -> bool {
    let is_v6 = matches!(address.to_be32x4(), [0, 0, 0, last] if last == 1_u32.to_be());
    is_v6 || address.is_v4() && address.0[12] == 127 && address.0[13] & 0xc0 == 0x80
}

/// Returns the address that an application may see as its peer if none was stored. A delivery whose client
/// was lost (no memory) must not look like a connection from the pod itself, which applications trust: it
/// shows no address at all.
#[inline(always)]
pub fn visible_peer_address(local: Address, peer: Address) -> Address {
    if is_delivery_source_address(peer) && !local.is_loopback() {
        if local.is_v4() { Address::v4([0; 4]) } else { Address::UNSPECIFIED }
    } else {
        peer
    }
}

/// Returns the listener that gets a new connection to a pod's port.
#[inline(always)]
pub const fn inbound_listener_kind(port: u16) -> InboundListenerKind {
    if port == HBONE_PORT { InboundListenerKind::Hbone } else { InboundListenerKind::Plaintext }
}

/// Entries in which pods count the connections of other nodes. Two pods that share one disturb each other's
/// turns, and nothing else.
pub const TURN_COUNTERS: u32 = 256;

/// Returns the entry of a pod: addresses of one node differ at their ends.
#[inline(always)]
pub const fn turn_counter_of_pod(pod: Address) -> u32 {
    pod.0[15] as u32
}

/// Returns the worker that gets a pod's next connection from another node. A peer has one for each of its
/// workers, and everything between the two pods uses these few, so they are assigned in turn and not at
/// random.
#[inline(always)]
pub const fn worker_by_turn(turn: u32, workers: u32) -> u8 {
    if workers <= 1 {
        return 0;
    }
    // There are at most 64 workers (the agent's settings).
    #[allow(clippy::cast_possible_truncation)]
    let worker = (turn % workers) as u8;
    worker
}

/// Returns the worker that gets a new plaintext connection, spread by the client's port: the same for all
/// packets of one handshake, which may be looked up more than once (`tcp_syncookies`).
#[inline(always)]
pub const fn worker_by_client_port(client_port: u16, workers: u32) -> u8 {
    if workers <= 1 {
        return 0;
    }
    // Linux gives even ephemeral ports first (RFC 6056 shuffle by twos), so the lowest bit alone says
    // nothing.
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

    #[test]
    fn where_the_proxy_listens_is_told_from_a_pods_own_addresses() {
        let pod =
            EnrolledPod { address_v4: address("10.1.0.1"), address_v6: address("fd00::1"), loopback_v6: 1 };
        for to in ["10.1.0.2", "fd00::2"] {
            let to = AddressPort::new(address(to), 80);
            for pod in [pod, EnrolledPod { loopback_v6: 0, ..pod }] {
                assert!(is_outbound_listener_address(outbound_listener_address(&pod, &to).0));
                assert!(!is_outbound_listener_address(outbound_listener_of_bound_socket(&pod, &to).0));
            }
        }
    }

    fn address(text: &str) -> Address {
        Address::from(text.parse::<IpAddr>().unwrap())
    }

    fn pod(v4: &str, v6: &str) -> EnrolledPod {
        EnrolledPod { address_v4: address(v4), address_v6: address(v6), loopback_v6: 1 }
    }

    #[test]
    fn talk_to_itself_is_left_alone() {
        let pod = pod("10.244.1.5", "fd00:244:1::5");
        for (text, expected) in [
            ("127.0.0.1", ConnectAction::Leave),
            ("::1", ConnectAction::Leave),
            ("::ffff:127.0.0.53", ConnectAction::Leave),
            ("0.0.0.0", ConnectAction::Leave),
            ("::", ConnectAction::Leave),
            ("10.244.1.5", ConnectAction::Leave),
            ("::ffff:10.244.1.5", ConnectAction::Leave),
            ("fd00:244:1::5", ConnectAction::Leave),
            ("10.244.1.6", ConnectAction::AskDestination),
            ("fd00:244:1::6", ConnectAction::AskDestination),
        ] {
            assert_eq!(connect_action(&pod, address(text)), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_without_ipv6_does_not_claim_the_unspecified_address() {
        let pod = pod("10.244.1.5", "::");
        assert_eq!(connect_action(&pod, address("fd00::1")), ConnectAction::AskDestination);
    }

    #[test]
    fn redirection_keeps_the_family_and_spreads_by_destination() {
        let pod = pod("10.244.1.5", "fd00:244:1::5");
        let at = |text: &str, port| outbound_listener_address(&pod, &AddressPort::new(address(text), port));
        let mut seen = std::collections::HashSet::new();
        for (ip, v4) in [("10.0.0", true), ("fd00:", false)] {
            for last in 0..100 {
                for port in [80, 81, 8080] {
                    let to = format!("{ip}{}{last}", if v4 { "." } else { ":" });
                    let (listener, listens) = at(&to, port);
                    assert_eq!((listener.is_v4(), listens), (v4, 15001), "{to}");
                    let range = if v4 {
                        listener.0[12] == 127 && listener.0[13] >> 6 == 1
                    } else {
                        listener.0[..8] == LOOPBACK_V6_PREFIX
                    };
                    assert!(range && seen.insert(listener), "{to} port {port}: {:?}", IpAddr::from(listener));
                }
            }
        }
        assert_eq!(at("10.0.0.1", 80), at("10.0.0.1", 80));
        let narrow = EnrolledPod { loopback_v6: 0, ..pod };
        assert_eq!(
            outbound_listener_address(&narrow, &AddressPort::new(address("fd00::1"), 80)).0,
            address("::1")
        );
        let bound = |to: &str| outbound_listener_of_bound_socket(&pod, &AddressPort::new(address(to), 80)).0;
        assert_eq!((bound("10.0.0.1"), bound("fd00::1")), (pod.address_v4, pod.address_v6));
    }

    #[test]
    fn deliveries_come_from_an_address_for_each_client() {
        let source = |client: &str, port| {
            delivery_source_address(address("10.244.1.5"), &AddressPort::new(address(client), port))
        };
        let mut seen = std::collections::HashSet::new();
        for port in 30_000..30_100 {
            for client in ["10.244.1.6", "10.244.2.6"] {
                let from = source(client, port);
                assert!(from.0[12] == 127 && from.0[13] >> 6 == 2 && seen.insert(from), "{client}:{port}");
            }
        }
    }

    #[test]
    fn a_pods_own_connections_are_told_apart() {
        let (pod, other) = (address("10.244.1.5"), address("10.244.1.6"));
        assert!(is_from_pod_itself(pod, pod, 2), "its own address, over the interface that has it");
        assert!(is_from_pod_itself(pod, address("127.0.0.1"), 2));
        assert!(is_from_pod_itself(address("127.0.0.1"), address("127.0.0.1"), 1));
        assert!(!is_from_pod_itself(pod, other, 2));
    }

    #[test]
    fn a_lost_client_is_nobody_and_not_localhost() {
        for (local, client, nobody) in
            [("10.244.1.5", "10.244.1.9", "0.0.0.0"), ("fd00:244:1::5", "fd00:244:1::9", "::")]
        {
            let source = delivery_source_address(address(local), &AddressPort::new(address(client), 40_000));
            assert_eq!(visible_peer_address(address(local), source), address(nobody));
            assert_eq!(visible_peer_address(address("127.0.0.1"), source), source, "talk over loopback");
        }
        for (local, peer) in [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("10.244.1.5", "10.244.1.9")] {
            assert_eq!(visible_peer_address(address(local), address(peer)), address(peer), "others stay");
        }
    }

    #[test]
    fn only_the_hbone_port_speaks_hbone() {
        assert_eq!(inbound_listener_kind(15008), InboundListenerKind::Hbone);
        for port in [1, 80, 15001, 15006, 65535] {
            assert_eq!(inbound_listener_kind(port), InboundListenerKind::Plaintext);
        }
    }

    #[test]
    fn connections_of_one_peer_are_dealt_out_to_all_workers() {
        for workers in 1..=8_u32 {
            let mut got: Vec<u8> = (7..7 + workers).map(|turn| worker_by_turn(turn, workers)).collect();
            got.sort_unstable();
            let all: Vec<u8> = (0..8).take(workers as usize).collect();
            assert_eq!(got, all);
        }
        assert!(turn_counter_of_pod(Address([0xff; 16])) < TURN_COUNTERS);
    }

    #[test]
    fn even_ports_reach_every_worker() {
        for workers in 1..=8_u32 {
            let mut hits = [0_u32; 8];
            for port in (32768..60999_u16).step_by(2) {
                hits[usize::from(worker_by_client_port(port, workers))] += 1;
            }
            let share = 14_116 / workers;
            for hit in &hits[..workers as usize] {
                assert!(hit.abs_diff(share) < share / 5, "{workers} workers: {hits:?}");
            }
        }
    }
}
