//! One endpoint for each client: Kubernetes' `sessionAffinity: ClientIP`.
//!
//! Who has no endpoint yet gets the one of the highest score among all (weighted rendezvous hashing), which is the same
//! on every core, in both families and after a restart of the proxy, so that little is lost where nothing is
//! remembered. Once a client has one it keeps it, whoever else comes: that alone is why there is a table.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fnv::FnvHasher;
use mesh_api::plan::TargetKey;

/// Clients that are remembered, of all pods of the node and all services; some 100 bytes each. Further ones go where
/// their score says.
const MOST: usize = 65_536;

/// A client of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Client {
    /// The client's workload, by its uid: its address would be another in the other family.
    pub workload: Arc<str>,
    /// Key of the service.
    pub service: Arc<str>,
    /// Port of the service.
    pub port: u16,
}

/// Who has which endpoint.
#[derive(Debug, Default)]
pub struct Affinity {
    clients: Mutex<HashMap<Client, Kept>>,
}

/// The workload that a client has.
#[derive(Debug)]
struct Kept {
    workload: Arc<str>,
    until: Instant,
}

impl Affinity {
    /// The index of a client's endpoint among candidates (key and weight; a weight of 0 is never chosen).
    pub fn choose(&self, client: &Client, candidates: &[(TargetKey, u32)], now: Instant) -> Option<usize> {
        let kept =
            self.clients().get(client).filter(|kept| kept.until > now).map(|kept| Arc::clone(&kept.workload));
        let has = |workload: Arc<str>| {
            candidates.iter().position(|(key, weight)| *weight > 0 && key.workload == workload)
        };
        kept.and_then(has).or_else(|| highest(client, candidates))
    }

    /// A client has connected to an endpoint, and keeps it for so long.
    pub fn keep(&self, client: Client, endpoint: &TargetKey, timeout: Duration, now: Instant) {
        let Some(until) = now.checked_add(timeout) else { return };
        let mut clients = self.clients();
        if clients.len() >= MOST && !clients.contains_key(&client) {
            clients.retain(|_, kept| kept.until > now);
            if clients.len() >= MOST {
                return;
            }
        }
        clients.insert(client, Kept { workload: Arc::clone(&endpoint.workload), until });
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<Client, Kept>> {
        // Nothing that panics happens under the lock.
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The candidate of the highest score, by index.
fn highest(client: &Client, candidates: &[(TargetKey, u32)]) -> Option<usize> {
    let eligible = candidates.iter().enumerate().filter(|(_, (_, weight))| *weight > 0);
    let scored = eligible.map(|(index, (key, weight))| (index, score(client, &key.workload, *weight)));
    scored.max_by(|(_, one), (_, other)| one.total_cmp(other)).map(|(index, _)| index)
}

/// Each candidate is the highest as often as its share of the weights (Schindelhauer and Schomaker, "Weighted
/// distributed hash tables", 2005).
fn score(client: &Client, workload: &str, weight: u32) -> f64 {
    let mut hasher = FnvHasher::default();
    for text in [&*client.workload, &*client.service, workload] {
        hasher.write(text.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.write(&client.port.to_be_bytes());
    // Of the 53 bits that a float holds; above 0, and below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    let uniform = ((mixed(hasher.finish()) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(weight) / uniform.ln()
}

/// Spreads what differs over all bits, which FNV does not: uids differ in their last characters. (`fmix64` of
/// `MurmurHash3`.)
fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn client(name: &str) -> Client {
        Client { workload: name.into(), service: "shop/web".into(), port: 80 }
    }

    fn endpoints(names: &[(&str, u32)]) -> Vec<(TargetKey, u32)> {
        let key = |name: &str| TargetKey { workload: name.into(), address: "10.0.0.1:80".parse().unwrap() };
        names.iter().map(|(name, weight)| (key(name), *weight)).collect()
    }

    #[test]
    fn clients_are_dealt_out_by_weight_and_each_always_alike() {
        let all = endpoints(&[("web-0", 1), ("web-1", 1), ("web-2", 2), ("web-3", 0)]);
        let (mut hits, now) = ([0; 4], Instant::now());
        for number in 0..4000 {
            let client = client(&format!("cluster//Pod/shop/client-{number}"));
            let chosen = Affinity::default().choose(&client, &all, now).unwrap();
            assert_eq!(Affinity::default().choose(&client, &all, now), Some(chosen));
            hits[chosen] += 1;
        }
        assert!((850..1150).contains(&hits[0]) && (850..1150).contains(&hits[1]), "{hits:?}");
        assert!((1850..2150).contains(&hits[2]) && hits[3] == 0, "{hits:?}");
    }

    #[test]
    fn a_client_keeps_its_endpoint_though_others_come_and_until_it_goes() {
        let (affinity, now, timeout) = (Affinity::default(), Instant::now(), Duration::from_mins(10));
        let mut all = endpoints(&[("web-0", 1)]);
        for number in 0..50 {
            affinity.keep(client(&number.to_string()), &all[0].0, timeout, now);
        }
        all.extend(endpoints(&[("web-1", 1), ("web-2", 1)]));
        let chosen = |all: &[(TargetKey, u32)], now| {
            let chosen = (0..50).filter_map(|number| affinity.choose(&client(&number.to_string()), all, now));
            chosen.collect::<Vec<_>>()
        };
        assert!(chosen(&all, now).iter().all(|chosen| *chosen == 0));
        assert!(chosen(&all, now + timeout).contains(&1), "in the end another one may be its own");
        all[0].1 = 0;
        assert!(chosen(&all, now).iter().all(|chosen| *chosen != 0), "it takes nothing");
        assert!(chosen(&all[1..], now).contains(&1), "it is gone");
        assert_eq!(affinity.choose(&client("x"), &[], now), None);
    }

    #[test]
    fn memory_is_bounded() {
        let (affinity, now) = (Affinity::default(), Instant::now());
        let endpoint = &endpoints(&[("web-0", 1)])[0].0;
        for number in 0..MOST + 10 {
            affinity.keep(client(&number.to_string()), endpoint, Duration::from_secs(1), now);
        }
        assert_eq!(affinity.clients().len(), MOST);
        affinity.keep(client("later"), endpoint, Duration::from_secs(1), now + Duration::from_secs(2));
        assert_eq!(affinity.clients().len(), 1, "those of the past make room");
    }
}
