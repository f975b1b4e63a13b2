//! What is written for the mesh and has no effect is said to have none: on the resource, by events, and by
//! meshctl.

use anyhow::{Context, Result, ensure};
use mesh_e2e::audit;
use mesh_e2e::meshctl::json;
use mesh_e2e::{Enrolled, SOON, Scope, cluster, eventually, kubectl, mesh, never_within, workload};
use serde_json::{Value, json};

const POLICY: &str = "authorizationpolicies.security.istio.io";
const RULE: &str = "destinationrules.networking.istio.io";
const ROUTES: &str = "virtualservices.networking.istio.io";

fn rule(name: &str, host: &str, policy: &Value) -> Value {
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "DestinationRule",
        "metadata": {"name": name}, "spec": {"host": host, "trafficPolicy": policy},
    })
}

fn routes(name: &str, host: &str, more: &Value) -> Value {
    let mut route = json!({"route": [{"destination": {"host": host}}]});
    for (field, value) in more.as_object().into_iter().flatten() {
        route[field] = value.clone();
    }
    json!({
        "apiVersion": "networking.istio.io/v1", "kind": "VirtualService",
        "metadata": {"name": name}, "spec": {"hosts": [host], "http": [route]},
    })
}

fn service(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": {"ports": [{"port": 80}]},
    })
}

/// Waits until a resource says that of it only so much is in force, and returns why.
fn told(scope: &Scope, kind: &str, name: &str, reason: &str) -> Result<String> {
    eventually(&format!("{kind} {name} says that it is in force: {reason}"), SOON, || {
        let object = scope.get(&[kind, name])?;
        let condition = mesh::in_force(&object)?;
        ensure!(condition["status"] == "False" && condition["reason"] == reason, "{condition}");
        ensure!(mesh::accepted(&object)?["status"] == "True", "{object}");
        condition["message"].as_str().map(str::to_owned).context("it has no message")
    })
}

fn events(scope: &Scope, reason: &str, name: &str) -> Result<Vec<Value>> {
    scope.list(&["events", &format!("--field-selector=reason={reason},involvedObject.name={name}")])
}

#[test]
fn what_has_no_effect_is_not_said_to_be_in_force() -> Result<()> {
    let scope = Scope::new("effect", Enrolled::Yes)?;
    let everybody = json!([{}]);
    let mut custom = mesh::authorization("custom", "web", "CUSTOM", &everybody);
    custom["spec"]["provider"] = json!({"name": "elsewhere"});
    let mut target = mesh::authorization("target", "web", "DENY", &everybody);
    target["spec"] = json!({"targetRefs": [{"kind": "Service", "group": "", "name": "web"}], "rules": [{}]});
    let methods = json!([{"to": [{"operation": {"methods": ["DELETE"]}}]}]);
    let half =
        json!([{"to": [{"operation": {"ports": ["80"]}}]}, {"to": [{"operation": {"paths": ["/admin"]}}]}]);
    let claims = json!([{"when": [{"key": "request.auth.claims[iss]", "values": ["x"]}]}]);
    for policy in [
        &custom,
        &target,
        &mesh::authorization("methods", "web", "DENY", &methods),
        &mesh::authorization("half", "web", "DENY", &half),
        &mesh::authorization("claims", "web", "ALLOW", &claims),
        &rule("nobody", "nobody", &json!({"loadBalancer": {"simple": "RANDOM"}})),
        // Of another host: of two rules for one, the older one counts, and these are of one second.
        &rule("warm", "nobody-else", &json!({"loadBalancer": {"warmup": {"duration": "10s"}}})),
        &service("web"),
        &routes("nobody", "nobody", &json!({})),
        &routes("near", "web", &json!({"retries": {"attempts": 1, "retryRemoteLocalities": true}})),
    ] {
        scope.apply(policy)?;
    }
    for (kind, name, reason, named) in [
        (POLICY, "custom", "No", "spec.action"),
        (POLICY, "target", "No", "spec.targetRefs"),
        (POLICY, "methods", "No", "methods is layer 7"),
        (POLICY, "half", "Partly", "rule 2 left out"),
        (POLICY, "claims", "Partly", "it allows nothing"),
        (RULE, "nobody", "No", "is no Service of the mesh"),
        (RULE, "warm", "No", "warmup"),
        (ROUTES, "nobody", "No", "is no Service of the mesh"),
        (ROUTES, "near", "Partly", "another try goes to the endpoints that a first one may go to"),
    ] {
        let message = told(&scope, kind, name, reason)?;
        ensure!(message.contains(named), "{name}: {message}");
        ensure!(message.contains("fix: "), "{name}: {message}");
    }
    let printed = scope.kubectl(&["get", POLICY])?;
    ensure!(printed.lines().any(|line| line.starts_with("methods ") && line.contains(" No ")), "{printed}");
    meshctl_says_so(&scope)?;
    one_event_for_each_change(&scope)?;

    // A Service that comes makes the rule count, and the routes.
    scope.apply(&service("nobody"))?;
    eventually("the rule and the routes are in force", SOON, || {
        for kind in [RULE, ROUTES] {
            let object = scope.get(&[kind, "nobody"])?;
            ensure!(mesh::in_force(&object)?["status"] == "True", "{object}");
        }
        Ok(())
    })
}

