//! The compiler: holds the objects, and makes again what a change affects.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::affected::AffectedObjects;
use super::asked_labels::AskedLabels;
use super::destination_rules::ResolvedRules;
use super::gateway_routes::ResolvedGatewayRoutes;
use super::object_index::service_selects_pod;
use super::object_store::{NamespacedName, ObjectStore, SharedObject, namespaced_name};
use super::policy::{self, MutualTlsModes, PodPolicies, PoliciesWithSelector};
use super::service_host::ServiceHosts;
use super::virtual_services::ResolvedRoutes;
use super::workload::{self, WorkloadCompiler};
use super::{Condition, MeshConfig, service, service_membership};
use crate::manifest::ObjectKey;
use crate::resource::Service;
use crate::wire::security::Authorization;
use crate::wire::workload::{Address, address};

/// An object that is there from now on, or gone.
#[derive(Clone, Debug)]
pub struct ObjectChange {
    /// Which.
    pub key: ObjectKey,
    /// As it is now; none if it is gone.
    pub object: Option<SharedObject>,
}

/// A resource that may have changed. None: there is no such resource any more, if there was one.
#[derive(Clone, Debug, PartialEq)]
pub enum ResourceUpdate {
    /// A workload by its uid, or a service by `namespace/hostname`.
    Address(String, Option<Box<Address>>),
    /// A policy by `namespace/name`.
    Authorization(String, Option<Authorization>),
}

/// Compiles the objects of a mesh, change by change. What one change costs does not grow with the mesh, as
/// long as it is of a pod, a service or a slice; what is for a whole namespace costs what is in it, as does a
/// pod beside Services with addresses past the mesh, of which none of the mesh's is found first. A service
/// costs a look at the hosts of all rules and routes as well, and one of these a look at all of them, and at
/// all pods if it asks about other labels than before. One that a route of the Gateway API names costs a look
/// at all of those.
#[derive(Debug)]
pub struct Compiler {
    mesh: MeshConfig,
    objects: ObjectStore,
    selecting: PoliciesWithSelector,
    traffic: ResolvedRules,
    routes: ResolvedRoutes,
    gateway_routes: ResolvedGatewayRoutes,
    /// What rules and routes ask about.
    asked: AskedLabels,
    /// Names of the workloads that are no pods, by their slice.
    others: HashMap<NamespacedName, BTreeSet<String>>,
    /// Names of the policies that stand for `PeerAuthentication`s.
    mutual_tls: BTreeSet<String>,
    conditions: Conditions,
    /// Services that have addresses which are not the mesh's.
    outside: BTreeSet<NamespacedName>,
}

/// What is not in force as it was written, by what it is found with.
#[derive(Debug, Default)]
struct Conditions {
    mutual_tls: Vec<Condition>,
    policies: BTreeMap<NamespacedName, Vec<Condition>>,
    traffic: Vec<Condition>,
    routes: Vec<Condition>,
    gateway_routes: Vec<Condition>,
    services: BTreeMap<NamespacedName, Vec<Condition>>,
    pods: BTreeMap<NamespacedName, Vec<Condition>>,
}

impl Compiler {
    /// A compiler without objects.
    pub fn new(mesh: MeshConfig) -> Self {
        Self {
            mesh,
            objects: ObjectStore::default(),
            selecting: PoliciesWithSelector::default(),
            traffic: ResolvedRules::default(),
            routes: ResolvedRoutes::default(),
            gateway_routes: ResolvedGatewayRoutes::default(),
            asked: AskedLabels::default(),
            others: HashMap::new(),
            mutual_tls: BTreeSet::new(),
            conditions: Conditions::default(),
            outside: BTreeSet::new(),
        }
    }

    /// Takes changes over, all at once, and hands on what they may have changed of the result, one by one.
    pub fn apply(
        &mut self,
        changes: impl IntoIterator<Item = ObjectChange>,
        mut hand_on: impl FnMut(ResourceUpdate),
    ) {
        let mut affected = AffectedObjects::default();
        let changes: Vec<_> = changes
            .into_iter()
            .map(|ObjectChange { key, object }| {
                affected
                    .record_slices_before_change(&self.objects, [self.objects.object(&key), object.as_ref()]);
                let old = self.objects.set(&key, object.as_ref());
                (key, [old, object])
            })
            .collect();
        for (key, [old, new]) in &changes {
            affected.add_change(&self.objects, &self.mesh, key, [old.as_ref(), new.as_ref()]);
        }
        affected.add_pods_of_moved_nodes(&self.objects);
        affected.add_pods_of_switched_selectors(&self.objects);
        // Objects that are gone are let go before the result is made, which takes room.
        drop(changes);
        self.resolve_hosts(&mut affected);
        self.compile_policies(&affected, &mut hand_on);
        self.compile_services(&affected, &mut hand_on);
        self.compile_workloads(&affected, &mut hand_on);
        self.judge_ways_past(&affected);
    }

