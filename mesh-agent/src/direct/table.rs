//! The plans, and what the kernel was told of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::{DestinationInputs, EndpointKey};
use mesh_common::direct::{DirectRoute, RouteKey};

use super::plan::{Plan, Pod, Pods, View, endpoint, plan};

/// Most destinations of one pod that have plans. Connections to further ones go through the proxy.
const MOST_OF_A_POD: usize = 512;

/// Time after which an unused destination is forgotten.
const KEPT: Duration = Duration::from_mins(10);

/// A change to tell the kernel.
#[derive(Clone, Debug)]
pub(super) enum Change {
    /// Add or replace a route.
    Put(RouteKey, Box<DirectRoute>),
    /// Remove a route.
    Remove(RouteKey),
}

/// Why plans are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Trigger {
    /// Time has passed.
    Time,
    /// The configuration has changed.
    Configuration,
    /// The pods of this node have changed, or which endpoints rest: any plan may be concerned.
    Node,
}

/// The destinations that this node's pods asked for, and their plans.
#[derive(Default)]
pub(super) struct Table {
    pods: Pods,
    asked: HashMap<u64, HashMap<SocketAddr, Entry>>,
}

struct Entry {
    plan: Option<Arc<Plan>>,
    /// The part of the configuration that the plan was made with.
    inputs: DestinationInputs,
    /// The route that the kernel has.
    told: Option<Box<DirectRoute>>,
    used: Instant,
}

impl Table {
    /// Adds a pod. Plans that may lead to it change with the next [`Self::plan_again`].
    pub fn add(&mut self, pod: &Arc<Pod>) {
        self.pods.add(pod);
    }

    /// Removes a pod. Returns the changes after which no route leads to it or from it.
    pub fn remove(&mut self, uid: &str) -> Vec<Change> {
        let Some(pod) = self.pods.remove(uid) else { return Vec::new() };
        let own = self.asked.remove(&pod.cookie).into_iter().flatten();
        let mut changes: Vec<_> =
            own.filter(|(_, entry)| entry.told.is_some()).map(|(to, _)| remove(pod.cookie, to)).collect();
        for (client, entries) in &mut self.asked {
            for (destination, entry) in entries {
                let leads_there =
                    |plan: &Arc<Plan>| plan.ways.iter().any(|way| way.server.cookie == pod.cookie);
                if entry.plan.as_ref().is_some_and(leads_there) {
                    changes.extend(entry.set(*client, *destination, None));
                }
            }
        }
        changes
    }

    /// Iterates over the cookies of the pods' network namespaces.
    pub fn cookies(&self) -> impl Iterator<Item = u64> {
        self.pods.cookies()
    }

    /// Returns a pod by the cookie of its network namespace.
    pub fn pod(&self, cookie: u64) -> Option<&Arc<Pod>> {
        self.pods.get(cookie)
    }

    /// Plans for a pod that connected to a destination through the proxy. Returns the change, if any.
    pub fn ask(&mut self, view: View<'_>, client: u64, destination: SocketAddr) -> Option<Change> {
        let pod = Arc::clone(self.pods.get(client)?);
        let entries = self.asked.entry(client).or_default();
        let known = entries.get(&destination).is_some();
        if known || entries.len() >= MOST_OF_A_POD {
            return None;
        }
        let inputs = inputs(view, &pod, destination);
        let mut entry = Entry { plan: None, inputs, told: None, used: view.now };
        let plan = plan(view, &self.pods, &pod, destination);
        let change = entry.set(client, destination, plan);
        entries.insert(destination, entry);
        change
    }

    /// Makes the plans again that may be concerned. Returns the changes.
    pub fn plan_again(&mut self, view: View<'_>, trigger: Trigger) -> Vec<Change> {
        let mut changes = Vec::new();
        for (client, entries) in &mut self.asked {
            let Some(pod) = self.pods.get(*client) else { continue };
            for (destination, entry) in entries {
                let inputs = inputs(view, pod, *destination);
                let due = match trigger {
                    Trigger::Time => entry.plan.as_ref().is_some_and(|plan| plan.watches_health()),
                    Trigger::Configuration => {
                        let plan = entry.plan.as_ref();
                        inputs != entry.inputs
                            || plan
                                .is_some_and(|it| it.watches_health() || !it.leads_to_owners(view.snapshot))
                    }
                    Trigger::Node => true,
                };
                if due {
                    entry.inputs = inputs;
                    let plan = plan(view, &self.pods, pod, *destination);
                    changes.extend(entry.set(*client, *destination, plan));
                }
            }
        }
        changes
    }

    /// Makes the plans again that lead to an endpoint which refused a connection. Returns the changes.
    pub fn plan_around(&mut self, view: View<'_>, refused: &EndpointKey) -> Vec<Change> {
        let mut changes = Vec::new();
        for (client, entries) in &mut self.asked {
            let Some(pod) = self.pods.get(*client) else { continue };
            for (destination, entry) in entries {
                if entry.plan.as_ref().is_some_and(|plan| plan.endpoints.contains_key(refused)) {
                    let plan = plan(view, &self.pods, pod, *destination);
                    changes.extend(entry.set(*client, *destination, plan));
                }
            }
        }
        changes
    }

    /// Returns the plan that a direct connection follows, which counts as a use of it.
    pub fn follow(&mut self, client: u64, destination: SocketAddr, now: Instant) -> Option<Arc<Plan>> {
        let entry = self.asked.get_mut(&client)?.get_mut(&destination)?;
        entry.used = now;
        entry.plan.clone()
    }

    /// Notes that the kernel did not take a route and has none in its place. It is told again at the next
    /// planning.
    pub fn not_taken(&mut self, key: &RouteKey) {
        let destination = key.destination.into();
        let entry = self.asked.get_mut(&key.client).and_then(|entries| entries.get_mut(&destination));
        if let Some(entry) = entry {
            entry.told = None;
        }
    }

    /// Forgets unused destinations. Returns the changes.
    pub fn sweep(&mut self, now: Instant) -> Vec<Change> {
        let mut changes = Vec::new();
        for (client, entries) in &mut self.asked {
            entries.retain(|destination, entry| {
                let keep = now.saturating_duration_since(entry.used) < KEPT;
                if !keep {
                    changes.extend(entry.set(*client, *destination, None));
                }
                keep
            });
        }
        self.asked.retain(|_, entries| !entries.is_empty());
        changes
    }
}

impl Entry {
    /// Replaces the plan. Returns what to tell the kernel, if anything.
    fn set(&mut self, client: u64, destination: SocketAddr, plan: Option<Plan>) -> Option<Change> {
        let key = key(client, destination);
        let route = plan.as_ref().map(|plan| Box::new(plan.to_route(key)));
        self.plan = plan.map(Arc::new);
        if route == self.told {
            return None;
        }
        let change = match &route {
            Some(route) => Change::Put(key, route.clone()),
            None => Change::Remove(key),
        };
        self.told = route;
        Some(change)
    }
}

fn inputs(view: View<'_>, pod: &Pod, destination: SocketAddr) -> DestinationInputs {
    view.snapshot.destination_inputs(&pod.addresses, &pod.namespace, destination.ip())
}

fn remove(client: u64, destination: SocketAddr) -> Change {
    Change::Remove(key(client, destination))
}

fn key(client: u64, destination: SocketAddr) -> RouteKey {
    RouteKey::new(client, endpoint(destination))
}
