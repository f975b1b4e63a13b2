//! What one agent wants of one resource type, and what it has. Pure: requests in, differences out.
//!
//! Follows Envoy's incremental xDS, as istiod and its agents use it: an empty first subscription, or `*`, means
//! everything; any other name asks for that resource, and is answered even if there is nothing of the name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use mesh_api::wire::xds::{DeltaDiscoveryRequest, Resource};
use prost_types::Any;

use crate::config::Resources;

const EVERYTHING: &str = "*";
/// Names that one agent may ask for; a mesh has fewer services.
const MOST_NAMES: usize = 100_000;

/// State of one resource type on one stream.
#[derive(Default)]
pub struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// Version of each resource that the agent holds.
    held: BTreeMap<Arc<str>, Arc<str>>,
    /// Names whose subscription was not answered yet.
    unanswered: BTreeSet<String>,
    /// The agent waits for an answer, if only an empty one.
    owes_answer: bool,
    nonce: Option<String>,
    unacknowledged: usize,
}

/// Which half of a difference is wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// New, changed and removed.
    All,
    /// New and changed.
    Upserts,
}

/// What the agent does not know yet.
#[derive(Default)]
pub struct Delta {
    /// New and changed resources.
    pub resources: Vec<Resource>,
    /// Names of what is gone.
    pub removed: Vec<String>,
    /// It answers a question; otherwise it tells a change.
    pub asked: bool,
}

/// What a request was, besides a change of the subscription.
#[derive(Debug, PartialEq, Eq)]
pub enum Answer {
    /// It answers no response, or one that was overtaken.
    None,
    /// Everything was accepted.
    Ack,
    /// Something was rejected.
    Nack(String),
}

/// An agent that asks for more names than a mesh has.
#[derive(Debug, thiserror::Error)]
#[error("more than {MOST_NAMES} names are subscribed to")]
pub struct TooManyNames;

impl Subscription {
    /// The first request of a type on a stream.
    pub fn first(request: DeltaDiscoveryRequest) -> Result<Self, TooManyNames> {
        let wildcard = request.resource_names_subscribe.is_empty();
        let mut subscription = Self { wildcard, owes_answer: true, ..Self::default() };
        let held = request.initial_resource_versions;
        subscription.change(request.resource_names_subscribe, request.resource_names_unsubscribe)?;
        if !subscription.wildcard {
            // By name, what the agent held is what it still wants. An empty version is a question not answered yet.
            let open = held.iter().filter(|(_, version)| version.is_empty()).map(|(name, _)| name.clone());
            subscription.unanswered.extend(open);
            subscription.names.extend(held.keys().cloned());
            subscription.check()?;
        }
        let held = held.into_iter().filter(|(_, version)| !version.is_empty());
        subscription.held = held.map(|(name, version)| (name.into(), version.into())).collect();
        Ok(subscription)
    }

    /// Any later request.
    pub fn update(&mut self, request: DeltaDiscoveryRequest) -> Result<Answer, TooManyNames> {
        self.change(request.resource_names_subscribe, request.resource_names_unsubscribe)?;
        if request.response_nonce.is_empty() || self.nonce.as_ref() != Some(&request.response_nonce) {
            return Ok(Answer::None);
        }
        self.unacknowledged = 0;
        Ok(request.error_detail.map_or(Answer::Ack, |status| Answer::Nack(status.message)))
    }

    /// Resources that were sent and not answered yet.
    pub fn unacknowledged(&self) -> usize {
        self.unacknowledged
    }

    /// What to send now, if anything; it counts as sent under `nonce` when this returns.
    pub fn next(&mut self, resources: &Resources, part: Part, nonce: &str) -> Option<Delta> {
        // Whoever asks by name has to be told of what is not there as well.
        let part = if self.unanswered.is_empty() { part } else { Part::All };
        let mut delta = self.difference(resources, part);
        delta.asked = std::mem::take(&mut self.owes_answer);
        if delta.resources.is_empty() && delta.removed.is_empty() && !delta.asked {
            return None;
        }
        self.unanswered.clear();
        self.unacknowledged += delta.resources.len() + delta.removed.len();
        self.nonce = Some(nonce.to_owned());
        Some(delta)
    }

    fn change(&mut self, subscribe: Vec<String>, unsubscribe: Vec<String>) -> Result<(), TooManyNames> {
        for name in subscribe {
            self.owes_answer = true;
            if name == EVERYTHING {
                self.wildcard = true;
            } else {
                self.unanswered.insert(name.clone());
                self.names.insert(name);
            }
        }
        for name in unsubscribe {
            if name == EVERYTHING {
                self.wildcard = false;
            } else {
                self.names.remove(&name);
                self.held.remove(name.as_str());
                self.unanswered.remove(&name);
            }
        }
        self.check()
    }

    fn check(&self) -> Result<(), TooManyNames> {
        if self.names.len() > MOST_NAMES { Err(TooManyNames) } else { Ok(()) }
    }

    fn difference(&mut self, resources: &Resources, part: Part) -> Delta {
        let mut delta = Delta::default();
        if self.wildcard {
            for (name, _) in resources.iter() {
                self.offer(resources, name, false, &mut delta);
            }
        } else {
            let asked = resolve(resources, &self.unanswered);
            // What was told along is kept up to date too, even when it belongs to nothing asked for any more.
            let mut wanted = resolve(resources, &self.names);
            wanted.extend(self.held.keys().map(Arc::clone));
            for name in wanted {
                self.offer(resources, &name, asked.contains(&name), &mut delta);
            }
        }
        if part == Part::All {
            self.take_away(resources, &mut delta);
        }
        delta
    }

    /// Adds a resource to `delta` unless the agent has it, or even so if it asked for it just now.
    fn offer(&mut self, resources: &Resources, name: &Arc<str>, asked: bool, delta: &mut Delta) {
        let Some(entry) = resources.get(name) else { return };
        if !asked && self.held.get(name) == Some(&entry.version) {
            return;
        }
        self.held.insert(Arc::clone(name), Arc::clone(&entry.version));
        delta.resources.push(Resource {
            version: entry.version.to_string(),
            resource: Some(Any { type_url: String::new(), value: entry.encoded.clone() }),
            name: name.to_string(),
            aliases: entry.aliases.clone(),
        });
    }

    /// Adds what the agent holds and no longer is, and what it asked for in vain.
    fn take_away(&mut self, resources: &Resources, delta: &mut Delta) {
        self.held.retain(|name, _| {
            let stays = resources.get(name).is_some();
            if !stays {
                delta.removed.push(name.to_string());
            }
            stays
        });
        for name in &self.unanswered {
            if resources.resolve(name).is_empty() && !delta.removed.contains(name) {
                delta.removed.push(name.clone());
            }
        }
    }
}

fn resolve(resources: &Resources, names: &BTreeSet<String>) -> BTreeSet<Arc<str>> {
    names.iter().flat_map(|name| resources.resolve(name)).map(Arc::clone).collect()
}

#[cfg(test)]
mod tests;
