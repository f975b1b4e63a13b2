use mesh_api::admin::{
    EnrolmentState, InForce, PodLinkStatus, PodStatus, ResourceReport, ResourceStatus, UnenforcedPart,
};
use mesh_api::compile::{self, MeshConfig};
use mesh_api::manifest;
use mesh_api::plan::{Store, WaypointHandling};
use mesh_api::wire::workload::{GatewayAddress, address};
use mesh_api::wire::{type_url, xds::Resource};
use prost::Message;
use prost_types::Any;

use super::*;
use crate::why::{remarks, show};

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {nodemesh.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop}
spec: {nodeName: node1, serviceAccountName: client}
status: {podIP: 10.244.1.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: outsider, namespace: shop, labels: {nodemesh.io/dataplane: disabled}}
spec: {nodeName: node1}
status: {podIP: 10.244.1.9, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, serviceAccountName: web}
status: {podIP: 10.244.1.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {nodeName: node2, serviceAccountName: web}
status: {podIP: 10.244.2.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, selector: {app: web}, ports: [{port: 80, targetPort: 8080}]}
---
apiVersion: v1
kind: Service
metadata: {name: each, namespace: shop}
spec: {clusterIP: None, selector: {app: web}, ports: [{port: 8080}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: clients, namespace: shop}
spec:
  selector: {matchLabels: {app: web}}
  rules: [{from: [{source: {principals: [cluster.local/ns/shop/sa/client]}}]}]
";

fn resource(type_url: &str, name: &str, content: &impl Message) -> Resource {
    Resource {
        name: name.to_owned(),
        resource: Some(Any { type_url: type_url.to_owned(), value: content.encode_to_vec() }),
        ..Resource::default()
    }
}

fn compiled(text: &str) -> compile::Compiled {
    let parsed = manifest::parse("shop.yaml", text);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    compile::compile(parsed.objects.into_iter().map(Arc::new), &MeshConfig::default())
}

fn shop() -> Snapshot {
    snapshot(SHOP)
}

fn snapshot(text: &str) -> Snapshot {
    taken(&compiled(text), WaypointHandling::default())
}

/// What an agent makes of it.
fn taken(compiled: &compile::Compiled, waypoints: WaypointHandling) -> Snapshot {
    let mut store = Store::default().with_waypoint_handling(waypoints);
    let addresses = compiled.addresses.iter().map(|(name, it)| resource(type_url::ADDRESS, name, it));
    assert_eq!(store.apply_response(type_url::ADDRESS, addresses.collect(), Vec::new()), []);
    let policies =
        compiled.authorizations.iter().map(|(name, it)| resource(type_url::AUTHORIZATION, name, it));
    assert_eq!(store.apply_response(type_url::AUTHORIZATION, policies.collect(), Vec::new()), []);
    store.snapshot()
}

/// A node with this setting, where the pod `client` has a link of its own.
fn node(setting: &str, client: &str) -> Agent {
    let pod = |name: &str, way: &str| PodStatus {
        uid: String::new(),
        namespace: "shop".to_owned(),
        name: name.to_owned(),
        state: EnrolmentState::Enrolled,
        reason: None,
        netns: Some(7),
        link: Some(PodLinkStatus {
            way: way.to_owned(),
            obstacle: (way != "veth").then(|| "its traffic is shaped".to_owned()),
        }),
        strict_egress: None,
    };
    let same_node = SameNode::new(setting.to_owned(), vec![pod("client", client), pod("web-1", "veth")]);
    Agent { same_node, ..Agent::default() }
}

fn asked(from: &str, to: &str) -> Explanation {
    let snapshot = shop();
    let client = snapshot.workloads().find(|workload| &*workload.name == from).unwrap();
    explain(&snapshot, &client, &to.parse().unwrap(), &node("auto", "veth")).unwrap()
}

#[test]
fn says_for_each_endpoint_how_it_is_reached_and_why_it_is_let_in() {
    let explanation = asked("client", "web:80");
    assert!(explanation.is_taken());
    assert_eq!(
        show::text(&explanation),
        "\
shop/client on node1, as spiffe://cluster.local/ns/shop/sa/client
  to web:80 at 10.96.0.1:80, service shop/web.shop.svc.cluster.local, default balancing over 2 endpoints
    shop/web-1 at 10.244.1.2:8080 on node1, on the same node, from veth to veth, not encrypted
      allowed by policy shop/clients (ALLOW)
    shop/web-2 at 10.244.2.2:8080 on node2, over mutual TLS with spiffe://cluster.local/ns/shop/sa/web
      allowed by policy shop/clients (ALLOW)
"
    );
}

#[test]
fn a_client_without_the_mesh_has_no_identity_and_is_denied() {
    let explanation = asked("outsider", "web:80");
    assert!(!explanation.is_taken());
    let endpoint = &explanation.routes[0].endpoints[0];
    assert_eq!((endpoint.transport, endpoint.client_identity.as_deref()), ("plain", None));
    assert_eq!(
        endpoint.reason,
        "denied: no ALLOW policy matches plaintext from 10.244.1.9 to port 8080 (1 applies: shop/clients)"
    );
}

#[test]
fn a_workload_without_the_mesh_asks_no_policy() {
    let explanation = asked("client", "10.244.1.9:80");
    assert!(explanation.is_taken());
    assert_eq!(explanation.routes[0].endpoints[0].transport, "plain");
}

#[test]
fn a_headless_name_leads_to_each_of_its_workloads() {
    let explanation = asked("client", "each:8080");
    let ends: Vec<_> = explanation.routes.iter().map(|way| way.endpoints[0].workload.as_str()).collect();
    assert_eq!(ends, ["shop/web-1", "shop/web-2"]);
}

#[test]
fn a_service_of_both_families_is_explained_for_both() {
    let both = "\
---
apiVersion: v1
kind: Pod
metadata: {name: dual, namespace: shop, labels: {app: dual}}
spec: {nodeName: node2}
status: {podIP: 10.244.2.7, podIPs: [{ip: 10.244.2.7}, {ip: 'fd00:2::7'}], conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Service
metadata: {name: dual, namespace: shop}
spec: {clusterIP: 10.96.0.7, clusterIPs: [10.96.0.7, 'fd00::7'], selector: {app: dual}, ports: [{port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: each-dual, namespace: shop}
spec: {clusterIP: None, selector: {app: dual}, ports: [{port: 80}]}
";
    let snapshot = snapshot(&format!("{SHOP}{both}"));
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    for (to, addresses) in
        [("dual:80", ["10.96.0.7:80", "[fd00::7]:80"]), ("each-dual:80", ["10.244.2.7:80", "[fd00:2::7]:80"])]
    {
        let explained = explain(&snapshot, &client, &to.parse().unwrap(), &node("auto", "veth")).unwrap();
        let asked: Vec<_> = explained.routes.iter().map(|way| way.address.to_string()).collect();
        assert_eq!(asked, addresses, "{to}");
        assert!(explained.endpoints().all(|it| it.workload == "shop/dual"), "{explained:?}");
        assert_eq!(explained.endpoints().count(), 2, "{explained:?}");
    }
}

#[test]
fn pods_that_are_not_in_the_mesh_come_first_and_nothing_is_taken() {
    let pod = NotEnrolled {
        pod: "shop/web-2".to_owned(),
        node: Some("node2".to_owned()),
        state: EnrolmentState::Failed,
        reason: "port 15008 is taken".to_owned(),
    };
    let mut explained = asked("client", "web:80");
    assert!(explained.is_taken(), "{explained:?}");
    explained.not_enrolled.push(pod.clone());
    assert!(!explained.is_taken());
    let shown = show::text(&explained);
    let lines: Vec<_> = shown.lines().collect();
    assert_eq!(lines[0], "pod shop/web-2 on node2 is not in the mesh, failed: port 15008 is taken");
    assert!(lines[2].starts_with("shop/client on node1"), "{shown}");
    let nowhere = Explanation::of_none(pod, &"web:80".parse().unwrap());
    assert!(!nowhere.is_taken());
    assert_eq!(show::text(&nowhere).lines().count(), 1);
}

#[test]
fn a_service_without_endpoints_is_named_all_the_same() {
    let none = "\
---
apiVersion: v1
kind: Service
metadata: {name: none, namespace: shop}
spec: {clusterIP: 10.96.0.8, selector: {app: none}, ports: [{port: 80}]}
";
    let snapshot = snapshot(&format!("{SHOP}{none}"));
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let explained = explain(&snapshot, &client, &"none:80".parse().unwrap(), &node("auto", "veth")).unwrap();
    let service = explained.routes[0].service.as_deref();
    assert_eq!(service, Some("shop/none.shop.svc.cluster.local"), "{explained:?}");
}

#[test]
fn what_leads_nowhere_is_not_taken_and_what_leads_outside_is() {
    let closed = asked("client", "web:81");
    assert!(!closed.is_taken());
    assert!(closed.routes[0].note.as_deref().unwrap().contains("has no port 81"));
    assert!(asked("client", "192.0.2.1:80").is_taken());
    assert!(!asked("client", "10.244.2.2:15008").is_taken());
}

#[test]
fn an_unknown_name_is_an_error() {
    let snapshot = shop();
    let client = snapshot.workloads().next().unwrap();
    let error = explain(&snapshot, &client, &"nowhere:80".parse().unwrap(), &Agent::default()).unwrap_err();
    assert!(error.to_string().contains("no service"), "{error}");
}

#[test]
fn a_node_that_encrypts_within_itself_says_so() {
    let snapshot = shop();
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let explanation = explain(&snapshot, &client, &"web:80".parse().unwrap(), &node("mtls", "veth")).unwrap();
    assert!(explanation.routes[0].endpoints.iter().all(|endpoint| endpoint.transport == "hbone"));
}

#[test]
fn says_why_a_connection_on_one_node_is_encrypted() {
    let snapshot = shop();
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let of = |setting: &str, link: &str| {
        let same_node = node(setting, link);
        let explained = explain(&snapshot, &client, &"web:80".parse().unwrap(), &same_node).unwrap();
        let endpoint = explained.routes[0].endpoints.iter().find(|it| it.workload == "shop/web-1").unwrap();
        (endpoint.transport, endpoint.note.clone())
    };
    let why = "other pods may be on the way: of shop/client, its traffic is shaped";
    assert_eq!(of("auto", "shared"), ("hbone", Some(why.to_owned())));
    assert_eq!(of("auto", "routed").0, "hbone", "the other one is not");
    assert_eq!(of("direct", "shared"), ("local", Some("directly".to_owned())));
    assert_eq!(of("direct", "veth"), ("local", Some("from veth to veth".to_owned())));
    assert_eq!(of("mtls", "veth"), ("hbone", None));
}

#[test]
fn a_policy_that_the_kernel_can_not_keep_is_named_as_what_needs_the_proxy() {
    let rule = "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: few, namespace: shop}\nspec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}}}}\n";
    let snapshot = snapshot(&format!("{SHOP}{rule}"));
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let of = |to: &str, setting: &str| {
        let explained = explain(&snapshot, &client, &to.parse().unwrap(), &node(setting, "veth")).unwrap();
        let endpoint = explained.routes[0].endpoints.iter().find(|it| it.workload == "shop/web-1").unwrap();
        (endpoint.transport, endpoint.note.clone().unwrap_or_default())
    };
    let kept = "through the proxy, for connectionPool.tcp.maxConnections".to_owned();
    assert_eq!(of("web:80", "auto"), ("local", kept));
    assert_eq!(of("web:80", "mtls").0, "hbone");
    assert_eq!(
        of("10.244.1.2:8080", "auto"),
        ("local", "from veth to veth".to_owned()),
        "by its own address"
    );
}

#[test]
fn limits_of_requests_are_said_where_they_go() {
    let more = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {name: web, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: web}}]}]}\n---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {name: few, namespace: shop}\nspec: {host: web, trafficPolicy: {connectionPool: {tcp: {maxConnections: 2}, http: {http2MaxRequests: 3, maxRetries: 4}}, retryBudget: {percent: 12.5}}}\n";
    let snapshot = snapshot(&format!("{SHOP}{more}"));
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let to: Destination = "http://web/".parse().unwrap();
    let url = to.url().unwrap().clone();
    let request = Some(Request { method: "GET".to_owned(), headers: Vec::new(), url });
    let explained = explain(&snapshot, &client, &to, &Agent { request, ..Agent::default() }).unwrap();
    let outcome = &explained.routes[0].request.as_ref().unwrap().outcome;
    let limits = "limits of each agent: maxConnections 2, http2MaxRequests 3, maxRetries 4, retryBudget 12.5 %, at least 3";
    assert!(outcome.iter().any(|line| line == limits), "{outcome:?}");
}

