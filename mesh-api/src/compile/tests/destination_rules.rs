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
fn limits_of_requests_reach_the_agents_and_a_budget_all_ports() {
    let text = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a, namespace: shop}\n\
        spec:\n  host: web\n  trafficPolicy:\n    connectionPool:\n      http: {http1MaxPendingRequests: 1, \
        http2MaxRequests: 2, maxRequestsPerConnection: 3, maxRetries: 4, idleTimeout: 5s, h2UpgradePolicy: UPGRADE}\n    \
        retryBudget: {percent: 12.5, minRetryConcurrency: 6}\n    \
        outlierDetection: {consecutiveGatewayErrors: 7, splitExternalLocalOriginErrors: true, \
        outlierDetectionHttpErrorCodes: [429]}\n    portLevelSettings: [{port: {number: 80}}]\n  \
        subsets:\n  - {name: v1, trafficPolicy: {portLevelSettings: [{port: {number: 81}}]}}\n  \
        - {name: v2, trafficPolicy: {retryBudget: {percent: 1, minRetryConcurrency: 8}}}\n";
    let policy = policies(text).remove(0);
    let default = policy.default.as_ref().expect("always there");
    let expected = ext::HttpPool {
        max_requests: 2,
        max_pending_requests: 1,
        max_requests_per_connection: 3,
        max_retries: 4,
        idle_timeout: Some(prost_types::Duration { seconds: 5, nanos: 0 }),
        upgrades_to_http2: true,
        uses_client_protocol: false,
    };
    assert_eq!(default.pool.as_ref().and_then(|pool| pool.http), Some(expected));
    let outlier = default.outlier.as_ref().expect("was set");
    assert_eq!((outlier.consecutive_errors, outlier.consecutive_gateway_errors), (5, 7));
    assert_eq!((outlier.consecutive_local_origin_failures, &*outlier.http_error_statuses), (5, &[429][..]));
    assert!(outlier.splits_local_origin_errors);
    let budget = |policy: &ext::PortPolicy| {
        policy.retry_budget.as_ref().map(|budget| (budget.share, budget.min_retry_concurrency))
    };
    let of_service = Some((125_000, 6));
    assert_eq!((budget(default), budget(&policy.ports[&80])), (of_service, of_service));
    let subset = |name: &str, port: u32| budget(&policy.subsets[name].ports[&port]);
    assert_eq!((subset("v1", 80), subset("v1", 81)), (of_service, of_service));
    assert_eq!(subset("v2", 80), Some((10_000, 8)));
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

/// The policies of the subset `v1` beside this traffic policy: those for all ports, and for single ones, as
/// load balancer, most connections and failures in a row.
fn of_subset(subset: &str) -> Vec<String> {
    let text = format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, namespace: shop}}\n\
         spec:\n  host: web\n  subsets: [{{name: v1, labels: {{version: v1}}, {subset}}}, {{name: other}}]\n  \
         trafficPolicy:\n    loadBalancer: {{simple: ROUND_ROBIN}}\n    \
         connectionPool: {{tcp: {{maxConnections: 7}}}}\n    outlierDetection: {{consecutive5xxErrors: 3}}\n    \
         portLevelSettings:\n    - {{port: {{number: 80}}, loadBalancer: {{simple: RANDOM}}}}\n    \
         - {{port: {{number: 81}}, connectionPool: {{tcp: {{maxConnections: 8}}}}}}\n"
    );
    let policy = policies(&text).remove(0);
    let subset = &policy.subsets["v1"];
    assert_eq!(subset.labels["version"], "v1");
    assert_eq!(policy.subsets.len(), 2);
    let say = |policy: &ext::PortPolicy| {
        let most = policy.pool.as_ref().map_or(0, |pool| pool.max_connections);
        let errors = policy.outlier.as_ref().map_or(0, |outlier| outlier.consecutive_errors);
        format!("{} {most} {errors}", policy.lb().as_str_name())
    };
    let ports = subset.ports.iter().map(|(port, policy)| format!("{port}: {}", say(policy)));
    std::iter::once(say(subset.default.as_ref().expect("always there"))).chain(ports).collect()
}

