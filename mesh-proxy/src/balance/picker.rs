//! Whose turn it is: one worker's view.

use std::cell::RefCell;
use std::collections::HashMap;
use std::hash::Hash;
use std::rc::Rc;

use mesh_api::plan::LoadBalancer;
use rand::RngExt;

/// The turns and open connections of one worker, by endpoint key.
pub struct Picker<K> {
    endpoints: Rc<RefCell<HashMap<K, Endpoint>>>,
}

#[derive(Debug, Default)]
struct Endpoint {
    /// Open connections.
    active: u32,
    /// What round robin owes the endpoint (smooth weighted round robin).
    credit: i64,
}

/// An open connection to an endpoint, counted until it is dropped.
pub struct Active<K: Hash + Eq> {
    endpoints: Rc<RefCell<HashMap<K, Endpoint>>>,
    key: K,
}

impl<K: Hash + Eq + Clone> Default for Picker<K> {
    fn default() -> Self {
        Self { endpoints: Rc::default() }
    }
}

impl<K: Hash + Eq + Clone> Picker<K> {
    /// Chooses one of `candidates` (key and weight; a weight of 0 is never chosen), by index.
    pub fn choose(&self, method: LoadBalancer, candidates: &[(K, u32)]) -> Option<usize> {
        match method {
            LoadBalancer::Unspecified | LoadBalancer::LeastRequest => self.less_loaded(candidates),
            LoadBalancer::RoundRobin => self.next_in_turn(candidates),
            // A passthrough has one candidate, the address that the client used.
            LoadBalancer::Random | LoadBalancer::Passthrough => draw(candidates, None),
        }
    }

    /// Counts a connection to an endpoint.
    pub fn open(&self, key: K) -> Active<K> {
        self.endpoints.borrow_mut().entry(key.clone()).or_default().active += 1;
        Active { endpoints: Rc::clone(&self.endpoints), key }
    }

    /// Forgets endpoints without connections that `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&K) -> bool) {
        self.endpoints.borrow_mut().retain(|key, endpoint| endpoint.active > 0 || keep(key));
    }

    fn less_loaded(&self, candidates: &[(K, u32)]) -> Option<usize> {
        let first = draw(candidates, None)?;
        let Some(second) = draw(candidates, Some(first)) else { return Some(first) };
        let endpoints = self.endpoints.borrow();
        let load = |index: usize| {
            let (key, weight) = &candidates[index];
            let active = endpoints.get(key).map_or(0, |endpoint| endpoint.active);
            f64::from(active) / f64::from(*weight)
        };
        Some(if load(second) < load(first) { second } else { first })
    }

    fn next_in_turn(&self, candidates: &[(K, u32)]) -> Option<usize> {
        let mut endpoints = self.endpoints.borrow_mut();
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, (key, weight)) in candidates.iter().enumerate().filter(|(_, (_, weight))| *weight > 0) {
            let endpoint = endpoints.entry(key.clone()).or_default();
            endpoint.credit += i64::from(*weight);
            total += i64::from(*weight);
            if best.is_none_or(|(_, credit)| endpoint.credit > credit) {
                best = Some((index, endpoint.credit));
            }
        }
        let (index, _) = best?;
        endpoints.entry(candidates[index].0.clone()).or_default().credit -= total;
        Some(index)
    }
}

impl<K: Hash + Eq> Drop for Active<K> {
    fn drop(&mut self) {
        if let Some(endpoint) = self.endpoints.borrow_mut().get_mut(&self.key) {
            endpoint.active = endpoint.active.saturating_sub(1);
        }
    }
}

/// Draws one by weight, leaving out `except`.
fn draw<K>(candidates: &[(K, u32)], except: Option<usize>) -> Option<usize> {
    let eligible = || candidates.iter().enumerate().filter(move |(index, _)| Some(*index) != except);
    let total: u64 = eligible().map(|(_, (_, weight))| u64::from(*weight)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rand::rng().random_range(0..total);
    for (index, (_, weight)) in eligible() {
        match ticket.checked_sub(u64::from(*weight)) {
            Some(rest) => ticket = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn count(
        picker: &Picker<&'static str>,
        method: LoadBalancer,
        candidates: &[(&'static str, u32)],
        n: usize,
    ) -> Vec<usize> {
        let mut hits = vec![0; candidates.len()];
        for _ in 0..n {
            hits[picker.choose(method, candidates).unwrap()] += 1;
        }
        hits
    }

    #[test]
    fn round_robin_is_exact_and_follows_weights() {
        let picker = Picker::default();
        assert_eq!(
            count(&picker, LoadBalancer::RoundRobin, &[("a", 1), ("b", 1), ("c", 1)], 30),
            [10, 10, 10]
        );
        let picker = Picker::default();
        assert_eq!(count(&picker, LoadBalancer::RoundRobin, &[("a", 3), ("b", 1)], 40), [30, 10]);
        let order: Vec<_> =
            (0..4).map(|_| picker.choose(LoadBalancer::RoundRobin, &[("a", 3), ("b", 1)]).unwrap()).collect();
        assert!(order.windows(3).all(|three| three.contains(&0)), "smooth, not in bursts: {order:?}");
    }

    #[test]
    fn random_follows_weights() {
        let picker = Picker::default();
        let hits = count(&picker, LoadBalancer::Random, &[("a", 3), ("b", 1)], 8000);
        assert!((5600..6400).contains(&hits[0]), "{hits:?}");
    }

    #[test]
    fn weight_zero_is_never_chosen() {
        let picker = Picker::default();
        for method in [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::LeastRequest] {
            assert_eq!(count(&picker, method, &[("a", 0), ("b", 1)], 50), [0, 50], "{method:?}");
            assert_eq!(picker.choose(method, &[("a", 0)]), None);
            assert_eq!(picker.choose(method, &[]), None);
        }
    }

    #[test]
    fn least_request_takes_the_idle_one() {
        let picker = Picker::default();
        let held: Vec<_> = (0..10).map(|_| picker.open("a")).collect();
        assert_eq!(count(&picker, LoadBalancer::LeastRequest, &[("a", 1), ("b", 1)], 100), [0, 100]);
        drop(held);
        let hits = count(&picker, LoadBalancer::LeastRequest, &[("a", 1), ("b", 1)], 1000);
        assert!(hits.iter().all(|hit| *hit > 300), "{hits:?}");
    }
}
