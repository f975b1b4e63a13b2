//! Host names of services, and rules that name several of them with a star.

use super::MeshConfig;

/// Full name of a service.
pub(super) fn service_hostname(name: &str, namespace: &str, mesh: &MeshConfig) -> String {
    format!("{name}.{namespace}.svc.{}", mesh.cluster_domain)
}

/// What a rule of `namespace` means by `host`: a name without a dot is a service of the rule's own namespace.
pub(super) fn resolve_rule_host(host: &str, namespace: &str, mesh: &MeshConfig) -> String {
    if host.contains(['.', '*']) { host.to_owned() } else { service_hostname(host, namespace, mesh) }
}

/// How closely `host`, which may be a wildcard, names `hostname`; `None` if it does not. More is closer.
pub(super) fn match_specificity(host: &str, hostname: &str) -> Option<usize> {
    match host.strip_prefix('*') {
        None => (host == hostname).then_some(usize::MAX),
        Some(suffix) => hostname.ends_with(suffix).then_some(suffix.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_short_names_are_completed() {
        let mesh = MeshConfig::default();
        assert_eq!(resolve_rule_host("web", "shop", &mesh), "web.shop.svc.cluster.local");
        assert_eq!(resolve_rule_host("a.b", "shop", &mesh), "a.b");
        assert_eq!(resolve_rule_host("*", "shop", &mesh), "*");
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
