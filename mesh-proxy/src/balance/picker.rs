//! The load balancers. A [`Picker`] hands out endpoints in the order to try them; it never opens a
//! connection.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

use mesh_api::plan::{Endpoint, EndpointId, Endpoints, LoadBalancer, PortPolicy};
use rand::RngExt;

use super::consistent_hash::KeyHash;
use super::excluded_endpoints::EndpointsToSkip;

/// Draws before an endpoint is looked for only among those that are not left out.
const DRAWS: usize = 4;

/// Load balancing state of one worker: each endpoint's open connections and turn.
#[derive(Default)]
pub struct Picker {
    loads: Loads,
}

type Loads = Rc<RefCell<HashMap<EndpointId, Load>>>;

#[derive(Debug, Default)]
struct Load {
    /// Open connections.
    active: u32,
    /// Credit of smooth weighted round robin, as in nginx.
    credit: i64,
}

/// An endpoint that was handed out.
pub struct EndpointPick<'a> {
    /// The endpoint to connect to.
    pub endpoint: &'a Endpoint,
    /// Its key.
    pub key: EndpointId,
    /// Counts a connection to the endpoint: hold it while connecting and connected.
    pub active: ActiveConnection,
}

/// A connection to an endpoint, counted until it is dropped.
pub struct ActiveConnection {
    loads: Loads,
    key: EndpointId,
}

/// What endpoints are picked by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PickBy {
    /// A load balancer.
    Balancer(LoadBalancer),
    /// A key.
    Key(KeyHash),
}

impl PickBy {
    /// Returns what a policy says: by the key, if there is one.
    pub fn key_or_balancer(key: Option<KeyHash>, policy: &PortPolicy) -> Self {
        key.map_or(Self::Balancer(policy.lb), Self::Key)
    }
}

/// Iterator over endpoints for one connection, the best first, each at most once.
pub struct EndpointPicks<'a> {
    picker: &'a Picker,
    endpoints: &'a Endpoints,
    by: PickBy,
    excluded: EndpointsToSkip,
    /// Index that comes before all others.
    first: Option<usize>,
    /// Index that was handed out last; left out from the next call on.
    last: Option<usize>,
}

impl Picker {
    /// Returns endpoints for one connection, in the order that `by` gives them, but for those that are
    /// `excluded` or have no weight. `first` is the index of one that comes before all others, unchecked;
    /// none: no such one.
    pub fn pick_endpoints<'a>(
        &'a self,
        endpoints: &'a Endpoints,
        by: PickBy,
        excluded: EndpointsToSkip,
        first: Option<usize>,
    ) -> EndpointPicks<'a> {
        EndpointPicks { picker: self, endpoints, by, excluded, first, last: None }
    }

    /// Forgets endpoints without connections for which `keep` returns false.
    pub fn retain(&self, keep: impl Fn(&EndpointId) -> bool) {
        self.loads.borrow_mut().retain(|key, load| load.active > 0 || keep(key));
    }

    fn choose(
        &self,
        algorithm: LoadBalancer,
        endpoints: &Endpoints,
        excluded: &EndpointsToSkip,
    ) -> Option<usize> {
        match algorithm {
            LoadBalancer::Unspecified | LoadBalancer::LeastRequest => self.less_loaded(endpoints, excluded),
            LoadBalancer::RoundRobin => self.next_in_turn(endpoints, excluded),
            // A passthrough has one endpoint: the address that the client used.
            LoadBalancer::Random | LoadBalancer::Passthrough => draw(endpoints, excluded, None),
        }
    }

    /// Draws two endpoints and returns the one with fewer connections for its weight.
    fn less_loaded(&self, endpoints: &Endpoints, excluded: &EndpointsToSkip) -> Option<usize> {
        let first = draw(endpoints, excluded, None)?;
        let Some(second) = draw(endpoints, excluded, Some(first)) else { return Some(first) };
        let loads = self.loads.borrow();
        let load = |index: usize| {
            let active = loads.get(&endpoints[index].key()).map_or(0, |load| load.active);
            f64::from(active) / f64::from(endpoints[index].weight)
        };
        Some(if load(second) < load(first) { second } else { first })
    }

    fn next_in_turn(&self, endpoints: &Endpoints, excluded: &EndpointsToSkip) -> Option<usize> {
        let mut loads = self.loads.borrow_mut();
        let mut total = 0;
        let mut best: Option<(usize, i64)> = None;
        for (index, endpoint) in choosable_endpoints(endpoints, excluded, None) {
            let load = loads.entry(endpoint.key()).or_default();
            load.credit += i64::from(endpoint.weight);
            total += i64::from(endpoint.weight);
            if best.is_none_or(|(_, credit)| load.credit > credit) {
                best = Some((index, load.credit));
            }
        }
        let (index, _) = best?;
        loads.entry(endpoints[index].key()).or_default().credit -= total;
        Some(index)
    }

    /// Counts a connection to an endpoint until the result is dropped.
    fn hold(&self, key: EndpointId) -> ActiveConnection {
        self.loads.borrow_mut().entry(key.clone()).or_default().active += 1;
        ActiveConnection { loads: Rc::clone(&self.loads), key }
    }
}

