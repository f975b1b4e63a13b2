//! The chart and every manifest below `deploy/`, looked at by helm and by the API server. Nothing of it is
//! installed.
#![expect(clippy::unwrap_used, reason = "what helps a test may panic as the test may")]

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use mesh_api::kind::{Kind, KnownKind, Treatment};
use mesh_api::manifest::ManifestError;
use serde_json::{Value, json};

/// Values that turn something on or off; what a user may give should be accepted together with all defaults.
const SWITCHES: &[&[&str]] = &[
    &[],
    &["crds.install=false"],
    &["networkPolicy.enabled=true", "networkPolicy.metricsFrom[0].podSelector.matchLabels.app=prometheus"],
    &["trustBundle.scope=all"],
    &["caSecret=own-authority", "control.replicas=1"],
    &["image.registry=registry.example:5000/mesh", "image.tag=1.2.3", "image.pullSecrets[0].name=key"],
    &["agent.cgroupRoot=/sys/fs/cgroup/unified/$(NODE_NAME)", "agent.bpfRoot=/sys/fs/bpf/one/$(NODE_NAME)"],
    &["agent.workers=2", "agent.extraArgs[0]=--metrics=[::]:15020", "agent.maxSurge=10%"],
    &["monitoringNamespace=", "agent.metrics.allow[0]=10.0.0.0/8", "control.metrics.allow[0]=observers"],
    &[
        "agent.cni.enabled=false",
        "control.removeStartupTaint=false",
        "control.tolerations[0].operator=Exists",
    ],
    &["agent.cni.binDir=/home/kubernetes/bin", "agent.cni.confDir=/var/lib/cni/net.d"],
    &["agent.appArmorProfile=null", "agent.seLinuxOptions=null", "agent.accessLog=off"],
];

/// Agents under istiod, without a control plane of ours.
const ISTIOD: &[&str] = &[
    "control.enabled=false",
    "agent.controlPlane.address=https://istiod.istio-system.svc:15012",
    "agent.controlPlane.name=istiod.istio-system.svc",
    "agent.controlPlane.rootConfigMap=istio-ca-root-cert",
    "agent.controlPlane.tokenAudience=istio-ca",
    "clusterId=cluster-1",
    "trustDomain=td.example",
];

#[test]
fn the_chart_has_no_lint() {
    for values in SWITCHES {
        helm(&["lint", "--strict"], values).unwrap();
    }
}

#[test]
fn the_api_server_accepts_the_chart_with_every_switch() {
    let namespace = Namespace::new("chart-switches");
    for values in SWITCHES {
        let manifests = render(&namespace.0, values).unwrap();
        apply_dry(&manifests).unwrap_or_else(|error| panic!("{values:?}: {error}"));
    }
}

#[test]
fn monitors_come_with_their_switch_only() {
    let monitors = |values: &[&str]| {
        let manifests = render("elsewhere", values).unwrap();
        ["kind: ServiceMonitor", "kind: PodMonitor"].map(|kind| manifests.matches(kind).count())
    };
    assert_eq!(monitors(&[]), [0, 0]);
    assert_eq!(
        monitors(&["serviceMonitor.enabled=true", "serviceMonitor.labels.release=prometheus"]),
        [1, 1]
    );
}

#[test]
fn values_that_are_none_are_refused() {
    for (value, named) in [
        ("agent.logLevl=debug", "logLevl"),
        ("control.replicas=0", "/control/replicas"),
        ("agent.accessLog=yes", "/agent/accessLog"),
        ("agent.metrics.allow[0]=10_0", "/agent/metrics/allow/0"),
        ("image.pullPolicy=Sometimes", "/image/pullPolicy"),
        ("agent.cgroupRoot=/proc", "/agent/cgroupRoot"),
        ("agent.bpfRoot=/tmp/bpf", "/agent/bpfRoot"),
        ("agent.cni.binDir=opt", "/agent/cni/binDir"),
        ("agent.controlPlane.address=http://istiod:15012", "/agent/controlPlane/address"),
        ("agent.cni.enabled=maybe", "/agent/cni/enabled"),
        ("trustBundle.scope=some", "/trustBundle/scope"),
        ("unheard.of=1", "unheard"),
    ] {
        let error = render("elsewhere", &[value]).unwrap_err();
        assert!(error.contains(named), "{value}: {error}");
    }
}

