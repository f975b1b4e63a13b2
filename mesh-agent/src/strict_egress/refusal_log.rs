//! Logs connections that strict egress refused.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::{Duration, Instant};

use mesh_common::fault::FaultEvent;

use super::StrictPods;

/// Least time between log lines for one pod and destination, and most different ones in that time.
const SAY_EVERY: Duration = Duration::from_secs(10);
const MOST_SAID: usize = 256;

/// Logs refusals, many tries of a pod once.
pub struct RefusalLog {
    strict: StrictPods,
    /// When a refusal was last logged, and how often it has happened since.
    said: HashMap<(u64, SocketAddr), (Instant, u64)>,
    /// Refusals that were not logged since there were too many different ones.
    unsaid: u64,
}

impl RefusalLog {
    /// Creates one that has logged nothing.
    pub fn new(strict: StrictPods) -> Self {
        Self { strict, said: HashMap::new(), unsaid: 0 }
    }

    /// Logs a refusal, or counts it.
    pub fn log_or_count_refusal(&mut self, event: FaultEvent) {
        let destination = SocketAddr::from(event.destination);
        let Some(times) = self.times(event.netns, destination, Instant::now()) else { return };
        let strict_pod = self.strict.by_netns(event.netns);
        let pod = strict_pod.as_ref().map_or("unknown", |strict_pod| &strict_pod.pod);
        let by = strict_pod
            .as_ref()
            .map_or_else(|| "pod".to_owned(), |strict_pod| strict_pod.egress.by.to_string());
        let unsaid = std::mem::take(&mut self.unsaid);
        tracing::warn!(
            pod,
            %destination,
            times,
            unsaid,
            "refused: strict egress of the {by}; the mesh does not know the destination, and no rule names it"
        );
    }

    /// Returns how often it was refused since it was last logged; none if it must not be logged now.
    fn times(&mut self, netns: u64, destination: SocketAddr, now: Instant) -> Option<u64> {
        if self.said.len() >= MOST_SAID {
            self.said.retain(|_, (last, _)| now.duration_since(*last) < SAY_EVERY);
        }
        let full = self.said.len() >= MOST_SAID;
        match self.said.get_mut(&(netns, destination)) {
            Some((last, times)) if now.duration_since(*last) < SAY_EVERY => {
                *times += 1;
                None
            }
            None if full => {
                self.unsaid += 1;
                None
            }
            known => {
                let times = known.map_or(0, |(_, times)| *times);
                self.said.insert((netns, destination), (now, 0));
                Some(times + 1)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_that_tries_without_end_is_told_of_seldom() {
        let (mut refusals, now) = (RefusalLog::new(StrictPods::default()), Instant::now());
        let to = |last: u8| SocketAddr::from(([192, 0, 2, last], 443));
        assert_eq!(refusals.times(1, to(1), now), Some(1));
        for _ in 0..1000 {
            assert_eq!(refusals.times(1, to(1), now), None);
        }
        assert_eq!(refusals.times(2, to(1), now), Some(1), "another pod");
        assert_eq!(refusals.times(1, to(1), now + SAY_EVERY), Some(1001));
        let all = (0..=u16::MAX).filter(|port| {
            refusals.times(3, SocketAddr::from(([192, 0, 2, 9], *port)), now + SAY_EVERY).is_some()
        });
        assert!(all.count() <= MOST_SAID);
        assert!(refusals.said.len() <= MOST_SAID && refusals.unsaid > 0);
    }
}
