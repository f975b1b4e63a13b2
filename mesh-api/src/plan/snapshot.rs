//! One immutable state of the configuration.

use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;

use super::directory::Directory;
use super::endpoints::ServiceEndpoints;
use super::policy::{Policy, PolicySet};
use super::service::Service;
use super::workload::Workload;

/// One state of the configuration. Cheap to clone, free to share.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    pub(super) generation: u64,
    pub(super) directory: Directory,
    pub(super) policies: PolicySet,
}

impl Snapshot {
    /// Number of the state: grows with every change; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The workload with that uid.
    pub fn workload(&self, uid: &str) -> Option<&Arc<Workload>> {
        self.directory.workloads.get(uid)
    }

    /// The workload that owns an address. Workloads in their node's network own none.
    pub fn workload_by_address(&self, ip: IpAddr) -> Option<&Arc<Workload>> {
        self.directory.by_address.get(&ip.to_canonical())
    }

    /// The service that a client in a namespace means by a virtual address.
    pub fn service_by_vip(&self, ip: IpAddr, client_namespace: &str) -> Option<&Arc<Service>> {
        self.directory.vips.find(ip.to_canonical(), client_namespace)
    }

    /// The service with that namespace and fully qualified host name.
    pub fn service_by_name(&self, namespace: &str, hostname: &str) -> Option<&Arc<Service>> {
        self.directory.services.get(format!("{namespace}/{hostname}").as_str())
    }

    /// The service that a client in a namespace means by a name, as its resolver would find it: `web`, `web.shop`,
    /// `web.shop.svc` or a full name, with or without the last dot. Looks at every service, so it is not for the
    /// data path.
    pub fn resolve_host(&self, name: &str, client_namespace: &str) -> Option<&Arc<Service>> {
        let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
        let visible = || self.services().filter(|service| service.is_visible_to(client_namespace));
        let rank = |service: &&Arc<Service>| {
            (&*service.namespace != client_namespace, !service.canonical, service.key.clone())
        };
        let short = short_name(&name, client_namespace).and_then(|(host, namespace)| {
            let prefix = format!("{host}.{namespace}.svc.");
            let fits = |service: &&Arc<Service>| {
                *service.namespace == *namespace && service.hostname.starts_with(&prefix)
            };
            visible().filter(fits).min_by_key(rank)
        });
        short.or_else(|| visible().filter(|service| *service.hostname == *name).min_by_key(rank)).or_else(
            || {
                let covering = visible().filter(|service| covers(&service.hostname, &name));
                covering.min_by_key(|service| (usize::MAX - service.hostname.len(), rank(service)))
            },
        )
    }

    /// All workloads, in no order.
    pub fn workloads(&self) -> impl ExactSizeIterator<Item = &Arc<Workload>> {
        self.directory.workloads.values()
    }

    /// All services, in no order.
    pub fn services(&self) -> impl ExactSizeIterator<Item = &Arc<Service>> {
        self.directory.services.values()
    }

    /// All policies, in no order.
    pub fn policies(&self) -> impl ExactSizeIterator<Item = &Arc<Policy>> {
        self.policies.all()
    }

    /// The policies that apply to a workload, except such as it names and nobody has sent.
    pub fn policies_of<'a>(&'a self, workload: &'a Workload) -> impl Iterator<Item = &'a Arc<Policy>> {
        self.policies.applying_to(workload).filter_map(Result::ok)
    }

    /// The workloads of a service, ready or not, in the order of their uids.
    pub fn members(&self, service: &Service) -> &[Arc<Workload>] {
        self.endpoints(service).map_or(&[], ServiceEndpoints::members)
    }

    /// Every single address that the mesh knows: of workloads and services. May name one twice.
    pub fn addresses(&self) -> impl Iterator<Item = IpAddr> {
        self.directory.by_address.keys().copied().chain(self.directory.vips.addresses())
    }

    /// Every range of addresses that is a service's.
    pub fn address_ranges(&self) -> impl Iterator<Item = IpNet> {
        self.directory.vips.ranges()
    }

    pub(super) fn endpoints(&self, service: &Service) -> Option<&ServiceEndpoints> {
        self.directory.endpoints.get(&service.key).map(Arc::as_ref)
    }
}

/// Host and namespace of a name that a Kubernetes search list would complete.
fn short_name<'a>(name: &'a str, client_namespace: &'a str) -> Option<(&'a str, &'a str)> {
    let mut labels = name.split('.');
    match (labels.next()?, labels.next(), labels.next(), labels.next()) {
        (host, None, None, None) => Some((host, client_namespace)),
        (host, Some(namespace), None | Some("svc"), None) => Some((host, namespace)),
        _ => None,
    }
}

/// Whether a wildcard host name covers a name.
fn covers(hostname: &str, name: &str) -> bool {
    hostname.strip_prefix('*').is_some_and(|suffix| name.len() > suffix.len() && name.ends_with(suffix))
}