#[test]
fn the_chart_goes_to_the_namespace_of_its_release() {
    let manifests =
        render("elsewhere", &["networkPolicy.enabled=true", "serviceMonitor.enabled=true"]).unwrap();
    assert!(!manifests.contains("nodemesh-system"), "a namespace is written into the chart");
    assert!(manifests.contains("https://mesh-control.elsewhere.svc:15012"));
    let elsewhere = manifests.matches("\n  namespace: elsewhere\n").count();
    assert!(elsewhere > 10, "only {elsewhere} objects are in the release's namespace");
}

#[test]
fn agents_may_have_istiod_for_their_control_plane() {
    helm(&["lint", "--strict", "--namespace", "nodemesh-system"], ISTIOD).unwrap();
    let manifests = render("nodemesh-system", ISTIOD).unwrap();
    for said in [
        "--control=https://istiod.istio-system.svc:15012\n",
        "--control-name=istiod.istio-system.svc\n",
        "--cluster-id=cluster-1\n",
        "--trust-domain=td.example\n",
        "name: istio-ca-root-cert\n",
        "audience: istio-ca\n",
    ] {
        assert_eq!(manifests.matches(said).count(), 1, "{said}");
    }
    assert!(!manifests.contains("mesh-control\n"), "a control plane of ours is left");
    let ours = render("nodemesh-system", &[]).unwrap();
    for said in [
        "--control=https://mesh-control.nodemesh-system.svc:15012\n",
        "--control-name=mesh-control\n",
        "name: nodemesh-root-cert\n",
        "audience: nodemesh\n",
    ] {
        assert_eq!(ours.matches(said).count(), 1, "{said}");
    }
}

/// istiod takes an agent for one of the namespace of its token.
#[test]
fn agents_without_a_control_plane_they_can_have_are_no_release() {
    let error = render("nodemesh-system", &["control.enabled=false"]).unwrap_err();
    assert!(error.contains("agent.controlPlane.address: control.enabled is false"), "{error}");
    let error = render("elsewhere", ISTIOD).unwrap_err();
    assert!(error.contains("install the release there"), "{error}");
}