impl<'a> Iterator for EndpointPicks<'a> {
    type Item = EndpointPick<'a>;

    fn next(&mut self) -> Option<EndpointPick<'a>> {
        if let Some(last) = self.last.take() {
            self.excluded.add(last);
        }
        let next = self.first.take();
        let next = next.or_else(|| match self.by {
            PickBy::Balancer(algorithm) => self.picker.choose(algorithm, self.endpoints, &self.excluded),
            PickBy::Key(key) => key.choose(self.endpoints, &self.excluded),
        })?;
        self.last = Some(next);
        let endpoint = &self.endpoints[next];
        let key = endpoint.key();
        Some(EndpointPick { endpoint, active: self.picker.hold(key.clone()), key })
    }
}

impl Drop for ActiveConnection {
    fn drop(&mut self) {
        if let Some(load) = self.loads.borrow_mut().get_mut(&self.key) {
            load.active = load.active.saturating_sub(1);
        }
    }
}

/// Iterates over the endpoints that may be chosen, with their index.
pub(super) fn choosable_endpoints<'a>(
    endpoints: &'a Endpoints,
    excluded: &EndpointsToSkip,
    except: Option<usize>,
) -> impl Iterator<Item = (usize, &'a Endpoint)> {
    let all = endpoints.iter().enumerate();
    all.filter(move |(index, endpoint)| {
        endpoint.weight > 0 && Some(*index) != except && !excluded.contains(*index)
    })
}

/// Draws an endpoint at random by weight, other than `except` and those left out.
fn draw(endpoints: &Endpoints, excluded: &EndpointsToSkip, except: Option<usize>) -> Option<usize> {
    let total = endpoints.total_weight();
    if total == 0 {
        return None;
    }
    // Drawing again until an endpoint is not left out is the same as drawing among the others, and most often
    // costs one search.
    let draws = std::iter::repeat_with(|| endpoints.index_for_ticket(rand::rng().random_range(0..total)));
    let drawn =
        draws.take(DRAWS).flatten().find(|index| Some(*index) != except && !excluded.contains(*index));
    drawn.or_else(|| draw_of_the_others(endpoints, excluded, except))
}

