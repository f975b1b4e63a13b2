//! Where requests go, or why they fail.

use super::rule::RuleMaker;
use crate::compile::RouteFault;
use crate::compile::service_host::service_hostname;
use crate::compile::service_membership::service_key;
use crate::resource::gateway_api::{BackendRef, ObjectRef, RouteFilter};
use crate::resource::pod::Protocol;
use crate::wire::ext;

/// Why a backend can't be used.
struct Invalid {
    field: &'static str,
    fault: RouteFault,
    reason: String,
    fix: &'static str,
}

impl RuleMaker<'_, '_> {
    /// The destination of a share of a rule's requests, which fails if there is none.
    pub(super) fn destination(&mut self, path: &str, backend: &BackendRef) -> ext::HttpDestination {
        let status = self.failure();
        let result = format!("requests that fall on it get status {status}");
        let mut made = self
            .object(path, &backend.object, &result)
            .unwrap_or_else(|host| ext::HttpDestination { host, status, ..ext::HttpDestination::default() });
        made.weight = backend.weight;
        for (index, filter) in backend.filters.iter().enumerate() {
            let field = format!("{path}.filters[{index}]");
            match filter {
                RouteFilter::RequestHeaders(filter) => {
                    made.request = Some(self.request_edits(&field, filter));
                }
                RouteFilter::ResponseHeaders(filter) => {
                    made.response = Some(self.response_edits(&field, filter));
                }
                RouteFilter::Unknown(name) => {
                    self.tell_unknown(field, name, "requests that fall on the backend");
                    made.status = status;
                }
                other => {
                    let reason = format!("{} of a backend is not known yet: {result}", other.name());
                    let fix = "write it into `filters` of the rule";
                    self.said.ignore_for(RouteFault::UnsupportedValue, field, reason, fix);
                    made.status = status;
                }
            }
        }
        made
    }

    /// The destination that an object is. Error: it is none, and this is what it is called; said is why, and
    /// what comes of it.
    pub(super) fn object(
        &mut self,
        path: &str,
        object: &ObjectRef,
        result: &str,
    ) -> Result<ext::HttpDestination, String> {
        let namespace = object.namespace.as_ref().unwrap_or(&self.metadata.namespace);
        let name = (namespace.clone(), object.name.clone());
        if let Some(invalid) = self.problem_of(object, namespace) {
            let reason = format!("{}: {result}", invalid.reason);
            self.said.ignore_for(invalid.fault, format!("{path}.{}", invalid.field), reason, invalid.fix);
            let host = format!("{} {}/{}", object.kind, name.0, name.1);
            if object.is_service() {
                self.named.insert(name);
            }
            return Err(host);
        }
        let made = ext::HttpDestination {
            service: service_key(&name, self.mesh),
            host: service_hostname(&name.1, &name.0, self.mesh),
            port: object.port.unwrap_or_default().into(),
            ..ext::HttpDestination::default()
        };
        self.named.insert(name);
        Ok(made)
    }

    fn problem_of(&self, object: &ObjectRef, namespace: &str) -> Option<Invalid> {
        let invalid = |field, fault, reason, fix| Some(Invalid { field, fault, reason, fix });
        if !object.is_service() {
            let reason = format!("requests can't go to a {}", object.kind);
            let fix = "name a Service, without `group` and `kind`";
            return invalid("kind", RouteFault::InvalidKind, reason, fix);
        }
        let own = &self.metadata.namespace;
        let full_name = format!("{namespace}/{}", object.name);
        if namespace != own && !self.is_own_parent(object, namespace) {
            let is_granted = self.grants.permit((self.kind, own), object, namespace);
            if !is_granted {
                let reason =
                    format!("no ReferenceGrant in {namespace} lets a {} of {own} name it", self.kind);
                let fix = "add a ReferenceGrant there, or name a Service of the route's own namespace";
                return invalid("namespace", RouteFault::RefNotPermitted, reason, fix);
            }
        }
        let name = (namespace.to_owned(), object.name.clone());
        let found = self.objects.service(&name).filter(|service| !service.is_external_name());
        let Some(service) = found else {
            let reason = format!("there is no Service {full_name} that has endpoints of its own");
            return invalid("name", RouteFault::BackendNotFound, reason, "name one that there is");
        };
        let mut ports = service.spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
        let has_port = object.port.is_some_and(|wanted| ports.any(|port| port.port == wanted));
        if !has_port {
            let port = object.port.unwrap_or_default();
            let reason = format!("{full_name} has no TCP port {port}");
            return invalid("port", RouteFault::BackendNotFound, reason, "write one of the Service's ports");
        }
        None
    }

    /// Whether it is the very Service that the route's clients call: they reach it without a route, too. So
    /// only where all are of the route's namespace.
    fn is_own_parent(&self, object: &ObjectRef, namespace: &str) -> bool {
        let parents = &self.route.parents;
        parents.iter().all(|parent| parent.namespace != self.metadata.namespace)
            && parents.iter().any(|parent| parent.namespace == namespace && parent.name == object.name)
    }
}
