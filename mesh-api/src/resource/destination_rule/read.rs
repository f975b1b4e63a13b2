//! Reading and checking a `DestinationRule`.

use std::collections::{BTreeMap, HashSet};

use super::{
    ConnectionPool, DestinationRule, HashKey, HttpPool, LoadBalancer, OutlierDetection, RetryBudget, Subset,
    TcpKeepalive, TrafficPolicy, TrafficSettings,
};
use crate::{
    document::{
        cursor::{Cursor, Fields, Findings},
        yaml_tree,
    },
    resource::{Metadata, Readable, export_to, host, metadata::is_label, selector},
};

/// Most ports with settings of their own.
const MAX_PORTS: usize = 4096;

impl Readable for DestinationRule {
    fn read(metadata: Metadata, root: &yaml_tree::YamlNode, findings: &Findings) -> Option<Self> {
        let Some(spec) = Cursor::spec(root, findings) else {
            crate::resource::lenient::report(
                root,
                &["spec"],
                "`spec` is missing",
                "add `spec: {host: …}`",
                findings,
            );
            return None;
        };
        let fields = spec.fields(&["host", "trafficPolicy", "subsets", "exportTo", "workloadSelector"]);
        let host = fields.require("host").and_then(|at| host(&at))?;
        let policy = fields.get("trafficPolicy").map(|at| traffic_policy(&at)).unwrap_or_default();
        Some(Self {
            metadata,
            host,
            policy,
            subsets: fields.get("subsets").map(|at| subsets(&at)).unwrap_or_default(),
            export_to: fields.get("exportTo").map(|at| export_to::read(&at, false)).unwrap_or_default(),
            workload_selector: fields.get("workloadSelector").and_then(|at| selector::read(&at)),
        })
    }
}

fn host(at: &Cursor<'_>) -> Option<String> {
    let host = at.non_empty_string()?;
    let name = host.strip_prefix("*.").unwrap_or(host);
    if host != "*" && !host::is_domain(name) {
        let fix = "write a service's name, a full host name, or one that begins with `*.`";
        at.error(format!("{host:?} is not a host"), fix);
        return None;
    }
    Some(host.to_owned())
}

fn subsets(at: &Cursor<'_>) -> Vec<Subset> {
    let mut names = HashSet::new();
    at.items().iter().filter_map(|at| subset(at, &mut names)).collect()
}

fn subset<'a>(at: &Cursor<'a>, names: &mut HashSet<&'a str>) -> Option<Subset> {
    let fields = at.fields(&["name", "labels", "trafficPolicy"]);
    let at_name = fields.require("name")?;
    let name = at_name.non_empty_string()?;
    if !is_label(name) {
        at_name.error(format!("{name:?} is not a subset's name"), "use lower-case letters, digits and `-`");
    }
    if !names.insert(name) {
        at_name.error("another subset has this name", "choose another name");
    }
    Some(Subset {
        name: name.to_owned(),
        labels: fields.get("labels").map(|at| at.string_map()).unwrap_or_default(),
        policy: fields.get("trafficPolicy").map(|at| traffic_policy(&at)).unwrap_or_default(),
    })
}

const BLOCKS: [&str; 4] = ["loadBalancer", "connectionPool", "outlierDetection", "tls"];

fn traffic_policy(at: &Cursor<'_>) -> TrafficPolicy {
    let known: Vec<_> =
        BLOCKS.into_iter().chain(["portLevelSettings", "tunnel", "proxyProtocol", "retryBudget"]).collect();
    let fields = at.fields(&known);
    fields.warn_unsupported_fields(&["tunnel", "proxyProtocol"]);
    let retry_budget = fields.get("retryBudget").map(|at| RetryBudget::read(&at));
    let mut ports = fields.get("portLevelSettings").map(|at| port_settings(&at)).unwrap_or_default();
    ports.values_mut().for_each(|settings| settings.retry_budget = retry_budget);
    TrafficPolicy { settings: TrafficSettings { retry_budget, ..settings(&fields) }, ports }
}

