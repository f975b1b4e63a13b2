use std::{net::IpAddr, time::Duration};

use super::*;
use crate::manifest::{self, ParsedManifest};

fn read_one(text: &str) -> (Object, ParsedManifest) {
    let mut parsed = manifest::parse("test.yaml", text);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    (parsed.objects.remove(0).value, parsed)
}

fn pod(text: &str) -> Pod {
    match read_one(&format!("apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\n{text}")).0 {
        Object::Pod(pod) => *pod,
        other => panic!("{other:?}"),
    }
}

fn rule(spec: &str) -> (DestinationRule, Vec<String>) {
    let head = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: ";
    match read_one(&format!("{head}{{host: a, {spec}}}")) {
        (Object::DestinationRule(rule), parsed) => {
            let warned = parsed.warnings.into_iter().map(|warning| warning.field.unwrap_or_default());
            (*rule, warned.collect())
        }
        (other, _) => panic!("{other:?}"),
    }
}

#[test]
fn probes_have_kubernetes_defaults_and_name_ports() {
    let pod = pod("spec:\n  containers:\n  - name: c\n    ports: [{name: http, containerPort: 8080}]\n    \
         readinessProbe: {httpGet: {port: http, path: /ready}}\n    \
         livenessProbe: {tcpSocket: {port: 9090}, periodSeconds: 3}\n    \
         startupProbe: {exec: {command: ['true']}}\n  - name: d\n    readinessProbe: {grpc: {port: 50051}}\n    \
         livenessProbe: {httpGet: {port: 7070, host: example.org}}\n    \
         lifecycle: {postStart: {sleep: {seconds: 1}}, preStop: {httpGet: {port: 6060, path: /stop}}}\n");
    assert_eq!(pod.probe_ports().into_iter().collect::<Vec<_>>(), [6060, 8080, 9090, 50051]);
    let container = &pod.spec.containers[0];
    let readiness = container.readiness_probe.as_ref().expect("was given");
    let defaults = (readiness.period_seconds, readiness.timeout_seconds, readiness.failure_threshold);
    assert_eq!(defaults, (10, 1, 3));
    assert_eq!(container.liveness_probe.as_ref().map(|probe| probe.period_seconds), Some(3));
}

#[test]
fn a_probes_port_name_is_its_own_containers() {
    let pod = pod(
        "spec:\n  containers:\n  - name: c\n    ports: [{name: http, containerPort: 8080}]\n  - name: d\n    \
         readinessProbe: {tcpSocket: {port: http}}\n",
    );
    assert!(pod.probe_ports().is_empty());
}