/// RBAC alone would let it write any pod's status.
#[test]
fn what_an_agent_writes_of_pods_is_held_to_one_annotation_in_its_releases_namespace() {
    let manifests = render("elsewhere", &[]).unwrap();
    assert!(manifests.contains("resources: [pods/status]\n    verbs: [patch]"));
    assert!(manifests.contains(r#"== "system:serviceaccount:elsewhere:mesh-agent""#));
    assert_eq!(manifests.matches("policyName: nodemesh-agent").count(), 1);
}

#[test]
fn the_agent_has_four_capabilities_and_is_not_privileged() {
    let manifests = render("elsewhere", &[]).unwrap();
    assert!(!manifests.contains("privileged: true"));
    let added: BTreeSet<_> = manifests.lines().filter_map(|line| line.trim().strip_prefix("add: ")).collect();
    assert_eq!(added, ["[BPF, NET_ADMIN, NET_RAW, SYS_ADMIN, SYS_PTRACE]"].into());
    let dropped = manifests.matches("drop: [ALL]").count();
    assert_eq!(dropped, manifests.matches("\n          image: ").count(), "a container keeps capabilities");
    assert_eq!(dropped, manifests.matches("readOnlyRootFilesystem: true").count());
}

#[test]
fn the_cni_plugin_is_installed_before_the_agent_starts_and_taken_away_by_its_switch() {
    let on = render("elsewhere", &["agent.cni.binDir=/home/kubernetes/bin"]).unwrap();
    let (before, agent) = on.split_once("\n      containers:\n        - name: mesh-agent\n").unwrap();
    assert!(before.contains("- install-cni\n") && before.contains("--cni-bin-dir=/home/kubernetes/bin\n"));
    assert!(agent.contains("--cni-state-dir=/var/lib/nodemesh\n"));
    assert!(on.contains("path: /home/kubernetes/bin\n") && on.contains("path: /etc/cni/net.d\n"));
    let off = render("elsewhere", &["agent.cni.enabled=false"]).unwrap();
    assert!(
        off.contains("args: [remove-cni]")
            && !off.contains("install-cni")
            && !off.contains("--cni-state-dir")
    );
}

#[test]
fn the_startup_taint_keeps_no_part_of_the_mesh_away_and_may_be_left_to_others() {
    let on = render("elsewhere", &[]).unwrap();
    assert!(
        on.contains("- key: nodemesh.io/agent-not-ready\n          operator: Exists"),
        "the control plane"
    );
    assert!(on.contains("tolerations:\n        - operator: Exists"), "the agent");
    assert!(on.contains("--remove-startup-taint=true"));
    let may_patch = |manifests: &str| manifests.contains("resources: [nodes]\n    verbs: [patch]");
    assert!(may_patch(&on));
    let off = render("elsewhere", &["control.removeStartupTaint=false"]).unwrap();
    assert!(!may_patch(&off) && off.contains("--remove-startup-taint=false"));
}

#[test]
fn every_value_is_in_the_documentation() {
    let schema = fs::read_to_string(chart().join("values.schema.json")).unwrap();
    let documented = fs::read_to_string(root().join("docs/install.md")).unwrap();
    let mut values = Vec::new();
    leaves(&serde_json::from_str(&schema).unwrap(), "", &mut values);
    assert!(values.len() > 30, "{values:?}");
    let missing: Vec<_> = values.iter().filter(|value| !documented.contains(&format!("`{value}`"))).collect();
    assert!(missing.is_empty(), "docs/install.md does not tell of {missing:?}");
}

/// Dotted paths of the properties that have none themselves.
fn leaves(schema: &Value, path: &str, found: &mut Vec<String>) {
    match schema["properties"].as_object() {
        None => found.push(path.into()),
        Some(properties) => {
            for (name, value) in properties.iter().filter(|(name, _)| *name != "global") {
                leaves(value, format!("{path}.{name}").trim_start_matches('.'), found);
            }
        }
    }
}

#[test]
fn the_values_for_kind_are_values_of_the_chart() {
    let values = root().join("deploy/kind/values.yaml");
    let manifests = render("elsewhere", &[]).unwrap();
    let kind = run(Command::new("helm").args(["lint", "--values"]).arg(values).arg(chart()));
    kind.unwrap();
    assert!(
        manifests.contains("path: /sys/fs/bpf\n"),
        "kind's nodes get the machine's BPF file system there"
    );
}

#[test]
fn the_api_server_accepts_the_name_server_of_the_local_cluster() {
    apply_dry(&fs::read_to_string(root().join("deploy/cluster/coredns.yaml")).unwrap()).unwrap();
}

#[test]
fn the_api_server_accepts_the_samples() {
    ensure_definitions();
    for (sample, parts) in
        [("demo", &["demo"][..]), ("shop", &["shop"]), ("bookstore", &["bookstore", "bookstore-policies"])]
    {
        let _namespace = Namespace::of_sample(sample);
        for part in parts {
            let directory = root().join("deploy/samples").join(part);
            let applied =
                run(Command::new("kubectl").args(["apply", "--dry-run=server", "-f"]).arg(directory));
            applied.unwrap_or_else(|error| panic!("{part}: {error}"));
        }
    }
}

#[test]
fn the_api_server_knows_every_version_of_the_definitions() {
    ensure_definitions();
    for (group, versions, kind, spec) in [
        (
            "security.istio.io",
            &["v1", "v1beta1"][..],
            "AuthorizationPolicy",
            r#"{"action": "DENY", "selector": {"matchLabels": {"app": "web"}}, "rules": [{
                "from": [{"source": {"principals": ["*/sa/web"], "notIpBlocks": ["10.0.0.0/8"]}}],
                "to": [{"operation": {"ports": ["80"], "notPaths": ["/x"]}}],
                "when": [{"key": "source.ip", "notValues": ["1.2.3.4"]}]}]}"#,
        ),
        (
            "security.istio.io",
            &["v1", "v1beta1"],
            "PeerAuthentication",
            r#"{"selector": {"matchLabels": {"app": "web"}}, "mtls": {"mode": "STRICT"},
                "portLevelMtls": {"8080": {"mode": "PERMISSIVE"}}}"#,
        ),
        (
            "networking.istio.io",
            &["v1", "v1beta1", "v1alpha3"],
            "DestinationRule",
            r#"{"host": "web", "exportTo": ["."], "trafficPolicy": {
                "loadBalancer": {"simple": "ROUND_ROBIN", "localityLbSetting": {"enabled": true}},
                "connectionPool": {"tcp": {"connectTimeout": "1s", "tcpKeepalive": {"time": "2h"}}},
                "outlierDetection": {"consecutive5xxErrors": 7, "baseEjectionTime": "15m"},
                "portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "ISTIO_MUTUAL"}}]},
                "subsets": [{"name": "v1", "labels": {"version": "v1"}}]}"#,
        ),
        (
            "networking.istio.io",
            &["v1", "v1beta1", "v1alpha3"],
            "VirtualService",
            r#"{"hosts": ["web"], "gateways": ["mesh", "edge"], "exportTo": ["."], "http": [
                {"match": [{"uri": {"prefix": "/a"}, "headers": {"x-a": {"exact": "1"}, "cookie": {}}, "port": 80}],
                 "route": [{"destination": {"host": "web", "subset": "v1", "port": {"number": 80}}, "weight": 90},
                           {"destination": {"host": "web"}, "weight": 10, "headers": {"request": {"set": {"a": "b"}}}}],
                 "rewrite": {"uri": "/b"}, "timeout": "2.5s", "retries": {"attempts": 2, "perTryTimeout": "500ms"},
                 "fault": {"delay": {"fixedDelay": "1s", "percentage": {"value": 0.1}}},
                 "corsPolicy": {"allowOrigins": [{"exact": "https://a.example"}], "maxAge": "24h"}},
                {"redirect": {"uri": "/", "redirectCode": 308, "derivePort": "FROM_REQUEST_PORT"}}],
                "tls": [{"match": [{"sniHosts": ["web"], "port": 443}], "route": [{"destination": {"host": "web"}}]}],
                "tcp": [{"match": [{"sourceLabels": {"app": "a"}}], "route": [{"destination": {"host": "web"}}]}]}"#,
        ),
    ] {
        for version in versions {
            apply_dry(&object(&format!("{group}/{version}"), kind, spec)).unwrap();
        }
    }
}

