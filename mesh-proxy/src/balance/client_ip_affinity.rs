//! Session affinity: one endpoint for each client (Kubernetes' `sessionAffinity: ClientIP`).
//!
//! A client without an endpoint gets the one of the highest score (weighted rendezvous hashing). The score is
//! the same on every worker, in both families and after a restart, so little is lost where nothing is
//! remembered. Once a client has an endpoint it keeps it, whichever others come: only for that there is a
//! table.

use std::collections::HashMap;
use std::hash::Hasher;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use fnv::FnvHasher;
use mesh_api::plan::{Endpoint, EndpointId, Endpoints, PortPolicy, Service, Workload};

use super::excluded_endpoints::EndpointsToSkip;
use super::picker::choosable_endpoints;

/// Most clients that are remembered, of all pods of the node and all services; some 150 bytes each. Further
/// ones go where their score says.
const MOST: usize = 65_536;

/// Places searched for an expired client when the table is full. The next search begins where this one ends.
const LOOKS: usize = 16;

/// By what an endpoint is remembered: a client of one port of a service.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct AffinityKey {
    /// Uid of the client's workload; its address would differ between IPv4 and IPv6.
    pub workload: Arc<str>,
    /// Key of the service.
    pub service: Arc<str>,
    /// Port of the service.
    pub port: u16,
}

impl AffinityKey {
    /// Returns the key of a workload as client of a service's port, and how long an endpoint is remembered
    /// for it; none if the service has no session affinity.
    pub fn key_and_timeout_if_enabled(
        workload: &Workload,
        service: &Service,
        policy: &PortPolicy,
        port: u16,
    ) -> Option<(Self, Duration)> {
        let timeout = service.affinity_timeout(policy)?;
        let (workload, service) = (Arc::clone(&workload.uid), Arc::clone(&service.key));
        Some((Self { workload, service, port }, timeout))
    }
}

/// Remembers which client has which endpoint.
#[derive(Debug, Default)]
pub struct SessionAffinity {
    table: Mutex<Table>,
}

/// The clients remembered: at most [`MOST`]. Nobody waits for a search of all of them.
#[derive(Debug, Default)]
struct Table {
    places: HashMap<AffinityKey, usize>,
    kept: Vec<Kept>,
    /// Index at which the next search for room begins.
    hand: usize,
}

/// The workload that a client keeps.
#[derive(Debug)]
struct Kept {
    client: AffinityKey,
    workload: Arc<str>,
    until: Instant,
}

impl SessionAffinity {
    /// Returns the index of a client's endpoint, among those that have a weight and are not left out; none if
    /// there are no such ones.
    pub fn choose_endpoint_index(
        &self,
        client: &AffinityKey,
        endpoints: &Endpoints,
        excluded: &EndpointsToSkip,
        now: Instant,
    ) -> Option<usize> {
        let kept = self.table().get(client, now);
        let eligible = || choosable_endpoints(endpoints, excluded, None);
        let kept = kept.and_then(|kept| eligible().find(|(_, endpoint)| endpoint.workload.uid == kept));
        let scored = || eligible().map(|(index, endpoint)| (index, score(client, endpoint)));
        let highest = || scored().max_by(|(_, one), (_, other)| one.total_cmp(other));
        kept.map(|(index, _)| index).or_else(|| highest().map(|(index, _)| index))
    }

