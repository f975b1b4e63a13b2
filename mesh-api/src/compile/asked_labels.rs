//! Labels that workloads show to agents: those that rules and routes ask about.

use std::collections::{BTreeMap, BTreeSet};

use prost::Message;

use super::traffic_policies::encoded_extension;
use crate::resource::{Labels, Metadata};
use crate::wire::{ext, type_url, workload::Extension};

/// Keys of labels, by the workloads that show them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct AskedLabels {
    /// All workloads do.
    everywhere: BTreeSet<String>,
    /// Those of one namespace do.
    by_namespace: BTreeMap<String, BTreeSet<String>>,
}

impl AskedLabels {
    /// Adds what is asked about the workloads of a namespace, or, without one, about all.
    pub fn add(&mut self, namespace: Option<&str>, labels: &Labels) {
        if labels.is_empty() {
            return;
        }
        let asked = match namespace {
            None => &mut self.everywhere,
            Some(namespace) => self.by_namespace.entry(namespace.to_owned()).or_default(),
        };
        asked.extend(labels.keys().cloned());
    }

    /// Whether workloads of a namespace show a label.
    fn include(&self, namespace: &str, key: &str) -> bool {
        let here = || self.by_namespace.get(namespace).is_some_and(|keys| keys.contains(key));
        self.everywhere.contains(key) || here()
    }

    /// Whether a pod shows other labels than by `old`.
    pub fn differ_for(&self, old: &Self, pod: &Metadata) -> bool {
        let namespace = &pod.namespace;
        pod.labels.keys().any(|key| self.include(namespace, key) != old.include(namespace, key))
    }

    /// The extension of a workload that has labels which are asked about.
    pub fn extension(&self, pod: &Metadata) -> Option<Extension> {
        let shown = pod.labels.iter().filter(|(key, _)| self.include(&pod.namespace, key));
        let labels: Labels = shown.map(|(key, value)| (key.clone(), value.clone())).collect();
        let has_any = !labels.is_empty();
        has_any
            .then(|| encoded_extension(ext::LABELS, type_url::LABELS, ext::Labels { labels }.encode_to_vec()))
    }
}
