//! Host names of services, and rules that name several of them with a star.

use std::cell::OnceCell;

use super::MeshConfig;
use super::object_store::{NamespacedName, ObjectStore};
use crate::resource::Service;

/// Full name of a service.
pub(super) fn service_hostname(name: &str, namespace: &str, mesh: &MeshConfig) -> String {
    format!("{name}.{namespace}.svc.{}", mesh.cluster_domain)
}

/// What a rule of `namespace` means by `host`: a name without a dot is a service of the rule's own namespace.
/// An address stays.
pub(super) fn resolve_rule_host(host: &str, namespace: &str, mesh: &MeshConfig) -> String {
    if host.contains(['.', '*', ':']) { host.to_owned() } else { service_hostname(host, namespace, mesh) }
}

/// How closely `host`, which may be a wildcard, names `hostname`; `None` if it does not. More is closer.
pub(super) fn match_specificity(host: &str, hostname: &str) -> Option<usize> {
    match host.strip_prefix('*') {
        None => (host == hostname).then_some(usize::MAX),
        Some(suffix) => hostname.ends_with(suffix).then_some(suffix.len()),
    }
}

/// Why a host means nothing.
pub(super) fn no_service_reason(host: &str) -> String {
    format!("{host} is no Service of the mesh")
}

/// What to write instead of such a host.
pub(super) const NO_SERVICE_FIX: &str =
    "write the name of a Service of this namespace, or NAME.NAMESPACE.svc and the domain";

/// Namespace and name of the service that has a host name; none if a service can't have it.
pub(super) fn service_of_host(host: &str, mesh: &MeshConfig) -> Option<NamespacedName> {
    let service = host.strip_suffix(&mesh.cluster_domain)?.strip_suffix(".svc.")?;
    let (name, namespace) = service.rsplit_once('.')?;
    let is_one = !name.is_empty() && !namespace.is_empty() && !name.contains('*');
    is_one.then(|| (namespace.to_owned(), name.to_owned()))
}

/// All that a host name ends with, the longest first: itself, without its first character, and so on.
pub(super) fn ends_of_host(hostname: &str) -> impl Iterator<Item = &str> {
    (0..=hostname.len()).filter_map(|start| hostname.get(start..))
}

/// Which hosts are services of the mesh. To be asked for many, none of which costs a look at all services.
pub(super) struct ServiceHosts<'a> {
    objects: &'a ObjectStore,
    mesh: &'a MeshConfig,
    /// All host names, backwards and in order; made when the first wildcard is asked for.
    backwards: OnceCell<Vec<String>>,
}

impl<'a> ServiceHosts<'a> {
    pub fn new(objects: &'a ObjectStore, mesh: &'a MeshConfig) -> Self {
        Self { objects, mesh, backwards: OnceCell::new() }
    }

    /// The service of that very host; none if it stands for a name elsewhere.
    pub fn service(&self, host: &str) -> Option<&'a Service> {
        let service = self.objects.service(&service_of_host(host, self.mesh)?)?;
        (!service.is_external_name()).then_some(service)
    }

    /// Whether some service has a host, which may be a wildcard.
    pub fn has_any(&self, host: &str) -> bool {
        let Some(end) = host.strip_prefix('*') else { return self.service(host).is_some() };
        let all = self.backwards.get_or_init(|| self.all_backwards());
        let end = backwards(end);
        let from = all.partition_point(|host| *host < end);
        all.get(from).is_some_and(|host| host.starts_with(&end))
    }

    fn all_backwards(&self) -> Vec<String> {
        let services = self.objects.services().filter(|service| !service.is_external_name());
        let names = services.map(|service| &service.metadata);
        let hosts = names.map(|it| backwards(&service_hostname(&it.name, &it.namespace, self.mesh)));
        let mut hosts: Vec<String> = hosts.collect();
        hosts.sort_unstable();
        hosts
    }
}

fn backwards(text: &str) -> String {
    text.chars().rev().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_of_the_mesh_has_name_and_namespace_of_a_service() {
        let mesh = MeshConfig::default();
        let service = |host| service_of_host(host, &mesh);
        let web = ("shop".to_owned(), "web".to_owned());
        assert_eq!(service("web.shop.svc.cluster.local"), Some(web));
        for host in [
            "web",
            "web.shop",
            "shop.svc.cluster.local",
            ".shop.svc.cluster.local",
            "web..svc.cluster.local",
            "*.shop.svc.cluster.local",
            "web.shop.svc.example.org",
            "web.shop.pod.cluster.local",
        ] {
            assert_eq!(service(host), None, "{host}");
        }
    }

    #[test]
    fn a_host_ends_with_itself_and_with_nothing() {
        assert_eq!(ends_of_host("a.b").collect::<Vec<_>>(), ["a.b", ".b", "b", ""]);
    }

    #[test]
    fn only_short_names_are_completed() {
        let mesh = MeshConfig::default();
        assert_eq!(resolve_rule_host("web", "shop", &mesh), "web.shop.svc.cluster.local");
        assert_eq!(resolve_rule_host("a.b", "shop", &mesh), "a.b");
        assert_eq!(resolve_rule_host("*", "shop", &mesh), "*");
        assert_eq!(resolve_rule_host("fd00::1", "shop", &mesh), "fd00::1");
    }

    #[test]
    fn exact_beats_longer_beats_shorter_wildcard() {
        let closeness = |host| match_specificity(host, "web.shop.svc.cluster.local");
        assert!(closeness("web.shop.svc.cluster.local") > closeness("*.shop.svc.cluster.local"));
        assert!(closeness("*.shop.svc.cluster.local") > closeness("*.local"));
        assert!(closeness("*.local") > closeness("*"));
        assert_eq!(closeness("web.shop"), None);
        assert_eq!(closeness("*.other.local"), None);
    }
}
