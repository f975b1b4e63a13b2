//! From manifests to where a connection goes: what the compiler says of services is what agents read from it.

use std::{borrow::Cow, net::SocketAddr, sync::Arc};

use mesh_api::{
    compile::{self, MeshConfig},
    manifest,
    plan::{
        LoadBalancer, Snapshot, Store,
        http_routes::{HttpAction, HttpRoutes, RequestView},
        outbound::{Destination, destination_of},
    },
    wire::{type_url, xds::Resource},
};
use prost::Message;
use prost_types::Any;

const SHOP: &str = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {nodemesh.io/dataplane: enabled}}
---
apiVersion: v1
kind: Pod
metadata: {name: client, namespace: shop, labels: {app: client}}
spec: {nodeName: node1}
status: {podIP: 10.244.1.1, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-1, namespace: shop, labels: {app: web}}
spec: {nodeName: node1, containers: [{name: c, ports: [{name: http, containerPort: 8080}]}]}
status: {podIP: 10.244.1.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-2, namespace: shop, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
status: {podIP: 10.244.2.2, conditions: [{type: Ready, status: 'True'}]}
---
apiVersion: v1
kind: Pod
metadata: {name: web-3, namespace: shop, labels: {app: web}}
spec: {nodeName: node2, containers: [{name: c, ports: [{name: http, containerPort: 9090}]}]}
status: {podIP: 10.244.2.3, conditions: [{type: Ready, status: 'False'}]}
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec:
  clusterIP: 10.96.0.1
  selector: {app: web}
  ports: [{name: http, port: 80, targetPort: http}]
";

fn snapshot(more: &str) -> Snapshot {
    snapshot_of(&format!("{SHOP}{more}"))
}

fn snapshot_of(text: &str) -> Snapshot {
    let parsed = manifest::parse("shop.yaml", text);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    let objects = parsed.objects.into_iter().map(Arc::new);
    let compiled = compile::compile(objects, &MeshConfig::default());
    let mut store = Store::default();
    let resources = compiled.addresses.iter().map(|(name, address)| Resource {
        version: String::new(),
        resource: Some(Any { type_url: type_url::ADDRESS.to_owned(), value: address.encode_to_vec() }),
        name: name.clone(),
        aliases: Vec::new(),
    });
    assert_eq!(store.apply_response(type_url::ADDRESS, resources.collect(), Vec::new()), []);
    store.snapshot()
}

fn ask(snapshot: &Snapshot, destination: &str) -> Destination {
    let client = snapshot.workload("Kubernetes//Pod/shop/client").expect("is there");
    destination_of(snapshot, &client, destination.parse::<SocketAddr>().expect("an address"))
}

fn endpoints(snapshot: &Snapshot, destination: &str) -> Vec<String> {
    match ask(snapshot, destination) {
        Destination::Service { endpoints, .. } => {
            endpoints.iter().map(|target| target.address.to_string()).collect()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn each_ready_pod_is_reached_at_its_own_number_of_a_named_port() {
    assert_eq!(endpoints(&snapshot(""), "10.96.0.1:80"), ["10.244.1.2:8080", "10.244.2.2:9090"]);
}

#[test]
fn a_slice_decides_who_is_behind_a_service() {
    let slice = "\
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: web-x, namespace: shop, labels: {kubernetes.io/service-name: web}}
addressType: IPv4
ports: [{name: http, port: 9090}]
endpoints:
- {addresses: [10.244.2.2], targetRef: {kind: Pod, name: web-2}}
- {addresses: [192.0.2.7]}
";
    let mut found = endpoints(&snapshot(slice), "10.96.0.1:80");
    found.sort();
    assert_eq!(found, ["10.244.2.2:9090", "192.0.2.7:9090"]);
}

#[test]
fn unready_pods_count_where_the_service_says_so() {
    let all = "\
---
apiVersion: v1
kind: Service
metadata: {name: all, namespace: shop}
spec:
  clusterIP: 10.96.0.2
  publishNotReadyAddresses: true
  selector: {app: web}
  ports: [{port: 80, targetPort: http}]
";
    assert_eq!(endpoints(&snapshot(all), "10.96.0.2:80").len(), 3);
}

#[test]
fn local_traffic_stays_on_the_node() {
    let local = "\
---
apiVersion: v1
kind: Service
metadata: {name: near, namespace: shop}
spec: {clusterIP: 10.96.0.3, selector: {app: web}, internalTrafficPolicy: Local, ports: [{port: 80, targetPort: http}]}
";
    assert_eq!(endpoints(&snapshot(local), "10.96.0.3:80"), ["10.244.1.2:8080"]);
}

#[test]
fn a_destination_rule_reaches_the_clients_that_it_is_for() {
    let rules = "\
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, trafficPolicy: {loadBalancer: {simple: ROUND_ROBIN}}}
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web-for-client, namespace: shop}
spec:
  host: web
  workloadSelector: {matchLabels: {app: client}}
  trafficPolicy: {loadBalancer: {simple: RANDOM}, connectionPool: {tcp: {maxConnections: 5}}}
";
    let Destination::Service { policy, .. } = ask(&snapshot(rules), "10.96.0.1:80") else {
        panic!("not a service")
    };
    assert_eq!(policy.lb, LoadBalancer::Random);
    assert_eq!(policy.pool.max_connections.map(u32::from), Some(5));
    let elsewhere = rules.replace("app: client", "app: other");
    let Destination::Service { policy, .. } = ask(&snapshot(&elsewhere), "10.96.0.1:80") else {
        panic!("not a service")
    };
    assert_eq!(policy.lb, LoadBalancer::RoundRobin);
}

#[test]
fn a_pod_is_reached_by_its_own_address_and_others_are_not_known() {
    let snapshot = snapshot("");
    assert!(matches!(ask(&snapshot, "10.244.2.2:1234"), Destination::Workload(_)));
    assert!(matches!(ask(&snapshot, "192.0.2.99:80"), Destination::Passthrough));
}

/// A request for a path.
struct Get(&'static str);

impl RequestView for Get {
    fn method(&self) -> &'static str {
        "GET"
    }

    fn scheme(&self) -> &'static str {
        "http"
    }

    fn authority(&self) -> &'static str {
        "web"
    }

    fn path(&self) -> &str {
        self.0
    }

    fn query(&self) -> Option<&str> {
        None
    }

    fn header(&self, _: &str) -> Option<Cow<'_, str>> {
        None
    }
}