#[test]
fn the_definitions_refuse_what_can_mean_nothing() {
    ensure_definitions();
    for (api_version, kind, spec, why) in [
        (
            "security.istio.io/v1",
            "PeerAuthentication",
            r#"{"portLevelMtls": {"80": {"mode": "STRICT"}}}"#,
            "portLevelMtls needs a selector",
        ),
        (
            "security.istio.io/v1",
            "PeerAuthentication",
            r#"{"mtls": {"mode": "SOMETIMES"}}"#,
            "spec.mtls.mode: Unsupported value",
        ),
        (
            "security.istio.io/v1",
            "AuthorizationPolicy",
            r#"{"selector": {"matchLabels": {"a": "b"}}, "targetRefs": [{"kind": "Service", "name": "x"}]}"#,
            "only one of selector, targetRef and targetRefs",
        ),
        ("security.istio.io/v1", "AuthorizationPolicy", r#"{"rulez": []}"#, "unknown field"),
        ("networking.istio.io/v1", "DestinationRule", "{}", "spec.host: Required value"),
        (
            "networking.istio.io/v1",
            "DestinationRule",
            r#"{"host": "a", "trafficPolicy": {"connectionPool": {"tcp": {"connectTimeout": "1us"}}}}"#,
            "a duration is at least 1ms",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            r#"{"hosts": ["a"], "http": [{"route": [{"destination": {"subset": "v1"}}]}]}"#,
            "host: Required value",
        ),
        (
            "networking.istio.io/v1",
            "VirtualService",
            r#"{"http": [{"match": [{"uri": {"exact": "/", "prefix": "/"}}]}]}"#,
            "uri: Too many: 2",
        ),
        ("networking.istio.io/v1", "VirtualService", r#"{"host": "a"}"#, "unknown field"),
    ] {
        let error = apply_dry(&object(api_version, kind, spec)).unwrap_err();
        assert!(error.contains(why), "{spec}: {error}");
    }
}

/// What a definition lacks the API server takes away, without a word, before the mesh can read it.
#[test]
fn the_definitions_have_the_fields_that_are_read() {
    ensure_definitions();
    let mut compared = 0;
    for kind in Kind::with_treatment(Treatment::Used) {
        let known = kind.table_row();
        let definition = run(Command::new("kubectl").args(["get", "crd", "-o", "json", &known.crd_name()]));
        let definition: Value = serde_json::from_str(&definition.unwrap()).unwrap();
        for version in definition["spec"]["versions"].as_array().unwrap() {
            let schema = &version["schema"]["openAPIV3Schema"]["properties"]["spec"];
            compared += compare_fields(known, schema, &|spec| spec);
        }
    }
    assert!(
        compared > 120,
        "fields were compared in {compared} places only: the readers said nothing of them"
    );
}

/// Compares the fields of `schema` and of what is in it with those that the reader names when it finds one
/// that it does not know, in an object whose `spec` is made by `spec_of`. Returns in how many places.
fn compare_fields(known: &KnownKind, schema: &Value, spec_of: &dyn Fn(Value) -> Value) -> usize {
    if let Some(items) = schema.get("items") {
        return compare_fields(known, items, &|item| spec_of(json!([item])));
    }
    if let Some(values) = schema.get("additionalProperties") {
        return compare_fields(known, values, &|value| spec_of(json!({ "80": value })));
    }
    let Some(properties) = schema["properties"].as_object() else { return 0 };
    // Without what it has to have a reader may look no further.
    let whole = |name: &str, value: Value| {
        let required = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
        let mut object: serde_json::Map<_, _> =
            required.map(|field| (field.to_owned(), json!("a"))).collect();
        object.insert(name.to_owned(), value);
        spec_of(Value::Object(object))
    };
    let mut compared = 0;
    if let Some(read) = fields_that_are_read(known, &whole) {
        let defined: BTreeSet<String> = properties.keys().cloned().collect();
        assert_eq!(defined, read, "{} at {}: the chart, and the reader", known.name, spec_of(json!("here")));
        compared = 1;
    }
    for (name, schema) in properties {
        compared += compare_fields(known, schema, &|value| whole(name, value));
    }
    compared
}

/// The fields that the reader names; none where it does not look, since they have no effect.
fn fields_that_are_read(
    known: &KnownKind,
    spec_with: &dyn Fn(&str, Value) -> Value,
) -> Option<BTreeSet<String>> {
    const UNKNOWN: &str = "nothingThatAnybodyWouldCallAField";
    let object = json!({
        "apiVersion": known.api_versions[0],
        "kind": known.name,
        "metadata": { "name": "chart-test", "namespace": "default" },
        "spec": spec_with(UNKNOWN, json!(1)),
    });
    let parsed = mesh_api::manifest::parse_json_object("chart", object);
    let is_of_it = |error: &&ManifestError| error.field.as_ref().is_some_and(|at| at.ends_with(UNKNOWN));
    let error = parsed.errors.iter().find(is_of_it)?;
    let (_, fields) = error.fix.split_once("the fields here are ").unwrap_or_else(|| panic!("{error}"));
    Some(fields.split(", ").map(|field| field.trim_matches('`').to_owned()).collect())
}

fn object(api_version: &str, kind: &str, spec: &str) -> String {
    format!(
        r#"{{"apiVersion": "{api_version}", "kind": "{kind}", "spec": {spec},
            "metadata": {{"name": "chart-test", "namespace": "default"}}}}"#
    )
}