fn draw_of_the_others(
    endpoints: &Endpoints,
    excluded: &EndpointsToSkip,
    except: Option<usize>,
) -> Option<usize> {
    let others = || choosable_endpoints(endpoints, excluded, except);
    let total: u64 = others().map(|(_, endpoint)| u64::from(endpoint.weight)).sum();
    if total == 0 {
        return None;
    }
    let mut ticket = rand::rng().random_range(0..total);
    for (index, endpoint) in others() {
        match ticket.checked_sub(u64::from(endpoint.weight)) {
            Some(rest) => ticket = rest,
            None => return Some(index),
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::fixture::weighted_endpoints;
    use super::*;

    fn count(picker: &Picker, algorithm: LoadBalancer, of: &[(&str, u32)], times: usize) -> Vec<usize> {
        let endpoints = weighted_endpoints(of);
        let mut hits = vec![0; endpoints.len()];
        for _ in 0..times {
            hits[picker.choose(algorithm, &endpoints, &EndpointsToSkip::default()).unwrap()] += 1;
        }
        hits
    }

    #[test]
    fn round_robin_is_exact_and_follows_weights() {
        let picker = Picker::default();
        let all = [("a", 1), ("b", 1), ("c", 1)];
        assert_eq!(count(&picker, LoadBalancer::RoundRobin, &all, 30), [10, 10, 10]);
        let picker = Picker::default();
        assert_eq!(count(&picker, LoadBalancer::RoundRobin, &[("a", 3), ("b", 1)], 40), [30, 10]);
        let endpoints = weighted_endpoints(&[("a", 3), ("b", 1)]);
        let next =
            || picker.choose(LoadBalancer::RoundRobin, &endpoints, &EndpointsToSkip::default()).unwrap();
        let order: Vec<_> = (0..4).map(|_| next()).collect();
        assert!(order.windows(3).all(|three| three.contains(&0)), "smooth, not in bursts: {order:?}");
    }

    #[test]
    fn random_follows_weights_whoever_is_left_out() {
        let picker = Picker::default();
        let hits = count(&picker, LoadBalancer::Random, &[("a", 3), ("b", 1)], 8000);
        assert!((5600..6400).contains(&hits[0]), "{hits:?}");
        // Almost all weight is left out, so that most draws are of the others.
        let endpoints = weighted_endpoints(&[("a", 3), ("gone", 96), ("b", 1)]);
        let excluded: EndpointsToSkip = [1].into_iter().collect();
        let drawn = (0..8000).filter(|_| draw(&endpoints, &excluded, None) == Some(0)).count();
        assert!((5600..6400).contains(&drawn), "{drawn}");
    }

    #[test]
    fn weight_zero_is_never_chosen() {
        let picker = Picker::default();
        for algorithm in [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::LeastRequest] {
            assert_eq!(count(&picker, algorithm, &[("a", 0), ("b", 1)], 50), [0, 50], "{algorithm:?}");
            for of in [&[("a", 0)][..], &[]] {
                assert_eq!(
                    picker.choose(algorithm, &weighted_endpoints(of), &EndpointsToSkip::default()),
                    None
                );
            }
        }
    }

    #[test]
    fn least_request_takes_the_idle_one() {
        let picker = Picker::default();
        let all = weighted_endpoints(&[("a", 1), ("b", 1)]);
        let held: Vec<_> = (0..10).map(|_| picker.hold(all[0].key())).collect();
        assert_eq!(count(&picker, LoadBalancer::LeastRequest, &[("a", 1), ("b", 1)], 100), [0, 100]);
        drop(held);
        let hits = count(&picker, LoadBalancer::LeastRequest, &[("a", 1), ("b", 1)], 1000);
        assert!(hits.iter().all(|hit| *hit > 300), "{hits:?}");
    }

    #[test]
    fn each_is_handed_out_once_the_clients_own_first_and_none_that_is_left_out() {
        let (picker, all) =
            (Picker::default(), weighted_endpoints(&[("a", 1), ("b", 1), ("c", 1), ("d", 1)]));
        for algorithm in [LoadBalancer::RoundRobin, LoadBalancer::Random, LoadBalancer::LeastRequest] {
            let excluded: EndpointsToSkip = [0].into_iter().collect();
            let picks = picker.pick_endpoints(&all, PickBy::Balancer(algorithm), excluded, Some(2));
            let mut names: Vec<_> = picks.map(|pick| pick.endpoint.workload.uid.to_string()).collect();
            assert_eq!(names.remove(0), "c");
            names.sort();
            assert_eq!(names, ["b", "d"], "{algorithm:?}");
        }
        assert!(picker.loads.borrow().values().all(|load| load.active == 0), "none is counted any more");
    }
}