fn meshctl_says_so(scope: &Scope) -> Result<()> {
    let policies = json(&["policies"])?;
    let own = |name: &str| {
        let all = policies.as_array().into_iter().flatten();
        all.clone()
            .find(|it| it["namespace"] == scope.name() && it["name"] == name)
            .with_context(|| name.to_owned())
    };
    ensure!(own("custom")?["inForce"] == "no" && own("half")?["inForce"] == "partly", "{policies}");
    let findings = json(&["check"])?;
    let all = findings.as_array().context("check lists")?;
    // Others' resources may be among the twenty that are named.
    let told = all.iter().any(|it| {
        let check = it["check"].as_str().unwrap_or_default();
        it["result"] == "warn" && check.contains(&format!("{}/", scope.name())) && it["fix"].is_string()
    });
    ensure!(told, "{findings}");
    Ok(())
}

fn one_event_for_each_change(scope: &Scope) -> Result<()> {
    eventually("an event tells", SOON, || {
        ensure!(events(scope, "NotInForce", "methods")?.len() == 1, "there is none");
        Ok(())
    })?;
    never_within("it is told again", std::time::Duration::from_secs(3), || {
        let again = events(scope, "NotInForce", "methods")?;
        ensure!(again.len() > 1 || again.iter().any(|event| event["series"]["count"].is_u64()), "{again:?}");
        Ok(())
    })
}

/// Group, version, name and plural of a kind.
type Defined = (&'static str, &'static str, &'static str, &'static str);

/// The kinds that are not read, with their definitions' versions.
const UNREAD: [Defined; 11] = [
    ("networking.istio.io", "v1", "Gateway", "gateways"),
    ("networking.istio.io", "v1", "WorkloadEntry", "workloadentries"),
    ("networking.istio.io", "v1", "WorkloadGroup", "workloadgroups"),
    ("networking.istio.io", "v1", "Sidecar", "sidecars"),
    ("networking.istio.io", "v1alpha3", "EnvoyFilter", "envoyfilters"),
    ("networking.istio.io", "v1beta1", "ProxyConfig", "proxyconfigs"),
    ("security.istio.io", "v1", "RequestAuthentication", "requestauthentications"),
    ("telemetry.istio.io", "v1", "Telemetry", "telemetries"),
    ("extensions.istio.io", "v1alpha1", "WasmPlugin", "wasmplugins"),
    ("gateway.networking.k8s.io", "v1", "Gateway", "gateways"),
    ("gateway.networking.k8s.io", "v1alpha2", "TCPRoute", "tcproutes"),
];

/// Kinds that are read, and with which nothing is done yet.
const UNUSED: [Defined; 1] = [("networking.istio.io", "v1", "ServiceEntry", "serviceentries")];