#[test]
fn a_virtual_service_leads_requests_of_some_clients_to_a_subset() {
    let routes = "\
---
apiVersion: networking.istio.io/v1
kind: DestinationRule
metadata: {name: web, namespace: shop}
spec: {host: web, subsets: [{name: v2, labels: {version: v2}}]}
---
apiVersion: networking.istio.io/v1
kind: VirtualService
metadata: {name: web, namespace: shop}
spec:
  hosts: [web]
  http:
  - match: [{uri: {prefix: /new}, sourceLabels: {app: client}}]
    route: [{destination: {host: web, subset: v2}}]
  - match: [{uri: {prefix: /none}}]
    route: [{destination: {host: web, subset: v3}}]
  - route: [{destination: {host: web}}]
";
    let second = "name: web-2, namespace: shop, labels: {app: web";
    let text = SHOP.replace(second, &format!("{second}, version: v2"));
    let endpoints = |text: &str, path: &'static str| {
        let snapshot = snapshot_of(text);
        let client = snapshot.workload("Kubernetes//Pod/shop/client").expect("is there");
        let original = "10.96.0.1:80".parse().expect("an address");
        let routes = HttpRoutes::find(&snapshot, &client, original).expect("the service has routes");
        let found =
            routes.table.as_ref().unwrap().find_route(&Get(path), &client, 80).expect("one is for all");
        let HttpAction::Forward(forward) = &found.route.action else { panic!("{:?}", found.route) };
        match forward.destinations[0].endpoints(&snapshot, &client, original) {
            Destination::Service { endpoints, .. } => {
                endpoints.iter().map(|target| target.address.to_string()).collect::<Vec<_>>().join(" ")
            }
            Destination::Reject(reason) => reason.to_string(),
            other => panic!("{other:?}"),
        }
    };
    let all = "10.244.1.2:8080 10.244.2.2:9090";
    let text = text + routes;
    assert_eq!(endpoints(&text, "/new"), "10.244.2.2:9090");
    assert_eq!(endpoints(&text, "/old"), all);
    assert!(endpoints(&text, "/none").contains("no subset v3"), "{}", endpoints(&text, "/none"));
    let others = text.replace("sourceLabels: {app: client}", "sourceLabels: {app: other}");
    assert_eq!(endpoints(&others, "/new"), all);
}

#[test]
fn a_route_of_the_gateway_api_leads_the_requests_of_its_service_and_port() {
    let routes = "\
---
apiVersion: v1
kind: Service
metadata: {name: front, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}, {name: http-admin, port: 81}]}
---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: front, namespace: shop}
spec:
  parentRefs: [{group: '', kind: Service, name: front, port: 80}]
  rules:
  - matches: [{path: {value: /web}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {value: /web/broken/}}]
    backendRefs: [{name: nobody, port: 80}]
";
    let snapshot = snapshot(routes);
    let client = snapshot.workload("Kubernetes//Pod/shop/client").expect("is there");
    let original = |port| SocketAddr::from(([10, 96, 0, 2], port));
    assert!(HttpRoutes::find(&snapshot, &client, original(81)).is_none(), "another port");
    let routes = HttpRoutes::find(&snapshot, &client, original(80)).expect("the service has routes");
    assert_eq!(&*routes.table.as_ref().unwrap().source, "HTTPRoute shop/front");
    let destination = |path: &'static str| {
        let found = routes.table.as_ref().unwrap().find_route(&Get(path), &client, 80)?;
        let HttpAction::Forward(forward) = &found.route.action else { panic!("{:?}", found.route) };
        let destination = &forward.destinations[0];
        let endpoints = match destination.endpoints(&snapshot, &client, original(80)) {
            Destination::Service { endpoints, .. } => endpoints.len(),
            _ => 0,
        };
        Some((destination.status.map(|status| status.as_u16()), endpoints))
    };
    for path in ["/web", "/web/", "/web/a", "/web/brokenness"] {
        assert_eq!(destination(path), Some((None, 2)), "{path}");
    }
    for path in ["/web/broken", "/web/broken/a"] {
        assert_eq!(destination(path), Some((Some(500), 0)), "{path}");
    }
    for path in ["/", "/webs"] {
        assert_eq!(destination(path), None, "{path}: 404");
    }
}