#[test]
fn strict_egress_is_told_with_whose_it_is_and_what_it_leaves() {
    let snapshot = shop();
    let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
    let strict = StrictEgressStatus {
        by: "namespace".to_owned(),
        allowed: vec!["192.0.2.0/24:443".to_owned()],
        problem: None,
        not_in_force: None,
    };
    let agent = Agent { strict_egress: Some(strict), ..Agent::default() };
    let ask = |to: &str| explain(&snapshot, &client, &to.parse().unwrap(), &agent).unwrap();
    let refused = ask("192.0.2.1:80");
    assert!(!refused.is_taken());
    let note = "refused: strict egress of namespace shop, no rule names 192.0.2.1:80";
    assert_eq!(refused.routes[0].note.as_deref(), Some(note));
    let excepted = ask("192.0.2.1:443");
    assert!(excepted.is_taken());
    let note = excepted.routes[0].note.as_deref().unwrap();
    assert!(note.ends_with("excepted from strict egress of namespace shop by 192.0.2.0/24:443"), "{note}");
    assert!(ask("10.244.1.9:80").is_taken(), "the mesh knows it");
}

#[test]
fn what_is_behind_a_waypoint_is_refused_unless_the_agent_ignores_them() {
    let mut compiled = compiled(SHOP);
    for address in compiled.addresses.values_mut() {
        if let Some(address::Type::Service(service)) = &mut address.r#type {
            service.waypoint = Some(GatewayAddress::default());
        }
    }
    for (setting, goes) in [(Some("refuse"), false), (Some("ignore"), true), (None, true)] {
        let snapshot = taken(&compiled, crate::why::waypoints(setting));
        let client = snapshot.workloads().find(|workload| &*workload.name == "client").unwrap();
        let explained =
            explain(&snapshot, &client, &"web:80".parse().unwrap(), &node("auto", "veth")).unwrap();
        assert_eq!(explained.is_taken(), goes, "{setting:?}");
        let note = explained.routes[0].note.as_deref().unwrap_or_default();
        assert_eq!(note.contains("is behind waypoint"), !goes, "{note}");
    }
}