    /// Remembers that a client has connected to an endpoint, and keeps it for `timeout` from `now`. A new
    /// client that finds no room is not remembered.
    pub fn remember_endpoint(
        &self,
        client: AffinityKey,
        endpoint: &EndpointId,
        timeout: Duration,
        now: Instant,
    ) {
        let Some(until) = now.checked_add(timeout) else { return };
        self.table().put(Kept { client, workload: Arc::clone(&endpoint.workload), until }, now);
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        // Nothing below panics under the lock.
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    fn get(&self, client: &AffinityKey, now: Instant) -> Option<Arc<str>> {
        let kept = self.kept.get(*self.places.get(client)?)?;
        (kept.until > now).then(|| Arc::clone(&kept.workload))
    }

    fn put(&mut self, new: Kept, now: Instant) {
        let known = self.places.get(&new.client).copied();
        let Some(place) = known.or_else(|| self.room(now)) else { return };
        match self.kept.get_mut(place) {
            Some(old) => {
                if known.is_none() {
                    self.places.remove(&old.client);
                    self.places.insert(new.client.clone(), place);
                }
                *old = new;
            }
            None => {
                self.places.insert(new.client.clone(), place);
                self.kept.push(new);
            }
        }
    }

    /// Returns the index for a new client: behind the others, or in place of one that has expired.
    fn room(&mut self, now: Instant) -> Option<usize> {
        if self.kept.len() < MOST {
            return Some(self.kept.len());
        }
        let looked_at = (self.hand..self.hand + LOOKS).map(|place| place % MOST);
        let room = looked_at.clone().find(|place| self.kept[*place].until <= now);
        self.hand = room.map_or(self.hand + LOOKS, |place| place + 1) % MOST;
        room
    }
}

/// Each endpoint's score is the highest as often as its share of the weights (Schindelhauer and Schomaker,
/// "Weighted distributed hash tables", 2005).
fn score(client: &AffinityKey, endpoint: &Endpoint) -> f64 {
    let mut hasher = FnvHasher::default();
    for text in [&*client.workload, &*client.service, &*endpoint.workload.uid] {
        hasher.write(text.as_bytes());
        hasher.write_u8(0xff);
    }
    hasher.write(&client.port.to_be_bytes());
    // 53 bits, as many as a float holds; above 0 and below 1.
    #[expect(clippy::cast_precision_loss, reason = "53 bits are what a float holds")]
    let uniform = ((mixed(hasher.finish()) >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
    -f64::from(endpoint.weight) / uniform.ln()
}

/// Spreads each bit over all others (`fmix64` of `MurmurHash3`), which FNV does not: uids differ in their
/// last characters.
fn mixed(mut hash: u64) -> u64 {
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xff51_afd7_ed55_8ccd);
    hash ^= hash >> 33;
    hash = hash.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    hash ^ (hash >> 33)
}

#[cfg(test)]
mod tests {
    use super::super::fixture::weighted_endpoints;
    use super::*;

    fn client(name: &str) -> AffinityKey {
        AffinityKey { workload: name.into(), service: "shop/web".into(), port: 80 }
    }

    #[test]
    fn clients_are_dealt_out_by_weight_and_each_always_alike() {
        let all = weighted_endpoints(&[("web-0", 1), ("web-1", 1), ("web-2", 2), ("web-3", 0)]);
        let (mut hits, now) = ([0; 4], Instant::now());
        for number in 0..4000 {
            let client = client(&format!("cluster//Pod/shop/client-{number}"));
            let chosen = SessionAffinity::default()
                .choose_endpoint_index(&client, &all, &EndpointsToSkip::default(), now)
                .unwrap();
            assert_eq!(
                SessionAffinity::default().choose_endpoint_index(
                    &client,
                    &all,
                    &EndpointsToSkip::default(),
                    now
                ),
                Some(chosen)
            );
            hits[chosen] += 1;
        }
        assert!((850..1150).contains(&hits[0]) && (850..1150).contains(&hits[1]), "{hits:?}");
        assert!((1850..2150).contains(&hits[2]) && hits[3] == 0, "{hits:?}");
    }

    #[test]
    fn a_client_keeps_its_endpoint_though_others_come_and_until_it_goes() {
        let (affinity, now, timeout) = (SessionAffinity::default(), Instant::now(), Duration::from_mins(10));
        let own = weighted_endpoints(&[("web-0", 1)]);
        for number in 0..50 {
            affinity.remember_endpoint(client(&number.to_string()), &own[0].key(), timeout, now);
        }
        let all = weighted_endpoints(&[("web-0", 1), ("web-1", 1), ("web-2", 1)]);
        let chosen = |all: &Endpoints, excluded: &[usize], now| {
            let excluded = excluded.iter().copied().collect();
            let choose = |number: u32| {
                affinity.choose_endpoint_index(&client(&number.to_string()), all, &excluded, now)
            };
            (0..50).filter_map(choose).collect::<Vec<_>>()
        };
        assert!(chosen(&all, &[], now).iter().all(|chosen| *chosen == 0));
        assert!(chosen(&all, &[], now + timeout).contains(&1), "in the end another one may be its own");
        assert!(chosen(&all, &[0], now).iter().all(|chosen| *chosen != 0), "it is left out");
        let without = weighted_endpoints(&[("web-0", 0), ("web-1", 1)]);
        assert!(chosen(&without, &[], now).iter().all(|chosen| *chosen == 1), "it takes nothing");
        let gone = weighted_endpoints(&[("web-1", 1), ("web-2", 1)]);
        assert!(chosen(&gone, &[], now).contains(&1), "it is gone");
        assert!(chosen(&weighted_endpoints(&[]), &[], now).is_empty());
    }

    #[test]
    fn memory_is_bounded_and_those_of_the_past_make_room() {
        let (affinity, now) = (SessionAffinity::default(), Instant::now());
        let endpoints = weighted_endpoints(&[("web-0", 1), ("web-1", 0)]);
        let (own, second) = (&endpoints[1].key(), Duration::from_secs(1));
        for number in 0..MOST + 10 {
            affinity.remember_endpoint(client(&number.to_string()), own, second, now);
        }
        assert_eq!(affinity.table().kept.len(), MOST);
        // One keeps coming, and so keeps what it has.
        let later = now + 2 * second;
        affinity.remember_endpoint(client("7"), own, 10 * second, now);
        for number in 0..MOST {
            affinity.remember_endpoint(client(&format!("later {number}")), own, 10 * second, later);
        }
        let table = affinity.table();
        assert_eq!((table.kept.len(), table.places.len()), (MOST, MOST));
        let has = |name: &str| table.get(&client(name), later).is_some();
        assert!(
            has("7") && (0..MOST - 1).all(|number| has(&format!("later {number}"))),
            "room for all but one"
        );
        assert!(!has(&format!("later {}", MOST - 1)));
        assert!(table.places.iter().all(|(client, place)| table.kept[*place].client == *client));
    }

    #[test]
    fn a_new_client_costs_no_more_where_there_is_no_room() {
        let (mut table, now) = (Table::default(), Instant::now());
        let kept = |name: String, until| Kept { client: client(&name), workload: "web-0".into(), until };
        for number in 0..MOST {
            // All but the last are there for long.
            let until = now + Duration::from_secs(if number == MOST - 1 { 0 } else { 1000 });
            table.put(kept(number.to_string(), until), now);
        }
        for number in 0..MOST / LOOKS - 1 {
            table.put(kept(format!("later {number}"), now + Duration::from_secs(1)), now);
            assert_eq!(table.hand, (number + 1) * LOOKS, "so many were looked at");
            assert_eq!(table.places.len(), MOST);
        }
        table.put(kept("last".to_owned(), now + Duration::from_secs(1)), now);
        assert!(table.get(&client("last"), now).is_some(), "by turns all are looked at");
        assert_eq!(table.hand, 0);
    }
}
