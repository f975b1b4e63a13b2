//! What one agent wants of one resource type, and what it has. Pure: requests in, differences out.
//!
//! Follows Envoy's incremental xDS, as istiod and its agents use it: an empty first subscription, or `*`,
//! means everything; any other name asks for that resource, and is answered even if there is nothing of the
//! name.
//!
//! Of an agent that wants everything is remembered which state it was sent last. States share what they have
//! in common, so that costs what changed since, however large the mesh is, and so does finding it out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use mesh_api::persistent_table::PersistentTable;
use mesh_api::wire::xds::{DeltaDiscoveryRequest, Resource};

use crate::config::{Entry, Resources};

const EVERYTHING: &str = "*";
/// Names that one agent may ask for; a mesh has fewer services.
const MOST_NAMES: usize = 100_000;

/// State of one resource type on one stream.
#[derive(Default)]
pub struct Subscription {
    wildcard: bool,
    names: BTreeSet<String>,
    /// What the agent holds, or will when the rest was sent.
    known: Known,
    rest: Rest,
    /// Names whose subscription was not answered yet.
    unanswered: BTreeSet<String>,
    /// The agent waits for an answer, if only an empty one.
    owes_answer: bool,
    nonce: Option<String>,
    unacknowledged: usize,
}

/// Resources that an agent holds.
enum Known {
    /// By name, with the version; none if that is not known.
    Listed(BTreeMap<Arc<str>, Option<u64>>),
    /// All of some state.
    State(PersistentTable<Arc<Entry>>),
}

impl Default for Known {
    fn default() -> Self {
        Self::Listed(BTreeMap::new())
    }
}

/// What is still to be sent to an agent that wants everything.
#[derive(Default)]
struct Rest {
    upserts: VecDeque<Arc<Entry>>,
    removals: BTreeSet<Arc<str>>,
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
    /// There is more of it.
    pub continues: bool,
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
            // By name, what the agent held is what it still wants. An empty version is a question not
            // answered yet.
            let open = held.iter().filter(|(_, version)| version.is_empty()).map(|(name, _)| name.clone());
            subscription.unanswered.extend(open);
            subscription.names.extend(held.keys().cloned());
            subscription.check()?;
        }
        let held = held.into_iter().filter(|(_, version)| subscription.wildcard || !version.is_empty());
        let held = held.map(|(name, version)| (name.into(), u64::from_str_radix(&version, 16).ok()));
        subscription.known = Known::Listed(held.collect());
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

    /// What to send now, if anything; it counts as sent under `nonce` when this returns. More than `most`
    /// bytes are not sent at once, if there is a choice.
    pub fn next(&mut self, resources: &Resources, part: Part, nonce: &str, most: usize) -> Option<Delta> {
        // Whoever asks by name has to be told of what is not there as well.
        let part = if self.unanswered.is_empty() { part } else { Part::All };
        let mut delta = if self.wildcard {
            self.next_of_all(resources, part, most)
        } else {
            self.next_of_names(resources, part)
        };
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
                for unsent in std::mem::take(&mut self.rest).upserts {
                    self.known.listed().remove(&unsent.name);
                }
            } else {
                self.names.remove(&name);
                self.known.listed().remove(name.as_str());
                self.unanswered.remove(&name);
            }
        }
        self.check()
    }

    fn check(&self) -> Result<(), TooManyNames> {
        if self.names.len() > MOST_NAMES { Err(TooManyNames) } else { Ok(()) }
    }

    fn next_of_all(&mut self, resources: &Resources, part: Part, most: usize) -> Delta {
        self.rest.add(&self.known, resources);
        self.known = Known::State(resources.entries().clone());
        let mut delta = Delta::default();
        let mut size = 0;
        while size < most
            && let Some(entry) = self.rest.upserts.pop_front()
        {
            // What has changed since is there once more, further behind, or among the removals.
            if resources.get(&entry.name).is_some_and(|now| now.version == entry.version) {
                size += entry.size();
                delta.resources.push(entry.resource());
            }
        }
        delta.continues = !self.rest.upserts.is_empty();
        if part == Part::All && !delta.continues {
            let removals = std::mem::take(&mut self.rest.removals);
            delta.removed.extend(removals.iter().map(ToString::to_string));
            self.say_what_is_not_there(resources, &mut delta);
        }
        delta
    }

    fn next_of_names(&mut self, resources: &Resources, part: Part) -> Delta {
        let mut delta = Delta::default();
        let asked = resolve(resources, &self.unanswered);
        let held = self.known.listed();
        // What was told along is kept up to date too, even when it belongs to nothing asked for any more.
        let mut wanted = resolve(resources, &self.names);
        wanted.extend(held.keys().cloned());
        for name in wanted {
            let Some(entry) = resources.get(&name) else { continue };
            // What was asked for just now is sent even if the agent has it.
            if asked.contains(&name) || held.get(&name) != Some(&Some(entry.version)) {
                delta.resources.push(entry.resource());
                held.insert(name, Some(entry.version));
            }
        }
        if part == Part::All {
            held.retain(|name, _| {
                let stays = resources.get(name).is_some();
                if !stays {
                    delta.removed.push(name.to_string());
                }
                stays
            });
            self.say_what_is_not_there(resources, &mut delta);
        }
        delta
    }

    /// Adds what the agent asked for in vain.
    fn say_what_is_not_there(&self, resources: &Resources, delta: &mut Delta) {
        for name in &self.unanswered {
            if resources.resolve(name).is_empty() && !delta.removed.contains(name) {
                delta.removed.push(name.clone());
            }
        }
    }
}

impl Known {
    /// Name by name.
    fn listed(&mut self) -> &mut BTreeMap<Arc<str>, Option<u64>> {
        loop {
            match self {
                Self::Listed(listed) => return listed,
                Self::State(state) => {
                    let all = state.iter().map(|entry| (entry.name.clone(), Some(entry.version)));
                    *self = Self::Listed(all.collect());
                }
            }
        }
    }
}

impl Rest {
    /// Adds what differs between what is known and what is.
    fn add(&mut self, known: &Known, now: &Resources) {
        match known {
            Known::State(known) => {
                let same = |a: &Arc<Entry>, b: &Arc<Entry>| a.version == b.version && a.name == b.name;
                let changes = now.entries().changes_since(known, same);
                for gone in changes.gone.into_iter().filter(|gone| now.get(&gone.name).is_none()) {
                    self.removals.insert(gone.name.clone());
                }
                for come in changes.come {
                    self.removals.remove(&come.name);
                    self.upserts.push_back(come.clone());
                }
            }
            Known::Listed(known) => {
                let has = |entry: &Arc<Entry>| known.get(&entry.name) == Some(&Some(entry.version));
                self.upserts = now.entries().iter().filter(|entry| !has(entry)).cloned().collect();
                self.removals = known.keys().filter(|name| now.get(name).is_none()).cloned().collect();
            }
        }
    }
}

fn resolve(resources: &Resources, names: &BTreeSet<String>) -> BTreeSet<Arc<str>> {
    names.iter().flat_map(|name| resources.resolve(name)).collect()
}

#[cfg(test)]
mod tests;
