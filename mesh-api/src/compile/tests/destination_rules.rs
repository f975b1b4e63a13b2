use super::*;

const SERVICES: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{port: 80}]}
";

fn rule(name: &str, namespace: &str, host: &str, lb: &str, rest: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{host: '{host}', trafficPolicy: {{loadBalancer: {{simple: {lb}}}}}{rest}}}\n"
    )
}

const HOST: &str = "web.shop.svc.cluster.local";

fn policies(text: &str) -> Vec<ext::TrafficPolicy> {
    let compiled = compiled(&(SERVICES.to_owned() + text));
    let service = compiled.service("shop/web.shop.svc.cluster.local");
    let Some(extension) = service.extensions.first() else { return Vec::new() };
    assert_eq!(extension.name, ext::TRAFFIC_POLICIES);
    let config = extension.config.as_ref().expect("has content");
    ext::TrafficPolicies::decode(config.value.as_slice()).expect("is ours").policies
}

/// What a client of a namespace gets, read as an agent does.
fn for_client(
    policies: &[ext::TrafficPolicy],
    namespace: &str,
    labels: &[(&str, &str)],
) -> Option<ext::LoadBalancer> {
    let covers = |policy: &&ext::TrafficPolicy| {
        let names = &policy.client_namespaces;
        (names.is_empty() || names.iter().any(|name| name == namespace))
            && policy.client_labels.iter().all(|(key, value)| labels.contains(&(key, value)))
    };
    policies.iter().find(covers).and_then(|policy| policy.default.as_ref()).map(ext::PortPolicy::lb)
}

#[test]
fn the_clients_namespace_counts_before_the_services_before_the_root() {
    let root = rule("r", "istio-system", HOST, "RANDOM", "");
    let own = rule("s", "shop", "web", "ROUND_ROBIN", "");
    let client = rule("c", "client", HOST, "PASSTHROUGH", "");
    let all = policies(&(root.clone() + &own + &client));
    assert_eq!(for_client(&all, "client", &[]), Some(ext::LoadBalancer::Passthrough));
    assert_eq!(for_client(&all, "shop", &[]), Some(ext::LoadBalancer::RoundRobin));
    assert_eq!(for_client(&all, "third", &[]), Some(ext::LoadBalancer::RoundRobin));
    assert_eq!(for_client(&all, "istio-system", &[]), Some(ext::LoadBalancer::RoundRobin));
    assert_eq!(for_client(&policies(&root), "third", &[]), Some(ext::LoadBalancer::Random));
    assert_eq!(policies(""), []);
}

#[test]
fn rules_are_seen_where_they_are_exported_to() {
    let all = policies(
        &(rule("a", "shop", "web", "ROUND_ROBIN", ", exportTo: ['.']")
            + &rule("b", "shop", "*.shop.svc.cluster.local", "RANDOM", ", exportTo: [friend]")),
    );
    assert_eq!(for_client(&all, "shop", &[]), Some(ext::LoadBalancer::RoundRobin));
    assert_eq!(for_client(&all, "friend", &[]), Some(ext::LoadBalancer::Random));
    assert_eq!(for_client(&all, "third", &[]), None);
}

#[test]
fn the_closest_host_counts() {
    let all = policies(
        &(rule("a", "shop", "*", "RANDOM", "")
            + &rule("b", "shop", "*.shop.svc.cluster.local", "ROUND_ROBIN", "")),
    );
    assert_eq!(for_client(&all, "third", &[]), Some(ext::LoadBalancer::RoundRobin));
    let all =
        policies(&(rule("a", "shop", "*", "RANDOM", "") + &rule("b", "shop", "web", "PASSTHROUGH", "")));
    assert_eq!(for_client(&all, "third", &[]), Some(ext::LoadBalancer::Passthrough));
}

#[test]
fn rules_for_chosen_clients_come_first_and_stay_at_home() {
    let chosen = rule("z", "shop", "web", "RANDOM", ", workloadSelector: {matchLabels: {app: front}}");
    let text = chosen + &rule("a", "shop", "web", "ROUND_ROBIN", "");
    let all = policies(&text);
    assert_eq!(for_client(&all, "shop", &[("app", "front")]), Some(ext::LoadBalancer::Random));
    assert_eq!(for_client(&all, "shop", &[("app", "back")]), Some(ext::LoadBalancer::RoundRobin));
    assert_eq!(for_client(&all, "other", &[("app", "front")]), Some(ext::LoadBalancer::RoundRobin));

    let compiled = compiled(&(text + &pod("shop", "front", "10.0.0.1") + &pod("other", "front", "10.0.0.2")));
    let extension = &compiled.pod("shop", "front-1").extensions[0];
    assert_eq!(extension.name, ext::LABELS);
    let labels = ext::Labels::decode(extension.config.as_ref().expect("has content").value.as_slice())
        .expect("is ours");
    assert_eq!(labels.labels["app"], "front");
    assert!(compiled.pod("other", "front-1").extensions.is_empty(), "no rule there asks");
}

#[test]
fn of_several_rules_for_a_host_the_first_with_a_policy_counts() {
    let empty = rule("a", "shop", "web", "RANDOM", "")
        .replace("trafficPolicy: {loadBalancer: {simple: RANDOM}}", "subsets: []");
    let text = empty + &rule("b", "shop", HOST, "ROUND_ROBIN", "") + &rule("c", "shop", "web", "RANDOM", "");
    assert_eq!(for_client(&policies(&text), "third", &[]), Some(ext::LoadBalancer::RoundRobin));
    let compiled = compiled(&(SERVICES.to_owned() + &text));
    assert_eq!(compiled.conditions.len(), 1);
    assert_eq!(
        (compiled.conditions[0].name.as_str(), compiled.conditions[0].effect),
        ("c", ConditionEffect::Ignored)
    );
}

#[test]
fn settings_of_a_port_replace_the_rest() {
    let text = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\n\
        spec:\n  host: web\n  trafficPolicy:\n    connectionPool:\n      tcp: {maxConnections: 7, connectTimeout: 3s, \
        tcpKeepalive: {probes: 2, time: 60s, interval: 5s}, idleTimeout: 1h, maxConnectionDuration: 24h}\n    \
        outlierDetection: {consecutive5xxErrors: 3}\n    portLevelSettings:\n    - port: {number: 80}\n      \
        loadBalancer: {simple: RANDOM}\n";
    let policy = policies(text).remove(0);
    let default = policy.default.as_ref().expect("always there");
    let pool = default.pool.as_ref().expect("was set");
    assert_eq!(pool.max_connections, 7);
    assert_eq!(pool.connect_timeout.map(|timeout| timeout.seconds), Some(3));
    assert_eq!(pool.keepalive.as_ref().map(|keepalive| keepalive.probes), Some(2));
    let outlier = default.outlier.as_ref().expect("was set");
    assert_eq!((outlier.consecutive_errors, outlier.max_ejection_percent), (3, 10));
    let port = &policy.ports[&80];
    assert_eq!(port.lb(), ext::LoadBalancer::Random);
    assert!(port.pool.is_none() && port.outlier.is_none(), "what a port leaves out is unset, not inherited");
}

#[test]
fn a_host_without_a_service_is_said() {
    let compiled = compiled(&rule("a", "shop", "nobody", "RANDOM", ""));
    assert_eq!(
        compiled.reasons(),
        [(
            ConditionEffect::Ignored,
            "spec.host: nobody.shop.svc.cluster.local is no Service of the mesh".to_owned()
        )]
    );
}
