//! Consistent hashing by the highest random weight: for a key each endpoint draws a number, always the same,
//! and the highest wins. Keys are spread evenly by weight, all nodes agree, and when an endpoint goes only
//! its own keys move.
//!
//! Thaler and Ravishankar, "Using name-based mappings to increase hit rates" (1998); by weight as
//! Schindelhauer and Schomaker have it (2005).

use std::net::IpAddr;

use mesh_api::plan::{Endpoint, Endpoints};
use twox_hash::XxHash64;

use super::excluded_endpoints::EndpointsToSkip;
use super::picker::choosable_endpoints;

/// Number of values of 32 bits.
const RANGE: f64 = 4_294_967_296.0;

/// A key, hashed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeyHash(u64);

impl KeyHash {
    /// Hashes a key, in the same way on all nodes and in all versions.
    pub fn of(key: &[u8]) -> Self {
        Self(XxHash64::oneshot(0, key))
    }

    /// Hashes the address of a client.
    pub fn of_client(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(v4) => Self::of(&v4.octets()),
            IpAddr::V6(v6) => Self::of(&v6.octets()),
        }
    }

    /// Returns the index of the endpoint that the key stands for, of those that are not left out.
    pub(super) fn choose(self, endpoints: &Endpoints, excluded: &EndpointsToSkip) -> Option<usize> {
        let scores = choosable_endpoints(endpoints, excluded, None)
            .map(|(index, endpoint)| (index, self.score(endpoint)));
        scores.max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(index, _)| index)
    }

    /// The number that an endpoint draws: the time until the first event of a random process whose rate is
    /// its weight, as a negative one.
    fn score(self, endpoint: &Endpoint) -> f64 {
        // Not by its address: it has one of each family, and a pod of a StatefulSet gets others.
        let [a, b, c, d, ..] = XxHash64::oneshot(self.0, endpoint.workload.uid.as_bytes()).to_be_bytes();
        // Above 0, which has no logarithm.
        let uniform = (f64::from(u32::from_be_bytes([a, b, c, d])) + 0.5) / RANGE;
        uniform.ln() / f64::from(endpoint.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::weighted_endpoints;
    use super::*;

    const KEYS: u32 = 10_000;
    const NAMES: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

    /// The name of the endpoint that each key stands for.
    fn chosen(of: &[(&str, u32)]) -> Vec<String> {
        let endpoints = weighted_endpoints(of);
        let choose = |key: u32| {
            let index = KeyHash::of(&key.to_le_bytes()).choose(&endpoints, &EndpointsToSkip::default());
            endpoints[index.unwrap()].workload.uid.to_string()
        };
        (0..KEYS).map(choose).collect()
    }

    fn share(of: &[String], name: &str) -> usize {
        of.iter().filter(|chosen| *chosen == name).count()
    }

    #[test]
    fn keys_are_even_and_only_those_of_an_endpoint_that_goes_move() {
        let all = NAMES.map(|name| (name, 1));
        let before = chosen(&all);
        for name in NAMES {
            assert!((850..1150).contains(&share(&before, name)), "{name}: {}", share(&before, name));
        }
        let after = chosen(&all[1..]);
        let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
        assert_eq!(moved, share(&before, NAMES[0]), "no other key moves");
        let reversed: Vec<_> = all.into_iter().rev().collect();
        assert_eq!(chosen(&reversed), before, "their order does not count");
    }

    #[test]
    fn keys_follow_weights() {
        let hits = share(&chosen(&[("a", 3), ("b", 1)]), "a");
        assert!((7200..7800).contains(&hits), "{hits}");
        assert_eq!(share(&chosen(&[("a", 0), ("b", 1)]), "a"), 0);
    }

    #[test]
    fn a_key_s_next_endpoint_is_the_same_for_all() {
        let endpoints = weighted_endpoints(&NAMES.map(|name| (name, 1)));
        let key = KeyHash::of(b"user");
        let first = key.choose(&endpoints, &EndpointsToSkip::default()).unwrap();
        let second = key.choose(&endpoints, &[first].into_iter().collect());
        let without: Vec<_> = NAMES.into_iter().enumerate().filter(|(index, _)| *index != first).collect();
        let rest = weighted_endpoints(&without.iter().map(|(_, name)| (*name, 1)).collect::<Vec<_>>());
        let of_rest = key.choose(&rest, &EndpointsToSkip::default()).unwrap();
        assert_eq!(second, Some(without[of_rest].0));
        assert_eq!(key.choose(&weighted_endpoints(&[]), &EndpointsToSkip::default()), None);
    }

    #[test]
    fn a_key_is_hashed_alike_in_all_versions() {
        assert_eq!(KeyHash::of(b""), KeyHash(0xef46_db37_51d8_e999), "the algorithm's own test vector");
    }
}