#[test]
fn says_what_of_the_policies_is_not_in_force_and_who_wrote_strict() {
    let policies = "\
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: methods, namespace: shop}
spec: {action: DENY, rules: [{to: [{operation: {methods: [GET], paths: [/]}}]}]}
---
apiVersion: security.istio.io/v1
kind: AuthorizationPolicy
metadata: {name: elsewhere, namespace: shop}
spec: {selector: {matchLabels: {app: other}}, action: DENY, rules: [{to: [{operation: {methods: [GET]}}]}]}
---
apiVersion: security.istio.io/v1
kind: PeerAuthentication
metadata: {name: default, namespace: shop}
spec: {mtls: {mode: STRICT}}
";
    let snapshot = snapshot(&format!("{SHOP}{policies}"));
    let client = snapshot.workloads().find(|workload| &*workload.name == "outsider").unwrap();
    let mut explained =
        explain(&snapshot, &client, &"web:80".parse().unwrap(), &node("auto", "veth")).unwrap();
    let resource_in = |namespace: &str, kind, name: &str, says: &str, in_force, parts| ResourceStatus {
        kind,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        says: says.to_owned(),
        in_force,
        parts,
        parents: Vec::new(),
    };
    let resource = |kind, name, says, in_force, parts| resource_in("shop", kind, name, says, in_force, parts);
    let part = |meaning: &str| {
        vec![UnenforcedPart {
            field: "spec.rules[0]".to_owned(),
            meaning: meaning.to_owned(),
            fix: String::new(),
        }]
    };
    let (policy, peer) = (manifest::Kind::AuthorizationPolicy, manifest::Kind::PeerAuthentication);
    let resources = vec![
        resource(policy, "methods", "DENY", InForce::No, part("rule 1 left out: methods, paths are layer 7")),
        resource(policy, "elsewhere", "DENY", InForce::No, part("rule 1 left out: methods is layer 7")),
        resource(peer, "default", "STRICT", InForce::AsWritten, Vec::new()),
        resource_in("root", policy, "custom", "CUSTOM", InForce::No, part("CUSTOM is not enforced")),
        resource_in("bank", policy, "custom", "CUSTOM", InForce::No, part("CUSTOM is not enforced")),
    ];
    let written =
        ResourceReport { resources, root_namespace: "root".to_owned(), ..ResourceReport::default() };
    remarks::add(&mut explained, &snapshot, &written);
    let endpoint = &explained.routes[0].endpoints[0];
    assert_eq!(
        endpoint.not_in_force,
        [
            "AuthorizationPolicy shop/methods: spec.rules[0]: rule 1 left out: methods, paths are layer 7",
            "AuthorizationPolicy root/custom: spec.rules[0]: CUSTOM is not enforced",
        ]
    );
    assert_eq!(endpoint.policy.as_deref(), Some("PeerAuthentication shop/default"));
    assert!(
        endpoint.reason.starts_with("denied by PeerAuthentication shop/default: plaintext"),
        "{endpoint:?}"
    );
    assert!(show::text(&explained).contains("not in force: AuthorizationPolicy shop/methods"));
}