#[test]
fn addresses_of_a_pod_are_listed_once() {
    let pod = pod("status: {podIP: 10.0.0.1, podIPs: [{ip: 10.0.0.1}, {ip: 'fd00::1'}]}");
    assert_eq!(pod.addresses(), ["10.0.0.1", "fd00::1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    assert_eq!(pod.service_account(), "default");
}

#[test]
fn unknown_fields_of_kubernetes_kinds_are_none_of_our_business() {
    let pod = pod("spec: {containers: [{name: c, securityContext: {runAsUser: 1}}], tolerations: []}");
    assert_eq!(pod.spec.containers.len(), 1);
}

#[test]
fn what_a_rule_says_of_connections_is_read() {
    let (rule, warned) = rule(
        "trafficPolicy: {loadBalancer: {simple: LEAST_CONN}, connectionPool: {tcp: {maxConnections: 0, \
         connectTimeout: 1m30s, tcpKeepalive: {time: 2h}}}, outlierDetection: {maxEjectionPercent: 100}, \
         portLevelSettings: [{port: {number: 80}, loadBalancer: {simple: RANDOM}}]}, \
         subsets: [{name: v1, labels: {version: v1}}], exportTo: ['.'], \
         workloadSelector: {matchLabels: {app: front}}",
    );
    assert!(warned.is_empty(), "{warned:?}");
    let settings = &rule.policy.settings;
    assert_eq!(settings.load_balancer, Some(LoadBalancer::LeastRequest));
    let pool = settings.pool.as_ref().expect("was given");
    assert_eq!((pool.max_connections, pool.connect_timeout), (None, Some(Duration::from_secs(90))));
    let outlier = settings.outlier.as_ref().expect("was given");
    assert_eq!(*outlier, OutlierDetection { max_ejection_percent: 100, ..OutlierDetection::default() });
    assert_eq!(rule.policy.ports[&80].load_balancer, Some(LoadBalancer::Random));
    assert_eq!(rule.subsets[0].labels["version"], "v1");
    assert!(rule.workload_selector.is_some());
}

#[test]
fn a_hash_has_one_key() {
    let hash = |spec: &str| {
        let (rule, warned) =
            rule(&format!("trafficPolicy: {{loadBalancer: {{consistentHash: {{{spec}}}}}}}"));
        assert!(warned.is_empty(), "{warned:?}");
        match rule.policy.settings.load_balancer {
            Some(LoadBalancer::ConsistentHash(key)) => key,
            other => panic!("{spec}: {other:?}"),
        }
    };
    assert_eq!(hash("httpHeaderName: X-User"), HashKey::Header("x-user".parse().unwrap()));
    assert_eq!(hash("useSourceIp: true"), HashKey::SourceIp);
    assert_eq!(
        hash("httpQueryParameterName: user, useSourceIp: false"),
        HashKey::QueryParameter("user".into())
    );
    let cookie = HashCookie { name: "user".into(), path: String::new(), ttl: None, attributes: Vec::new() };
    assert_eq!(hash("httpCookie: {name: user}, ringHash: {}"), HashKey::Cookie(cookie.clone()));
    let attributes = vec![("Secure".to_owned(), String::new())];
    let given = HashCookie { path: "/".into(), ttl: Some(Duration::ZERO), attributes, ..cookie };
    let spec = "httpCookie: {name: user, path: /, ttl: 0s, attributes: [{name: Secure}]}";
    assert_eq!(hash(spec), HashKey::Cookie(given));
    for bad in [
        "useSourceIp: false",
        "useSourceIp: true, httpHeaderName: a",
        "httpHeaderName: 'a b'",
        "httpCookie: {path: /}",
        "httpCookie: {name: 'a;b'}",
        "httpCookie: {name: a, path: '/;Domain=evil'}",
        "useSourceIp: true, ringHash: {}, maglev: {}",
    ] {
        let text = format!(
            "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a}}\n\
             spec: {{host: a, trafficPolicy: {{loadBalancer: {{consistentHash: {{{bad}}}}}}}}}"
        );
        assert_eq!(manifest::parse("test.yaml", &text).errors.len(), 1, "{bad}");
    }
}

#[test]
fn blocks_that_say_nothing_which_is_acted_upon_are_there() {
    let (rule, _) = rule(
        "trafficPolicy: {loadBalancer: {localityLbSetting: {enabled: true}}, connectionPool: {http: {maxConcurrentStreams: 1}}}",
    );
    let settings = &rule.policy.settings;
    assert_eq!(settings.load_balancer, Some(LoadBalancer::Unspecified));
    assert_eq!(settings.pool, Some(ConnectionPool::default()));
    assert!(settings.outlier.is_none() && rule.policy.is_nothing(), "{settings:?}");
}

#[test]
fn an_idle_timeout_of_zero_is_none_and_other_spans_have_a_least() {
    let pool = |tcp: &str| rule(&format!("trafficPolicy: {{connectionPool: {{tcp: {{{tcp}}}}}}}")).0.policy;
    let idle = |tcp: &str| pool(tcp).settings.pool.expect("was given").idle_timeout;
    assert_eq!(idle("idleTimeout: 0s"), None);
    assert_eq!(idle("idleTimeout: 1ms"), Some(Duration::from_millis(1)));
    let text = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, \
                trafficPolicy: {connectionPool: {tcp: {maxConnectionDuration: 0s}}}}";
    let parsed = manifest::parse("test.yaml", text);
    assert_eq!(parsed.errors.len(), 1, "{:?}", parsed.errors);
}

#[test]
fn what_a_rule_says_of_more_is_ignored_with_a_warning_each() {
    let (_, warned) = rule(
        "trafficPolicy: {tls: {mode: SIMPLE}, connectionPool: {http: {http2KeepAlive: {interval: 1s}}}, \
         loadBalancer: {consistentHash: {useSourceIp: true, maglev: {tableSize: 7}}}, \
         outlierDetection: {consecutiveErrors: 3}, retryBudget: {budgetInterval: 1s}}",
    );
    assert_eq!(
        warned,
        [
            "spec.trafficPolicy.retryBudget.budgetInterval",
            "spec.trafficPolicy.tls",
            "spec.trafficPolicy.loadBalancer.consistentHash.maglev.tableSize",
            "spec.trafficPolicy.connectionPool.http.http2KeepAlive",
            "spec.trafficPolicy.outlierDetection.consecutiveErrors",
        ]
    );
}

#[test]
fn what_a_rule_says_of_requests_is_read() {
    let (rule, warned) = rule(
        "trafficPolicy: {connectionPool: {http: {http1MaxPendingRequests: 1, http2MaxRequests: 2, \
         maxRequestsPerConnection: 3, maxRetries: 0, idleTimeout: 4s, h2UpgradePolicy: UPGRADE, \
         useClientProtocol: true}}, retryBudget: {percent: 12.5}, \
         portLevelSettings: [{port: {number: 80}, connectionPool: {http: {idleTimeout: 0s}}}]}",
    );
    assert!(warned.is_empty(), "{warned:?}");
    let settings = &rule.policy.settings;
    let expected = HttpPool {
        max_pending_requests: Some(1),
        max_requests: Some(2),
        max_requests_per_connection: Some(3),
        // Zero is as if nothing were said.
        max_retries: None,
        idle_timeout: Some(Duration::from_secs(4)),
        upgrades_to_http2: true,
        uses_client_protocol: true,
    };
    assert_eq!(settings.pool.as_ref().expect("was given").http, expected);
    let budget = RetryBudget { percent: 12.5, min_retry_concurrency: 3 };
    assert_eq!(settings.retry_budget, Some(budget));
    let port = &rule.policy.ports[&80];
    assert_eq!(port.pool.as_ref().expect("was given").http, HttpPool::default());
    assert_eq!(port.retry_budget, Some(budget), "it is the whole service's");
    let bad = "apiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: a}\nspec: {host: a, \
               trafficPolicy: {retryBudget: {percent: 101}, connectionPool: {http: {maxRetries: -1, \
               h2UpgradePolicy: MAYBE}}, outlierDetection: {outlierDetectionHttpErrorCodes: [99]}}}";
    let errors = manifest::parse("test.yaml", bad).errors;
    assert_eq!(errors.len(), 4, "{errors:?}");
}

#[test]
fn what_a_rule_says_of_failures_is_read() {
    let outlier = |spec: &str| {
        let (rule, warned) = rule(&format!("trafficPolicy: {{outlierDetection: {{{spec}}}}}"));
        (rule.policy.settings.outlier.expect("was given"), warned)
    };
    let (all, warned) = outlier(
        "consecutive5xxErrors: 7, consecutiveGatewayErrors: 4, consecutiveLocalOriginFailures: 2, \
         splitExternalLocalOriginErrors: true, outlierDetectionHttpErrorCodes: [503, 429, 503]",
    );
    assert!(warned.is_empty(), "{warned:?}");
    let expected = OutlierDetection {
        consecutive_errors: 7,
        consecutive_gateway_errors: 4,
        splits_local_origin_errors: true,
        consecutive_local_origin_failures: 2,
        http_error_statuses: vec![429, 503],
        ..OutlierDetection::default()
    };
    assert_eq!(all, expected);
    let (split, _) = outlier("splitExternalLocalOriginErrors: true, consecutiveLocalOriginFailures: 0");
    assert_eq!(split.consecutive_local_origin_failures, 5, "zero is as if nothing were said");
    let (_, warned) = outlier("consecutiveLocalOriginFailures: 2");
    assert_eq!(warned, ["spec.trafficPolicy.outlierDetection.consecutiveLocalOriginFailures"]);
}

#[test]
fn an_empty_list_in_a_source_demands_nothing_and_is_warned_of() {
    let text = "apiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {name: a}\n\
                spec: {rules: [{from: [{source: {principals: [], namespaces: [b]}}]}]}\n";
    let (object, parsed) = read_one(text);
    let Object::AuthorizationPolicy(policy) = object else { panic!("{object:?}") };
    assert!(policy.rules[0].from[0].principals.is_empty());
    assert_eq!(parsed.warnings[0].field.as_deref(), Some("spec.rules[0].from[0].source.principals"));
}
