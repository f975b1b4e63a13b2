//! Which Services a route is attached to, and for whom.

use std::collections::BTreeSet;

use crate::compile::RouteFault;
use crate::compile::condition::ConditionList;
use crate::compile::object_store::{NamespacedName, ObjectStore};
use crate::compile::service::app_protocol;
use crate::resource::Service;
use crate::resource::gateway_api::ParentRef;
use crate::resource::pod::Protocol;

/// A Service that a route is attached to.
pub(super) struct Attachment {
    pub service: NamespacedName,
    /// The index of the parent among the route's.
    pub parent: usize,
    /// The namespace whose clients it is for. None: all.
    pub client_namespace: Option<String>,
    /// The ports that it is for. None: all.
    pub ports: Option<BTreeSet<u16>>,
}

/// Why a route is not attached to one of its parents.
pub(super) struct Refused {
    /// Field of the parent; empty for all of it.
    field: &'static str,
    fault: RouteFault,
    reason: String,
    fix: &'static str,
}

impl Refused {
    pub fn tell(self, index: usize, said: &mut ConditionList<'_>) {
        let dot = if self.field.is_empty() { "" } else { "." };
        let field = format!("spec.parentRefs[{index}]{dot}{}", self.field);
        said.ignore_for(self.fault, field, self.reason, self.fix);
    }
}

/// Attaches a route of a namespace to a parent. Errors: it can't be.
pub(super) fn attach(
    parent: &ParentRef,
    namespace: &str,
    objects: &ObjectStore,
) -> Result<Attachment, Refused> {
    let name = (parent.namespace.clone(), parent.name.clone());
    let full_name = format!("{}/{}", name.0, name.1);
    let refuse = |field, fault, reason, fix| Err(Refused { field, fault, reason, fix });
    let Some(service) = objects.service(&name) else {
        let fix = "write `name`, and `namespace` if it is another one, of a Service";
        return refuse("name", RouteFault::NoMatchingParent, format!("there is no Service {full_name}"), fix);
    };
    if service.is_external_name() || service.is_headless() {
        let reason = format!("{full_name} has no address of its own, so that requests to it take no route");
        let fix = "give the Service an address, with a second Service if need be";
        return refuse("name", RouteFault::UnsupportedValue, reason, fix);
    }
    let meant = |number: u16, name: &str| {
        parent.port.is_none_or(|port| port == number)
            && parent.section_name.as_ref().is_none_or(|section| section == name)
    };
    let all = tcp_ports(service);
    let named: Vec<_> = all.iter().filter(|(number, name, _)| meant(*number, name)).collect();
    if named.is_empty() {
        let field = if parent.port.is_some() { "port" } else { "sectionName" };
        let reason = format!("{full_name} has no such port of TCP");
        return refuse(field, RouteFault::NoMatchingParent, reason, "write one of the Service's ports");
    }
    let http: BTreeSet<u16> = named.iter().filter(|(_, _, is)| *is).map(|(number, _, _)| *number).collect();
    if http.is_empty() {
        let reason = format!("no port of {full_name} that it is for is read as HTTP");
        let fix = "call the port `http`, or set its `appProtocol` to `http`, if that is what it speaks";
        return refuse("", RouteFault::UnsupportedValue, reason, fix);
    }
    let is_for_all_ports = parent.port.is_none() && parent.section_name.is_none();
    Ok(Attachment {
        client_namespace: (parent.namespace != namespace).then(|| namespace.to_owned()),
        ports: (!is_for_all_ports).then_some(http),
        service: name,
        parent: parent.index,
    })
}

/// The ports of a service that connections can be made to: number, name, and whether they may speak HTTP.
fn tcp_ports(service: &Service) -> Vec<(u16, &str, bool)> {
    let tcp = service.spec.ports.iter().filter(|port| port.protocol == Protocol::Tcp);
    tcp.map(|port| (port.port, port.name.as_str(), app_protocol(port).may_be_http())).collect()
}

/// Those that may speak HTTP.
pub(super) fn http_ports(service: &Service) -> impl Iterator<Item = u16> {
    tcp_ports(service).into_iter().filter(|(_, _, is_http)| *is_http).map(|(number, _, _)| number)
}