/// Where the mesh is not installed, the definitions alone; they stay, as they do when it is uninstalled.
fn ensure_definitions() {
    let known = run(Command::new("kubectl").args(["get", "crd", "destinationrules.networking.istio.io"]));
    if known.is_ok() {
        return;
    }
    let manifests = render("nodemesh-system", &[]).unwrap();
    let definitions: Vec<_> = manifests
        .split("\n---")
        .filter(|document| document.contains("\nkind: CustomResourceDefinition\n"))
        // So that a release takes them for its own.
        .map(|document| {
            document.replace(
                "  annotations:\n",
                "  annotations:\n    meta.helm.sh/release-name: nodemesh\n    meta.helm.sh/release-namespace: nodemesh-system\n",
            )
        })
        .collect();
    assert_eq!(definitions.len(), 4);
    feed(Command::new("kubectl").args(["apply", "-f", "-"]), &definitions.join("\n---\n")).unwrap();
    let established = ["wait", "--for=condition=Established", "--timeout=30s", "crd", "--all"];
    run(Command::new("kubectl").args(established)).unwrap();
}

/// A namespace that goes away with its test.
struct Namespace(String);

impl Namespace {
    fn new(name: &str) -> Self {
        run(Command::new("kubectl").args(["create", "namespace", name])).unwrap();
        Self(name.into())
    }