#[test]
fn a_subset_replaces_what_is_for_all_endpoints_block_by_block() {
    for (subset, expected) in [
        ("", &["ROUND_ROBIN 7 3", "80: RANDOM 0 0", "81: UNSPECIFIED 8 0"][..]),
        (
            "trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}}",
            &["LEAST_REQUEST 7 3", "80: LEAST_REQUEST 0 0", "81: LEAST_REQUEST 8 0"],
        ),
        (
            "trafficPolicy: {connectionPool: {tcp: {maxConnections: 9}}, outlierDetection: {consecutive5xxErrors: 4}}",
            &["ROUND_ROBIN 9 4", "80: RANDOM 9 4", "81: UNSPECIFIED 9 4"],
        ),
        // A block replaces the other whatever is in it.
        (
            "trafficPolicy: {connectionPool: {http: {maxConcurrentStreams: 1}}, loadBalancer: {warmupDurationSecs: 1s}}",
            &["UNSPECIFIED 0 3", "80: UNSPECIFIED 0 0", "81: UNSPECIFIED 0 0"],
        ),
        (
            "trafficPolicy: {loadBalancer: {simple: LEAST_REQUEST}, portLevelSettings: [{port: {number: 80}, \
             outlierDetection: {consecutive5xxErrors: 9}}, {port: {number: 82}}]}",
            &["LEAST_REQUEST 7 3", "80: UNSPECIFIED 0 9", "81: LEAST_REQUEST 8 0", "82: UNSPECIFIED 0 0"],
        ),
    ] {
        assert_eq!(of_subset(subset), expected, "{subset}");
    }
}

#[test]
fn rules_that_are_one_have_the_subsets_of_all_and_of_one_name_the_first() {
    let of = |name: &str, spec: &str| {
        rule(name, "shop", "web", "RANDOM", "")
            .replace("trafficPolicy: {loadBalancer: {simple: RANDOM}}", spec)
    };
    let text = of("a", "subsets: [{name: v1, labels: {app: a}}]")
        + &of("b", "trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}, subsets: [{name: v2}, {name: v1}]")
        + &of("c", "trafficPolicy: {loadBalancer: {simple: RANDOM}}, subsets: [{name: v3}]")
        + &of("d", "subsets: [{name: v4}], exportTo: [.]");
    for policy in policies(&text) {
        // The last one is seen by others, so it is another rule.
        assert_eq!(policy.subsets.keys().collect::<Vec<_>>(), ["v1", "v2", "v3"]);
        assert_eq!(policy.subsets["v1"].labels["app"], "a");
        for subset in policy.subsets.values() {
            assert_eq!(subset.default.as_ref().map(ext::PortPolicy::lb), Some(ext::LoadBalancer::RoundRobin));
        }
    }
    let conditions = compiled(&(SERVICES.to_owned() + &text)).conditions;
    let told: Vec<_> =
        conditions.iter().map(|it| (it.name.as_str(), it.field.as_str(), it.is_whole)).collect();
    assert_eq!(told, [("b", "spec.subsets[1]", false), ("c", "spec.trafficPolicy", false)]);
}

#[test]
fn subsets_and_ports_together_have_a_limit() {
    let ports: Vec<_> = (1..=4096).map(|port| format!("{{port: {{number: {port}}}}}")).collect();
    let subsets: Vec<_> = (1..=5).map(|number| format!("{{name: v{number}}}")).collect();
    let of = |ports: &str| {
        format!(
            "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, namespace: shop}}\n\
             spec: {{host: web, trafficPolicy: {{portLevelSettings: [{ports}]}}, subsets: [{}]}}\n",
            subsets.join(", ")
        )
    };
    let many = of(&ports.join(", "));
    assert_eq!(policies(&many)[0].subsets.len(), 3);
    let conditions = compiled(&(SERVICES.to_owned() + &many)).conditions;
    assert_eq!(
        conditions.iter().map(|it| it.field.as_str()).collect::<Vec<_>>(),
        ["spec.subsets[3]", "spec.subsets[4]"]
    );
    assert_eq!(policies(&of(&ports[0]))[0].subsets.len(), 5);
}

#[test]
fn a_hash_reaches_agents_and_is_drawn_at_random_by_those_that_do_not_know_it() {
    let text = rule("a", "shop", "web", "RANDOM", "")
        .replace("simple: RANDOM", "consistentHash: {httpCookie: {name: user, ttl: 60s}}");
    let all = policies(&text);
    let policy = all[0].default.as_ref().unwrap();
    assert_eq!(policy.lb(), ext::LoadBalancer::Random);
    let Some(ext::consistent_hash::Key::Cookie(cookie)) = policy.hash.as_ref().and_then(|it| it.key.as_ref())
    else {
        panic!("{policy:?}")
    };
    assert_eq!((cookie.name.as_str(), cookie.ttl.map(|ttl| ttl.seconds)), ("user", Some(60)));
}