    /// Of addresses that are not the mesh's, where pods of the mesh are behind them: who has none but others
    /// there has nothing to do with the mesh.
    fn judge_ways_past(&mut self, affected: &AffectedObjects) {
        for name in &affected.services {
            match self.objects.service(name).filter(|service| !service.outside().is_empty()) {
                Some(_) => drop(self.outside.insert(name.clone())),
                None => drop(self.outside.remove(name)),
            }
            self.conditions.services.remove(name);
        }
        let namespaces: BTreeSet<&String> =
            affected.pods.iter().chain(&affected.services).map(|(namespace, _)| namespace).collect();
        for name in self.outside.iter().filter(|(namespace, _)| namespaces.contains(namespace)) {
            match self.objects.service(name).filter(|service| self.has_meshed(service)) {
                Some(service) => {
                    drop(self.conditions.services.insert(name.clone(), service::bypass_conditions(service)));
                }
                None => drop(self.conditions.services.remove(name)),
            }
        }
    }

    /// Whether a pod of the mesh is behind a service. Of one without a selector that may be.
    fn has_meshed(&self, service: &Service) -> bool {
        let mut pods = self.objects.live_pods_in(&service.metadata.namespace);
        service.spec.selector.is_empty()
            || pods.any(|pod| {
                service_selects_pod(service, &pod.metadata) && workload::is_pod_enrolled(&self.objects, pod)
            })
    }

    /// The object that has a key.
    pub fn object(&self, key: &ObjectKey) -> Option<&SharedObject> {
        self.objects.object(key)
    }

    /// The objects that people wrote for the mesh.
    pub fn policies(&self) -> impl Iterator<Item = &SharedObject> {
        self.objects.policies()
    }

    /// What is not in force as it was written.
    pub fn conditions(&self) -> Vec<Condition> {
        let Conditions { mutual_tls, policies, traffic, routes, gateway_routes, services, pods } =
            &self.conditions;
        let mut policies: Vec<_> = policies
            .iter()
            .filter_map(|(name, found)| {
                Some((self.objects.authorization_policy(name)?.metadata.age_key(), found))
            })
            .collect();
        policies.sort_by_key(|(age, _)| *age);
        let policies = policies.into_iter().flat_map(|(_, found)| found);
        let others = services.values().chain(pods.values()).flatten();
        let for_clients = traffic.iter().chain(routes).chain(gateway_routes);
        mutual_tls.iter().chain(policies).chain(for_clients).chain(others).cloned().collect()
    }

    /// Makes again what is for hosts, and adds the pods that are to show other labels for that.
    fn resolve_hosts(&mut self, affected: &mut AffectedObjects) {
        if affected.traffic {
            self.traffic = ResolvedRules::new(&self.objects, &self.mesh);
        }
        if affected.routes {
            let before = std::mem::take(&mut self.routes);
            self.routes = ResolvedRoutes::new(&self.objects, &self.mesh, before);
        }
        if affected.traffic || affected.routes {
            let mut asked = AskedLabels::default();
            self.traffic.add_asked_labels(&mut asked, &self.mesh);
            self.routes.add_asked_labels(&mut asked);
            let before = std::mem::replace(&mut self.asked, asked);
            if before != self.asked {
                let pods = self.objects.live_pods().map(|pod| &pod.metadata);
                let others = pods.filter(|pod| self.asked.differ_for(&before, pod));
                affected.pods.extend(others.map(namespaced_name));
            }
        }
        self.resolve_gateway_routes(affected);
        if affected.traffic || affected.routes || !affected.services.is_empty() {
            let hosts = ServiceHosts::new(&self.objects, &self.mesh);
            self.conditions.traffic = self.traffic.conditions(&self.objects, &hosts, &self.mesh);
            let beside = (&self.traffic, &self.gateway_routes);
            self.conditions.routes = self.routes.conditions(&self.objects, &hosts, beside);
        }
    }

