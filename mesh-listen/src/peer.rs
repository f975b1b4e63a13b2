//! Who connects, and whom he shares his places with.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Bits of an IPv6 address that name a network; the rest a host may choose, all 2^64 of them (RFC 4291,
/// 2.5.1).
const NETWORK_BITS: u32 = 64;

/// Those who share their places: an IPv4 address, an IPv6 network of 64 bits, or a user of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Group {
    /// An IPv4 address, or the first of an IPv6 network.
    Address(IpAddr),
    /// A user, over a Unix socket.
    User(u32),
    /// Somebody else who is known, by a number that stands for him: an identity, for one.
    Other(u64),
}

impl Group {
    /// The group of an address. An IPv4 address counts as itself in its IPv6 form too.
    pub fn of(address: IpAddr) -> Self {
        Self::Address(match address.to_canonical() {
            IpAddr::V6(address) => {
                let network = u128::MAX << (128 - NETWORK_BITS);
                Ipv6Addr::from_bits(address.to_bits() & network).into()
            }
            address @ IpAddr::V4(_) => address,
        })
    }
}

/// The two ends of a connection, as the kernel has them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// Over TCP.
    Network {
        /// The peer's address.
        from: SocketAddr,
        /// Our own end's.
        to: SocketAddr,
    },
    /// Over a Unix socket.
    User {
        /// Who opened it (`SO_PEERCRED`, unix(7)).
        uid: u32,
    },
}

impl Peer {
    /// Whom it shares its places with.
    pub fn group(&self) -> Group {
        match self {
            Self::Network { from, .. } => Group::of(from.ip()),
            Self::User { uid } => Group::User(*uid),
        }
    }

    /// The address that it comes from, canonical; none over a Unix socket.
    pub fn address(&self) -> Option<IpAddr> {
        match self {
            Self::Network { from, .. } => Some(from.ip().to_canonical()),
            Self::User { .. } => None,
        }
    }

    /// Whether a process of this very network namespace opened it: from loopback, or from the address that it
    /// leads to.
    ///
    /// Nobody else completes a handshake from there. What comes from outside with an address that is the
    /// kernel's own is dropped (IPv4: a martian source, `fib_validate_source`), and its answers go to that
    /// kernel itself, not to him who sent it.
    pub fn is_this_host(&self) -> bool {
        match self {
            Self::Network { from, to } => {
                let (from, to) = (from.ip().to_canonical(), to.ip().to_canonical());
                from.is_loopback() || from == to
            }
            Self::User { .. } => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(address: &str) -> Group {
        Group::of(address.parse().unwrap())
    }

    #[test]
    fn a_host_can_not_choose_its_group() {
        assert_eq!(group("fd00:1::1"), group("fd00:1::ffff:1:2:3"));
        assert_ne!(group("fd00:1::1"), group("fd00:1:0:1::1"));
        assert_ne!(group("10.0.0.1"), group("10.0.0.2"));
        assert_eq!(group("10.0.0.1"), group("::ffff:10.0.0.1"));
        assert_ne!(group("::ffff:10.0.0.1"), group("::ffff:10.0.0.2"));
    }

    #[test]
    fn this_host_is_who_comes_from_loopback_or_from_where_he_goes() {
        let of = |from: &str, to: &str| {
            Peer::Network { from: from.parse().unwrap(), to: to.parse().unwrap() }.is_this_host()
        };
        assert!(of("127.0.0.1:1", "127.0.0.1:15020") && of("[::1]:1", "[::1]:15020"));
        assert!(of("[::ffff:10.0.0.1]:1", "10.0.0.1:15020"));
        assert!(!of("10.0.0.2:1", "10.0.0.1:15020"));
        assert!(!of("[fd00::2]:1", "[fd00::1]:15020"));
    }
}
