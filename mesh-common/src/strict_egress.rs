//! Strict egress: pods that may not connect to destinations which the mesh does not know, with exceptions.
//!
//! One trie of prefixes holds both: for each such pod an entry of its namespace's cookie alone, which
//! refuses, and longer entries of the cookie and more, which except. A pod without an entry may connect
//! anywhere. An exception that is missing, for lack of room, refuses too much and never too little.

use crate::address::Address;

/// Most entries of `EGRESS`.
pub const MAX_EGRESS_ENTRIES: u32 = 65_536;

/// Value of an entry that refuses.
pub const EGRESS_REFUSED: u32 = 1;
/// Value of an entry that excepts.
pub const EGRESS_EXCEPTED: u32 = 2;

/// Bits of the prefix of an entry that refuses.
pub const PREFIX_BITS_OF_POD: u32 = 64;
/// Bits of a key in front of the address.
pub const PREFIX_BITS_BEFORE_ADDRESS: u32 = PREFIX_BITS_OF_POD + 32;
/// Bits of a whole key.
pub const PREFIX_BITS_OF_KEY: u32 = PREFIX_BITS_BEFORE_ADDRESS + 128;

/// Value of [`EgressKey::port`] that stands for all ports: no connection has it.
pub const ANY_PORT: u16 = 0;

/// Key of `EGRESS`, behind the length of its prefix.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct EgressKey {
    /// Cookie of the pod's network namespace, the lower half first.
    pub netns: [u32; 2],
    /// The port, with the family above it: an IPv6 prefix must not cover IPv4, whose addresses are held as
    /// IPv4-mapped ones.
    pub port: u32,
    /// The address as words in network order: for single bytes the compiler would use stack.
    pub address: [u32; 4],
}
const _: () =
    assert!(size_of::<EgressKey>() == 28 && size_of::<EgressKey>() * 8 == PREFIX_BITS_OF_KEY as usize);

impl EgressKey {
    /// Returns the key of a pod's connections to a destination.
    #[inline(always)]
    pub const fn new(netns: u64, address: Address, port: u16) -> Self {
        /// Bit above all ports.
        const V6: u32 = 1 << 16;
        let family = if address.is_v4() { 0 } else { V6 };
        #[allow(clippy::cast_possible_truncation)]
        let halves = [netns as u32, (netns >> 32) as u32];
        Self { netns: halves, port: family | port as u32, address: address.to_be32x4() }
    }

    /// Returns the cookie of the pod's network namespace.
    pub const fn pod_netns(self) -> u64 {
        (self.netns[1] as u64) << 32 | self.netns[0] as u64
    }
}

/// Returns the key of the entry that refuses a pod's connections; its prefix has [`PREFIX_BITS_OF_POD`] bits.
pub const fn refuse_all_key(netns: u64) -> EgressKey {
    EgressKey { port: 0, ..EgressKey::new(netns, Address::UNSPECIFIED, 0) }
}

#[cfg(test)]
mod tests {
    use std::net::IpAddr;

    use super::*;

    #[test]
    fn a_key_has_its_pod_and_families_apart() {
        let of =
            |text: &str| EgressKey::new(0x1234_5678_9abc_def0, text.parse::<IpAddr>().unwrap().into(), 443);
        assert_eq!(of("10.0.0.1").pod_netns(), 0x1234_5678_9abc_def0);
        assert_eq!(of("10.0.0.1"), of("::ffff:10.0.0.1"), "an IPv4-mapped address is the IPv4 one");
        assert_ne!(of("fd00::1").port, of("10.0.0.1").port);
        assert_eq!(refuse_all_key(7).pod_netns(), 7);
    }
}