    /// A service that comes, goes or has other ports may make of a route's backend one that is there, or is
    /// not.
    fn resolve_gateway_routes(&mut self, affected: &mut AffectedObjects) {
        let mut services = affected.services.iter();
        if !affected.gateway_routes && !services.any(|name| self.gateway_routes.names(name)) {
            return;
        }
        let mut before = std::mem::take(&mut self.gateway_routes);
        self.gateway_routes = ResolvedGatewayRoutes::new(&self.objects, &self.mesh, &mut before);
        affected.services.extend(self.gateway_routes.changed_since(&before));
        self.conditions.gateway_routes = self.gateway_routes.conditions().to_vec();
    }

    fn compile_policies(&mut self, affected: &AffectedObjects, hand_on: &mut impl FnMut(ResourceUpdate)) {
        if affected.mutual_tls {
            let modes = MutualTlsModes::new(&self.objects, &self.mesh);
            let authorizations = modes.strict_policies();
            let names = authorizations.keys().cloned().collect();
            let before = std::mem::replace(&mut self.mutual_tls, names);
            self.conditions.mutual_tls = modes.conditions;
            for gone in before.difference(&self.mutual_tls) {
                hand_on(ResourceUpdate::Authorization(gone.clone(), None));
            }
            for (name, authorization) in authorizations {
                hand_on(ResourceUpdate::Authorization(name, Some(authorization)));
            }
        }
        for name in &affected.policies {
            let compiled = self
                .objects
                .authorization_policy(name)
                .map(|policy| policy::compile_authorization_policy(policy, &self.mesh));
            let (authorization, conditions) = compiled.unwrap_or_default();
            if conditions.is_empty() {
                self.conditions.policies.remove(name);
            } else {
                self.conditions.policies.insert(name.clone(), conditions);
            }
            // The names of those above have an underscore, which no written one has.
            hand_on(ResourceUpdate::Authorization(format!("{}/{}", name.0, name.1), authorization));
        }
        let namespaces: BTreeSet<&String> =
            affected.policies.iter().map(|(namespace, _)| namespace).collect();
        for namespace in namespaces {
            self.selecting.refresh_namespace(&self.objects, namespace);
        }
    }

    fn compile_services(&mut self, affected: &AffectedObjects, hand_on: &mut impl FnMut(ResourceUpdate)) {
        let routes = (&self.gateway_routes, &self.routes);
        for name in &affected.services {
            let compiled = self
                .objects
                .service(name)
                .and_then(|it| service::compile_service(it, &self.mesh, &self.traffic, routes));
            let compiled = compiled.map(address::Type::Service);
            hand_on(output(service_membership::service_key(name, &self.mesh), compiled));
        }
    }

    fn compile_workloads(&mut self, affected: &AffectedObjects, hand_on: &mut impl FnMut(ResourceUpdate)) {
        if affected.pods.is_empty() && affected.slices.is_empty() {
            return;
        }
        let modes = MutualTlsModes::new(&self.objects, &self.mesh);
        let policies = PodPolicies::new(&self.selecting, &modes, &self.mesh);
        let (objects, mesh, asked) = (&self.objects, &self.mesh, &self.asked);
        let workload_compiler = WorkloadCompiler { objects, mesh, policies: &policies, asked };
        for name in &affected.pods {
            let compiled = objects
                .live_pod(name)
                .and_then(|pod| workload_compiler.compile_pod(pod))
                .map(address::Type::Workload);
            hand_on(output(workload::uid_of_pod(name, mesh), compiled));
            match objects
                .live_pod(name)
                .map(|pod| workload_compiler.conditions_of_pod(pod))
                .filter(|found| !found.is_empty())
            {
                Some(found) => drop(self.conditions.pods.insert(name.clone(), found)),
                None => drop(self.conditions.pods.remove(name)),
            }
        }
        for name in &affected.slices {
            let others = objects
                .slice(name)
                .map(|slice| service_membership::non_pod_endpoints_of_slice(objects, mesh, slice));
            let workloads: BTreeMap<_, _> = others
                .into_iter()
                .flatten()
                .map(|other| workload_compiler.compile_non_pod(&other))
                .map(|workload| (workload.uid.clone(), workload))
                .collect();
            let names: BTreeSet<String> = workloads.keys().cloned().collect();
            let before = self.others.remove(name).unwrap_or_default();
            for gone in before.difference(&names) {
                hand_on(output(gone.clone(), None));
            }
            for (uid, workload) in workloads {
                hand_on(output(uid, Some(address::Type::Workload(workload))));
            }
            if !names.is_empty() {
                self.others.insert(name.clone(), names);
            }
        }
    }
}

fn output(name: String, address: Option<address::Type>) -> ResourceUpdate {
    ResourceUpdate::Address(name, address.map(|of| Box::new(Address { r#type: Some(of) })))
}