fn port_settings(at: &Cursor<'_>) -> BTreeMap<u16, TrafficSettings> {
    let items = at.items();
    if items.len() > MAX_PORTS {
        at.error(
            format!("more than {MAX_PORTS} ports"),
            "use `trafficPolicy` itself for what most ports share",
        );
    }
    let mut ports = BTreeMap::new();
    for at in items {
        let known: Vec<_> = BLOCKS.into_iter().chain(["port"]).collect();
        let fields = at.fields(&known);
        let settings = settings(&fields);
        let number = fields.require("port").and_then(|at| at.fields(&["number"]).require("number"));
        let Some(number) = number else { continue };
        let Some(port) = number.integer(1..=65535).and_then(|port| u16::try_from(port).ok()) else {
            continue;
        };
        if ports.insert(port, settings).is_some() {
            number.error("this port already has settings", "put both into one entry");
        }
    }
    ports
}

fn settings(fields: &Fields<'_>) -> TrafficSettings {
    if let Some(tls) = fields.get("tls").filter(|at| !is_of_the_mesh(at)) {
        tls.warn_unsupported();
    }
    TrafficSettings {
        load_balancer: fields.get("loadBalancer").map(|at| load_balancer(&at)),
        pool: fields.get("connectionPool").map(|at| connection_pool(&at)),
        outlier: fields.get("outlierDetection").map(|at| outlier_detection(&at)),
        retry_budget: None,
    }
}

/// Whether `tls` asks for the mesh's own mutual TLS and nothing besides, which is had without asking.
fn is_of_the_mesh(tls: &Cursor<'_>) -> bool {
    let fields = tls.fields_with_any_key();
    let alone = fields.all().all(|(key, _)| key == "mode");
    alone && fields.get("mode").and_then(|at| at.non_empty_string()) == Some("ISTIO_MUTUAL")
}

fn load_balancer(at: &Cursor<'_>) -> LoadBalancer {
    const LATER: [&str; 5] =
        ["localityLbSetting", "zoneAwareLbSetting", "warmup", "warmupDurationSecs", "backendUtilization"];
    let algorithms = [
        ("LEAST_REQUEST", LoadBalancer::LeastRequest),
        ("ROUND_ROBIN", LoadBalancer::RoundRobin),
        ("RANDOM", LoadBalancer::Random),
        ("PASSTHROUGH", LoadBalancer::Passthrough),
        // Istio's old name, and its way to say "whatever is usual".
        ("LEAST_CONN", LoadBalancer::LeastRequest),
        ("UNSPECIFIED", LoadBalancer::Unspecified),
    ];
    let known: Vec<_> = LATER.into_iter().chain(["simple", "consistentHash"]).collect();
    let fields = at.fields(&known);
    if let (Some(_), Some(hash)) = (fields.get("simple"), fields.get("consistentHash")) {
        hash.error("`simple` and `consistentHash` exclude each other", "remove one of them");
    }
    fields.warn_unsupported_fields(&LATER);
    if let Some(key) = fields.get("consistentHash").and_then(|at| HashKey::read(&at)) {
        return LoadBalancer::ConsistentHash(key);
    }
    fields.get("simple").and_then(|at| at.enum_value(&algorithms)).unwrap_or_default()
}

fn connection_pool(at: &Cursor<'_>) -> ConnectionPool {
    let fields = at.fields(&["tcp", "http"]);
    let http = fields.get("http").map(|at| HttpPool::read(&at)).unwrap_or_default();
    let tcp = fields.get("tcp").map(|at| tcp_pool(&at)).unwrap_or_default();
    ConnectionPool { http, ..tcp }
}