/// Kinds that are used where somebody has defined them.
const WITH_PARENTS: [Defined; 3] = [
    ("gateway.networking.k8s.io", "v1", "HTTPRoute", "httproutes"),
    ("gateway.networking.k8s.io", "v1", "GRPCRoute", "grpcroutes"),
    ("gateway.networking.k8s.io", "v1", "ReferenceGrant", "referencegrants"),
];

/// Their definitions, without a schema. They go with the value.
struct Definitions(&'static [Defined]);

impl Definitions {
    fn new(kinds: &'static [Defined]) -> Result<Self> {
        let define = |(group, version, kind, plural): &Defined| {
            json!({
                "apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
                "metadata": {
                    "name": format!("{plural}.{group}"),
                    "annotations": {"api-approved.kubernetes.io": "unapproved, for a test"},
                },
                "spec": {
                    "group": group, "scope": "Namespaced",
                    "names": {"kind": kind, "plural": plural, "singular": kind.to_lowercase()},
                    "versions": [{
                        "name": version, "served": true, "storage": true, "subresources": {"status": {}},
                        "schema": {"openAPIV3Schema": {"type": "object", "x-kubernetes-preserve-unknown-fields": true}},
                    }],
                },
            })
        };
        let all: Vec<_> = kinds.iter().map(define).collect();
        kubectl::apply("default", &json!({"apiVersion": "v1", "kind": "List", "items": all}).to_string())?;
        let made = Self(kinds);
        let names = made.names();
        let wait = ["wait", "--for=condition=Established", "--timeout=60s", "customresourcedefinition"];
        kubectl::run(&[&wait[..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat())?;
        Ok(made)
    }

    fn names(&self) -> Vec<String> {
        self.0.iter().map(|(group, _, _, plural)| format!("{plural}.{group}")).collect()
    }
}

impl Drop for Definitions {
    fn drop(&mut self) {
        let names = self.names();
        let delete = ["delete", "--ignore-not-found", "customresourcedefinition"];
        let deleted =
            kubectl::run(&[&delete[..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat());
        if let Err(error) = deleted {
            eprintln!("definitions of a test stay: {error:#}");
        }
    }
}

#[test]
fn objects_of_kinds_that_are_not_read_are_told_so() -> Result<()> {
    let scope = Scope::new("unread", Enrolled::No)?;
    let _definitions = Definitions::new(&UNREAD)?;
    for (group, version, kind, _) in UNREAD {
        let name = format!("{}-{}", kind.to_lowercase(), group.split('.').next().unwrap_or_default());
        let object =
            json!({"apiVersion": format!("{group}/{version}"), "kind": kind, "metadata": {"name": name}});
        eventually("the API server serves the kind", SOON, || scope.apply(&object))?;
    }
    for (group, _, kind, _) in UNREAD {
        let name = format!("{}-{}", kind.to_lowercase(), group.split('.').next().unwrap_or_default());
        eventually(&format!("{name} is told"), SOON * 2, || {
            let told = events(&scope, "NotRead", &name)?;
            ensure!(told.len() == 1, "{told:?}");
            let note = told[0]["message"].as_str().unwrap_or_default();
            ensure!(note.contains(&format!("nodemesh reads no {kind}")), "{note}");
            Ok(())
        })?;
    }
    let findings = json(&["check"])?;
    let lines: Vec<_> =
        findings.as_array().into_iter().flatten().filter(|it| it["check"] == "other kinds").collect();
    let [line] = lines[..] else { anyhow::bail!("not one line: {findings}") };
    let detail = line["detail"].as_str().unwrap_or_default();
    for (group, _, kind, _) in UNREAD {
        ensure!(detail.contains(&format!("{kind}.{group}")), "{detail}");
    }
    Ok(())
}

#[test]
fn objects_of_kinds_that_are_not_used_yet_are_told_so_and_what_is_wrong_in_them() -> Result<()> {
    let scope = Scope::new("unused", Enrolled::No)?;
    let _definitions = Definitions::new(&UNUSED)?;
    let entry = |name: &str, spec: &Value| {
        json!({
            "apiVersion": "networking.istio.io/v1", "kind": "ServiceEntry",
            "metadata": {"name": name}, "spec": spec,
        })
    };
    let good = entry("bank", &json!({"hosts": ["bank.example"], "ports": [{"number": 443, "name": "tls"}]}));
    eventually("the API server serves the kind", SOON, || scope.apply(&good))?;
    let message = told(&scope, "serviceentries.networking.istio.io", "bank", "No")?;
    ensure!(message.contains("ServiceEntry is not used yet"), "{message}");
    eventually("an event tells", SOON, || {
        ensure!(events(&scope, "NotInForce", "bank")?.len() == 1, "there is none");
        Ok(())
    })?;
    ensure!(events(&scope, "NotRead", "bank")?.is_empty(), "it is read");
    scope.apply(&entry("broken", &json!({"host": "bank.example"})))?;
    eventually("what is wrong is said", SOON, || {
        let object = scope.get(&["serviceentries.networking.istio.io", "broken"])?;
        let condition = mesh::accepted(&object)?;
        let message = condition["message"].as_str().unwrap_or_default();
        ensure!(condition["status"] == "False" && message.contains("did you mean `hosts`?"), "{condition}");
        Ok(())
    })?;
    Ok(())
}

#[test]
fn a_route_says_of_each_service_among_its_parents_what_became_of_it() -> Result<()> {
    let scope = Scope::new("parents", Enrolled::No)?;
    let _definitions = Definitions::new(&WITH_PARENTS)?;
    let service = |name: &str| json!({"group": "", "kind": "Service", "name": name});
    let gateway = json!({"group": "gateway.networking.k8s.io", "kind": "Gateway", "name": "edge"});
    let route = |parents: &[Value]| {
        json!({
            "apiVersion": "gateway.networking.k8s.io/v1", "kind": "HTTPRoute", "metadata": {"name": "web"},
            "spec": {"parentRefs": parents, "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]},
        })
    };
    let ports = json!({"ports": [{"name": "http", "port": 80}]});
    scope
        .apply(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "web"}, "spec": ports}))?;
    let all = route(&[gateway.clone(), service("web"), service("nobody")]);
    eventually("the API server serves the kind", SOON, || scope.apply(&all))?;
    let accepted = || -> Result<Vec<(String, bool)>> {
        let object = scope.get(&["httproutes.gateway.networking.k8s.io", "web"])?;
        let parents = object["status"]["parents"].as_array().cloned().unwrap_or_default();
        let is_accepted = |it: &Value| it["type"] == "Accepted" && it["status"] == "True";
        let of = |parent: &Value| {
            let conditions = parent["conditions"].as_array();
            let name = parent["parentRef"]["name"].as_str().unwrap_or_default().to_owned();
            (name, conditions.is_some_and(|conditions| conditions.iter().any(is_accepted)))
        };
        Ok(parents.iter().map(of).collect())
    };
    eventually("each Service has its conditions, and the Gateway none", SOON, || {
        let told = accepted()?;
        ensure!(told == [("web".to_owned(), true), ("nobody".to_owned(), false)], "{told:?}");
        Ok(())
    })?;
    let calls = json!({
        "apiVersion": "gateway.networking.k8s.io/v1", "kind": "GRPCRoute", "metadata": {"name": "calls"},
        "spec": {"parentRefs": [service("web")], "rules": [{"backendRefs": [{"name": "web", "port": 80}]}]},
    });
    eventually("the API server serves the kind", SOON, || scope.apply(&calls))?;
    eventually("a route of calls has its conditions", SOON, || {
        let object = scope.get(&["grpcroutes.gateway.networking.k8s.io", "calls"])?;
        let parents = object["status"]["parents"].as_array().map_or(0, Vec::len);
        ensure!(parents == 1, "{object}");
        Ok(())
    })?;
    if cluster::is_local() {
        // Nothing is told of a grant, so only the API server knows.
        eventually("grants are followed", SOON, || {
            let requests = audit::requests()?;
            let mut of_grants = requests.iter().filter(|request| request.resource == "referencegrants");
            ensure!(of_grants.any(|request| request.verb == "watch"), "nobody watches them");
            Ok(())
        })?;
    }
    scope.apply(&route(&[gateway]))?;
    eventually("nothing is said of what is no parent any more", SOON, || {
        let told = accepted()?;
        ensure!(told.is_empty(), "{told:?}");
        Ok(())
    })
}

/// Addresses of documentation (RFC 5737), which lead nowhere.
const EXTERNAL: &str = "192.0.2.7";
const BALANCER: &str = "192.0.2.8";
const HOST_PORT: u16 = 18_080;

/// A Service with addresses that are not the mesh's, in a namespace of the mesh, and a pod with a port of its
/// node.
fn ways_past() -> Result<Scope> {
    let [node, _] = cluster::nodes()?;
    let scope = Scope::new("past", Enrolled::Yes)?;
    let mut open = workload::pod_spec("default", Some(&node), &["sleep", "infinity"]);
    open["containers"][0]["ports"] = json!([{"containerPort": 8080, "hostPort": HOST_PORT}]);
    let outside =
        json!({"type": "LoadBalancer", "externalIPs": [EXTERNAL], "allocateLoadBalancerNodePorts": false});
    scope.apply(&workload::list(&[
        workload::pod("open", &open),
        workload::service("open", &outside),
        workload::client("client", Some(&node)),
    ]))?;
    let ingress = json!({"status": {"loadBalancer": {"ingress": [{"ip": BALANCER}]}}}).to_string();
    scope.kubectl(&[
        "patch",
        "service",
        "open",
        "--subresource=status",
        "--type=merge",
        "--patch",
        &ingress,
    ])?;
    scope.ready()?;
    Ok(scope)
}

#[test]
fn what_goes_past_the_mesh_is_told_so() -> Result<()> {
    let scope = ways_past()?;
    for (kind, named) in [("Service", &[EXTERNAL, BALANCER][..]), ("Pod", &["port 18080 of its node"])] {
        let told = || {
            let found = events(&scope, "PastTheMesh", "open")?;
            let of_kind = found.into_iter().filter(|it| it["involvedObject"]["kind"] == kind);
            anyhow::Ok(of_kind.collect::<Vec<_>>())
        };
        eventually(&format!("an event of the {kind} tells"), SOON, || {
            let found = told()?;
            // Of the Service there may be one from before its load balancer had an address.
            let last = found.iter().rfind(|event| {
                let note = event["message"].as_str().unwrap_or_default();
                named.iter().all(|named| note.contains(named)) && note.contains("in plaintext")
            });
            ensure!(last.is_some() && found.len() <= named.len(), "{found:?}");
            Ok(())
        })?;
        let count = told()?.len();
        never_within("it is told again", std::time::Duration::from_secs(3), || {
            ensure!(told()?.len() > count, "no");
            Ok(())
        })?;
        let findings = json(&["check"])?;
        let of_kind = format!("of kind {kind} can be reached past the mesh");
        let line = findings.as_array().into_iter().flatten().find(|it| {
            it["check"] == "past the mesh" && it["detail"].as_str().is_some_and(|it| it.contains(&of_kind))
        });
        let detail = line.context("check has no line")?["detail"].as_str().unwrap_or_default();
        ensure!(detail.contains(&format!("{}/open", scope.name())), "{findings}");
    }
    why_says_whose_they_are(&scope)
}

fn why_says_whose_they_are(scope: &Scope) -> Result<()> {
    let pod = scope.get(&["pod", "open"])?;
    let node = pod["status"]["hostIP"].as_str().context("the pod has a node")?;
    let client = format!("{}/client", scope.name());
    for (address, whose) in [
        (format!("{EXTERNAL}:80"), "an external address of Service"),
        (format!("{BALANCER}:80"), "the load balancer's address of Service"),
        (format!("{node}:{HOST_PORT}"), "of Pod"),
    ] {
        let explained = json(&["why", &client, &address])?;
        let note = explained["routes"][0]["note"].as_str().unwrap_or_default();
        let named = note.contains(whose) && note.contains(&format!("{}/open", scope.name()));
        ensure!(note.contains("past the mesh") && named, "{explained}");
    }
    Ok(())
}