    /// With the sample's service accounts, without which even a rehearsal takes no pod.
    fn of_sample(sample: &str) -> Self {
        let directory = root().join("deploy/samples").join(sample);
        run(Command::new("kubectl").args(["apply", "-f"]).arg(directory.join("0-namespace.yaml"))).unwrap();
        let namespace = Self(sample.into());
        let clients = fs::read_to_string(directory.join("clients.yaml")).unwrap();
        for account in clients.lines().filter_map(|line| line.strip_prefix("  serviceAccountName: ")) {
            run(Command::new("kubectl").args(["create", "serviceaccount", account, "-n", sample])).unwrap();
        }
        namespace
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let deleted = run(Command::new("kubectl").args(["delete", "namespace", &self.0]));
        if let Err(error) = deleted {
            eprintln!("namespace {} stays: {error}", self.0);
        }
    }
}

/// Its tokens would not say of which node an agent is, so no agent could write to its pods; and `meshctl
/// install` renders for the version of the cluster.
#[test]
fn an_api_server_that_is_too_old_is_refused() {
    let of = |version: &str| helm(&["template", "nodemesh", "--kube-version", version], &[]);
    let refused = of("v1.29.9").unwrap_err();
    assert!(refused.contains("kubeVersion") && refused.contains("v1.29.9"), "{refused}");
    of("v1.30.0").unwrap();
}

/// The chart's manifests for a release in `namespace`, for the version of the cluster.
fn render(namespace: &str, values: &[&str]) -> Result<String, String> {
    let versions = run(Command::new("kubectl").args(["version", "--output=json"]))?;
    let versions: Value = serde_json::from_str(&versions).map_err(|error| error.to_string())?;
    let version = versions["serverVersion"]["gitVersion"].as_str().ok_or("the server has no version")?;
    helm(&["template", "nodemesh", "--namespace", namespace, "--kube-version", version], values)
}

fn helm(arguments: &[&str], values: &[&str]) -> Result<String, String> {
    let mut helm = Command::new("helm");
    helm.args(arguments).arg(chart());
    for value in values {
        helm.args(["--set", value]);
    }
    run(&mut helm)
}

fn apply_dry(manifests: &str) -> Result<String, String> {
    feed(Command::new("kubectl").args(["apply", "--dry-run=server", "-f", "-"]), manifests)
}

fn run(command: &mut Command) -> Result<String, String> {
    said(command.stdin(Stdio::null()).output().unwrap())
}

fn feed(command: &mut Command, input: &str) -> Result<String, String> {
    let piped = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = piped.spawn().unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    said(child.wait_with_output().unwrap())
}

fn said(output: Output) -> Result<String, String> {
    let said = String::from_utf8(output.stdout).unwrap();
    if output.status.success() {
        Ok(said)
    } else {
        Err(format!("{said}{}", String::from_utf8_lossy(&output.stderr)))
    }
}

fn chart() -> PathBuf {
    root().join("deploy/helm/nodemesh")
}

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}