fn tcp_pool(at: &Cursor<'_>) -> ConnectionPool {
    let tcp = at.fields(&[
        "maxConnections",
        "connectTimeout",
        "tcpKeepalive",
        "maxConnectionDuration",
        "idleTimeout",
    ]);
    let duration = |key: &str| tcp.get(key).and_then(|at| at.duration());
    ConnectionPool {
        // Zero stands for the default, as everywhere in Istio.
        max_connections: tcp.get("maxConnections").and_then(|at| at.integer(INT32)).filter(|n| *n != 0),
        connect_timeout: duration("connectTimeout"),
        keepalive: tcp.get("tcpKeepalive").map(|at| keepalive(&at)),
        max_connection_duration: duration("maxConnectionDuration"),
        // Zero switches it off, which is what nothing said means here.
        idle_timeout: tcp
            .get("idleTimeout")
            .and_then(|at| at.duration_or_zero())
            .filter(|timeout| !timeout.is_zero()),
        http: HttpPool::default(),
    }
}

/// What an `int32` field can hold that must not be negative.
pub(super) const INT32: std::ops::RangeInclusive<u32> = 0..=i32::MAX.unsigned_abs();

fn keepalive(at: &Cursor<'_>) -> TcpKeepalive {
    let fields = at.fields(&["probes", "time", "interval"]);
    TcpKeepalive {
        probes: fields.get("probes").and_then(|at| at.integer(INT32)).filter(|n| *n != 0),
        time: fields.get("time").and_then(|at| at.duration()),
        interval: fields.get("interval").and_then(|at| at.duration()),
    }
}

fn outlier_detection(at: &Cursor<'_>) -> OutlierDetection {
    let fields = at.fields(&[
        "consecutiveErrors",
        "consecutive5xxErrors",
        "consecutiveGatewayErrors",
        "splitExternalLocalOriginErrors",
        "consecutiveLocalOriginFailures",
        "outlierDetectionHttpErrorCodes",
        "interval",
        "baseEjectionTime",
        "maxEjectionPercent",
        "minHealthPercent",
    ]);
    fields.warn_unsupported_fields(&["consecutiveErrors"]);
    let splits_local_origin_errors =
        fields.get("splitExternalLocalOriginErrors").and_then(|at| at.boolean()).unwrap_or_default();
    if let Some(at) = fields.get("consecutiveLocalOriginFailures")
        && !splits_local_origin_errors
    {
        at.warn("it counts only with `splitExternalLocalOriginErrors: true`", "add that, or remove this");
    }
    let default = OutlierDetection::default();
    let count = |key: &str| fields.get(key).and_then(|at| at.integer(0..=u32::MAX));
    let percent = |key: &str| fields.get(key).and_then(|at| at.integer(0..=100));
    let duration = |key: &str| fields.get(key).and_then(|at| at.duration());
    OutlierDetection {
        consecutive_errors: count("consecutive5xxErrors").unwrap_or(default.consecutive_errors),
        consecutive_gateway_errors: count("consecutiveGatewayErrors").unwrap_or_default(),
        splits_local_origin_errors,
        // Zero stands for the default, as in Istio, which turns only the others off so.
        consecutive_local_origin_failures: count("consecutiveLocalOriginFailures")
            .filter(|most| *most != 0)
            .unwrap_or(default.consecutive_local_origin_failures),
        http_error_statuses: fields
            .get("outlierDetectionHttpErrorCodes")
            .map(|at| error_statuses(&at))
            .unwrap_or_default(),
        interval: duration("interval").unwrap_or(default.interval),
        base_ejection_time: duration("baseEjectionTime").unwrap_or(default.base_ejection_time),
        max_ejection_percent: percent("maxEjectionPercent").unwrap_or(default.max_ejection_percent),
        min_health_percent: percent("minHealthPercent").unwrap_or(default.min_health_percent),
    }
}

fn error_statuses(at: &Cursor<'_>) -> Vec<u16> {
    let status = |at: &Cursor<'_>| at.integer(200..=599).and_then(|status| u16::try_from(status).ok());
    let mut statuses: Vec<_> = at.items().iter().filter_map(status).collect();
    statuses.sort_unstable();
    statuses.dedup();
    statuses
}
