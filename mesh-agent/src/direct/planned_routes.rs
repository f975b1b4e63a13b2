//! The plans, and what the kernel was told of them.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use mesh_api::plan::{DestinationDependencies, EndpointId};
use mesh_common::direct::{DirectRoute, DirectRouteKey};

use super::route_plan::{PlanContext, Pod, PodIndex, RoutePlan, plan_route, to_address_port};

/// Most destinations of one pod that have plans. Connections to further ones go through the proxy.
const MOST_OF_A_POD: usize = 512;

/// Time after which an unused destination is forgotten.
const KEPT: Duration = Duration::from_mins(10);

/// A change to tell the kernel.
#[derive(Clone, Debug)]
pub(super) enum RouteChange {
    /// Add or replace a route.
    Put(DirectRouteKey, Box<DirectRoute>),
    /// Remove a route.
    Remove(DirectRouteKey),
}

/// Why plans are made again.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum ReplanTrigger {
    /// Time has passed.
    Time,
    /// The configuration has changed.
    Configuration,
    /// The pods of this node have changed, or which endpoints rest: any plan may be concerned.
    Node,
}

/// The destinations that this node's pods asked for, and their plans.
#[derive(Default)]
pub(super) struct PlannedRoutes {
    pods: PodIndex,
    asked: HashMap<u64, HashMap<SocketAddr, Entry>>,
}

struct Entry {
    plan: Option<Arc<RoutePlan>>,
    /// The part of the configuration that the plan was made with.
    inputs: DestinationDependencies,
    /// The route that the kernel has.
    told: Option<Box<DirectRoute>>,
    used: Instant,
}

impl PlannedRoutes {
    /// Adds a pod. Plans that may lead to it change with the next [`Self::replan`].
    pub fn add_pod(&mut self, pod: &Arc<Pod>) {
        self.pods.add(pod);
    }

    /// Removes a pod. Returns the changes after which no route leads to it or from it.
    pub fn remove_pod(&mut self, uid: &str) -> Vec<RouteChange> {
        let Some(pod) = self.pods.remove(uid) else { return Vec::new() };
        let own = self.asked.remove(&pod.cookie).into_iter().flatten();
        let mut changes: Vec<_> =
            own.filter(|(_, entry)| entry.told.is_some()).map(|(to, _)| remove(pod.cookie, to)).collect();
        for (client, entries) in &mut self.asked {
            for (destination, entry) in entries {
                let leads_there = |plan: &Arc<RoutePlan>| {
                    plan.direct_endpoints.iter().any(|direct| direct.server.cookie == pod.cookie)
                };
                if entry.plan.as_ref().is_some_and(leads_there) {
                    changes.extend(entry.set(*client, *destination, None));
                }
            }
        }
        changes
    }

    /// Iterates over the cookies of the pods' network namespaces.
    pub fn pod_cookies(&self) -> impl Iterator<Item = u64> {
        self.pods.cookies()
    }

    /// Returns a pod by the cookie of its network namespace.
    pub fn pod_by_cookie(&self, cookie: u64) -> Option<&Arc<Pod>> {
        self.pods.by_cookie(cookie)
    }

    /// Plans a route for a pod that connected to a destination through the proxy, unless there is one, or too
    /// many. Returns the change, if any.
    pub fn plan_route_if_new(
        &mut self,
        context: PlanContext<'_>,
        client: u64,
        destination: SocketAddr,
    ) -> Option<RouteChange> {
        let pod = Arc::clone(self.pods.by_cookie(client)?);
        let entries = self.asked.entry(client).or_default();
        let known = entries.get(&destination).is_some();
        if known || entries.len() >= MOST_OF_A_POD {
            return None;
        }
        let inputs = inputs(context, &pod, destination);
        let mut entry = Entry { plan: None, inputs, told: None, used: context.now };
        let plan = plan_route(context, &self.pods, &pod, destination);
        let change = entry.set(client, destination, plan);
        entries.insert(destination, entry);
        change
    }

    /// Makes the plans again that may be concerned. Returns the changes.
    pub fn replan(&mut self, context: PlanContext<'_>, trigger: ReplanTrigger) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        for (client, entries) in &mut self.asked {
            let Some(pod) = self.pods.by_cookie(*client) else { continue };
            for (destination, entry) in entries {
                let inputs = inputs(context, pod, *destination);
                let due = match trigger {
                    ReplanTrigger::Time => entry.plan.as_ref().is_some_and(|plan| plan.changes_with_time()),
                    ReplanTrigger::Configuration => {
                        let plan = entry.plan.as_ref();
                        inputs != entry.inputs
                            || plan.is_some_and(|it| {
                                it.changes_with_time() || !it.are_addresses_still_owned(context.snapshot)
                            })
                    }
                    ReplanTrigger::Node => true,
                };
                if due {
                    entry.inputs = inputs;
                    let plan = plan_route(context, &self.pods, pod, *destination);
                    changes.extend(entry.set(*client, *destination, plan));
                }
            }
        }
        changes
    }

    /// Makes the plans again that lead to an endpoint which refused a connection. Returns the changes.
    pub fn replan_for_refused_endpoint(
        &mut self,
        context: PlanContext<'_>,
        refused: &EndpointId,
    ) -> Vec<RouteChange> {
        let mut changes = Vec::new();
        for (client, entries) in &mut self.asked {
            let Some(pod) = self.pods.by_cookie(*client) else { continue };
            for (destination, entry) in entries {
                if entry.plan.as_ref().is_some_and(|plan| plan.endpoints.contains_endpoint(refused)) {
                    let plan = plan_route(context, &self.pods, pod, *destination);
                    changes.extend(entry.set(*client, *destination, plan));
                }
            }
        }
        changes
    }

    /// Returns the plan that a direct connection follows, which counts as a use of it.
    pub fn get_plan_and_touch(
        &mut self,
        client: u64,
        destination: SocketAddr,
        now: Instant,
    ) -> Option<Arc<RoutePlan>> {
        let entry = self.asked.get_mut(&client)?.get_mut(&destination)?;
        entry.used = now;
        entry.plan.clone()
    }

    /// Notes that the kernel did not take a route and has none in its place. It is told again at the next
    /// planning.
    pub fn mark_not_in_kernel(&mut self, key: &DirectRouteKey) {
        let destination = key.destination.into();
        let entry = self.asked.get_mut(&key.client).and_then(|entries| entries.get_mut(&destination));
        if let Some(entry) = entry {
            entry.told = None;
        }
    }

    /// Forgets unused destinations. Returns the changes.
    pub fn remove_unused(&mut self, now: Instant) -> Vec<RouteChange> {
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
    fn set(&mut self, client: u64, destination: SocketAddr, plan: Option<RoutePlan>) -> Option<RouteChange> {
        let key = key(client, destination);
        let route = plan.as_ref().map(|plan| Box::new(plan.to_kernel_route(key)));
        self.plan = plan.map(Arc::new);
        if route == self.told {
            return None;
        }
        let change = match &route {
            Some(route) => RouteChange::Put(key, route.clone()),
            None => RouteChange::Remove(key),
        };
        self.told = route;
        Some(change)
    }
}

fn inputs(context: PlanContext<'_>, pod: &Pod, destination: SocketAddr) -> DestinationDependencies {
    context.snapshot.destination_dependencies(&pod.addresses, &pod.namespace, destination.ip())
}

fn remove(client: u64, destination: SocketAddr) -> RouteChange {
    RouteChange::Remove(key(client, destination))
}

fn key(client: u64, destination: SocketAddr) -> DirectRouteKey {
    DirectRouteKey::new(client, to_address_port(destination))
}
