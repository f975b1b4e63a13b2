//! What became of connections at each listener, as Prometheus reads it.

use std::fmt;
use std::sync::{Arc, Mutex, PoisonError};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, NoLabelSet};
use prometheus_client::metrics::MetricType;

use crate::{Counts, Gate};

/// The gates of a program, by name. Clones are the same ones; a registry gets one of them as its collector.
#[derive(Clone, Default)]
pub struct Listeners {
    prefix: &'static str,
    gates: Arc<Mutex<Vec<(&'static str, Gate)>>>,
}

type Choice = fn(Counts) -> u64;

const COUNTERS: [(&str, &str, Choice); 2] = [
    ("connections_evicted", "Connections that were ended for a newcomer", |counts| counts.evicted),
    ("connections_refused", "Connections that were refused for lack of a place", |counts| counts.refused),
];

impl Listeners {
    /// None yet. The names of the counters begin with `prefix`.
    pub fn new(prefix: &'static str) -> Self {
        Self { prefix, gates: Arc::default() }
    }

    /// Counts at one more.
    pub fn add(&self, name: &'static str, gate: &Gate) {
        self.gates.lock().unwrap_or_else(PoisonError::into_inner).push((name, gate.clone()));
    }
}

impl Collector for Listeners {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        let gates = self.gates.lock().unwrap_or_else(PoisonError::into_inner).clone();
        for (name, help, choose) in COUNTERS {
            let name = format!("{}{name}", self.prefix);
            let mut family = encoder.encode_descriptor(&name, help, None, MetricType::Counter)?;
            for (listener, gate) in &gates {
                let labels = [("listener", *listener)];
                let count = choose(gate.counts());
                family.encode_family(&labels)?.encode_counter::<NoLabelSet, u64, u64>(&count, None)?;
            }
        }
        Ok(())
    }
}

impl fmt::Debug for Listeners {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "counts of listeners ({})", self.prefix)
    }
}

#[cfg(test)]
mod tests {
    use prometheus_client::encoding::text::encode;
    use prometheus_client::registry::Registry;

    use super::*;
    use crate::{Bounds, Group};

    #[test]
    fn each_listener_has_its_counts() {
        let (listeners, mut registry, mut text) = (Listeners::new("x_"), Registry::default(), String::new());
        registry.register_collector(Box::new(listeners.clone()));
        let gate = Gate::new(Bounds { total: 1, each: 1 });
        listeners.add("metrics", &gate);
        listeners.add("health", &Gate::new(Bounds { total: 1, each: 1 }));
        let _held = (gate.enter(Group::User(0)), gate.enter(Group::User(0)));
        encode(&mut text, &registry).unwrap();
        assert!(text.contains("x_connections_evicted_total{listener=\"metrics\"} 1\n"), "{text}");
        assert!(text.contains("x_connections_refused_total{listener=\"health\"} 0\n"), "{text}");
    }
}
