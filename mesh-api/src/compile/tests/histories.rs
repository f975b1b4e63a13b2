//! Whatever happens in whatever order, the compiler comes to what it would come to from the objects alone.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::*;
use crate::manifest::ObjectKey;

/// A cheap sequence of numbers that look random, the same for the same seed.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % sides
    }

    fn pick<'a>(&mut self, list: &[&'a str]) -> &'a str {
        let index = self.roll(list.len() as u64);
        list[usize::try_from(index).unwrap()]
    }
}

const NAMESPACES: [&str; 3] = ["shop", "bank", "istio-system"];
const APPS: [&str; 3] = ["web", "db", "cache"];

/// A random object in the place of some key, or what stands for its removal.
fn random_object(dice: &mut Dice) -> String {
    let namespace = dice.pick(&NAMESPACES);
    let (app, number) = (dice.pick(&APPS), dice.roll(3));
    let age = dice.roll(4);
    let head = |version: &str, kind: &str, name: &str, more: &str| {
        format!(
            "apiVersion: {version}\nkind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}, \
             creationTimestamp: '2026-01-0{}T00:00:00Z'{more}}}\n",
            age + 1
        )
    };
    match dice.roll(22) {
        0..=5 => random_pod(dice, &head, app, number),
        6..=8 => random_service(dice, &head, app),
        9..=10 => random_slice(dice, &head, app, number),
        11 => {
            let labels = dice.pick(&["", ", labels: {nodemesh.io/dataplane: enabled}"]);
            format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {namespace}{labels}}}\n")
        }
        12 => {
            let zone = dice.pick(&["z1", "z2"]);
            let name = dice.pick(&["node1", "node2"]);
            format!(
                "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}, \
                 labels: {{topology.kubernetes.io/zone: {zone}}}}}\n"
            )
        }
        13 => {
            let selector = random_selector(dice, "selector");
            let spec = dice.pick(&[
                "{}",
                "{from: [{source: {namespaces: [bank]}}]}",
                "{to: [{operation: {methods: [GET]}}]}",
            ]);
            head("security.istio.io/v1", "AuthorizationPolicy", &format!("p{number}"), "")
                + &format!(
                    "spec: {{{selector}action: {}, rules: [{spec}]}}\n",
                    dice.pick(&["ALLOW", "DENY", "CUSTOM, provider: {name: x}"])
                )
        }
        14 => {
            let selector = random_selector(dice, "selector");
            let ports = dice.pick(&["", "portLevelMtls: {8080: {mode: STRICT}}, "]);
            let ports = if selector.is_empty() { "" } else { ports };
            head("security.istio.io/v1", "PeerAuthentication", &format!("m{number}"), "")
                + &format!(
                    "spec: {{{selector}{ports}mtls: {{mode: {}}}}}\n",
                    dice.pick(&["STRICT", "PERMISSIVE", "UNSET"])
                )
        }
        15 => {
            let host =
                dice.pick(&["web", "web.shop.svc.cluster.local", "*.bank.svc.cluster.local", "*", "nowhere"]);
            let selector = random_selector(dice, "workloadSelector");
            let export = dice.pick(&["", "exportTo: [.], "]);
            let subsets = dice.pick(&[
                "",
                "subsets: [{name: v1, labels: {tier: a}}], ",
                "subsets: [{name: v2, labels: {app: web}}, {name: v1}], ",
            ]);
            let policy = dice
                .pick(&["{loadBalancer: {simple: RANDOM}}", "{connectionPool: {tcp: {maxConnections: 7}}}"]);
            head("networking.istio.io/v1", "DestinationRule", &format!("d{number}"), "")
                + &format!("spec: {{host: '{host}', {selector}{export}{subsets}trafficPolicy: {policy}}}\n")
        }
        16..=17 => random_routes(dice, &head, number),
        18..=20 => random_gateway_routes(dice, &head, number),
        _ => {
            let from = dice.pick(&NAMESPACES);
            let kind = dice.pick(&["HTTPRoute", "GRPCRoute"]);
            let name = dice.pick(&["", ", name: web", ", name: db"]);
            head("gateway.networking.k8s.io/v1beta1", "ReferenceGrant", &format!("g{number}"), "")
                + &format!(
                    "spec: {{from: [{{group: gateway.networking.k8s.io, kind: {kind}, namespace: {from}}}], \
                     to: [{{group: '', kind: Service{name}}}]}}\n"
                )
        }
    }
}

fn random_gateway_routes(dice: &mut Dice, head: &Head<'_>, number: u64) -> String {
    let kind = dice.pick(&["HTTPRoute", "HTTPRoute", "GRPCRoute"]);
    let parent = |dice: &mut Dice| {
        let more = dice.pick(&["", "", ", port: 80", ", port: 81", ", sectionName: http"]);
        let (name, namespace) = (dice.pick(&APPS), dice.pick(&NAMESPACES));
        format!("{{group: '', kind: Service, name: {name}, namespace: {namespace}{more}}}")
    };
    let parents = match dice.roll(3) {
        0 => format!("{}, {}", parent(dice), parent(dice)),
        1 => format!("{{name: edge}}, {}", parent(dice)),
        _ => parent(dice),
    };
    let (name, namespace) = (dice.pick(&APPS), dice.pick(&NAMESPACES));
    let port = dice.pick(&["80", "80", "81"]);
    let headers = dice.pick(&[
        "",
        "headers: [{name: a, value: b}]",
        "headers: [{name: a, type: RegularExpression, value: 'a\\C'}]",
    ]);
    let filters = dice.pick(&["", "filters: [{type: ExtensionRef}], "]);
    head("gateway.networking.k8s.io/v1", kind, &format!("h{number}"), "")
        + &format!(
            "spec: {{parentRefs: [{parents}], rules: [{{matches: [{{{headers}}}], {filters}\
             backendRefs: [{{name: {name}, namespace: {namespace}, port: {port}}}]}}]}}\n"
        )
}

fn random_routes(dice: &mut Dice, head: &Head<'_>, number: u64) -> String {
    let hosts = dice.pick(&[
        "web",
        "db, cache",
        "web.shop.svc.cluster.local, nowhere",
        "'*.bank.svc.cluster.local'",
        "'*.cluster.local'",
    ]);
    let export = dice.pick(&["", "exportTo: [.], ", "exportTo: [bank], ", "exportTo: [., istio-system], "]);
    let gateways = dice.pick(&["", "", "gateways: [edge], ", "gateways: [edge, mesh], "]);
    let matches = dice.pick(&[
        "",
        "match: [{sourceLabels: {tier: a}}], ",
        "match: [{sourceLabels: {app: web}, sourceNamespace: bank}], ",
        "match: [{gateways: [edge]}], ",
        "match: [{uri: {regex: 'a\\C'}}], ",
    ]);
    let host = dice.pick(&APPS);
    let rest =
        dice.pick(&["", ", subset: v1", ", subset: v2", ", port: {number: 80}", ", port: {number: 81}"]);
    head("networking.istio.io/v1", "VirtualService", &format!("v{number}"), "")
        + &format!(
            "spec: {{hosts: [{hosts}], {export}{gateways}http: [{{{matches}route: [{{destination: {{host: {host}{rest}}}}}]}}]}}\n"
        )
}

fn random_selector(dice: &mut Dice, field: &str) -> String {
    match dice.roll(2) {
        0 => String::new(),
        _ => format!("{field}: {{matchLabels: {{app: {}}}}}, ", dice.pick(&APPS)),
    }
}

type Head<'a> = dyn Fn(&str, &str, &str, &str) -> String + 'a;

fn random_pod(dice: &mut Dice, head: &Head<'_>, app: &str, number: u64) -> String {
    let labels = format!(", labels: {{app: {}, tier: {}}}", dice.pick(&APPS), dice.pick(&["a", "b"]));
    let host = dice.pick(&["", "", "", "hostNetwork: true, "]);
    let phase = dice.pick(&["Running", "Running", "Running", "Succeeded"]);
    let ready = dice.pick(&["True", "False"]);
    head("v1", "Pod", &format!("{app}-{number}"), &labels)
        + &format!(
            "spec: {{{host}nodeName: {}, serviceAccountName: {app}, \
             containers: [{{name: c, ports: [{{name: http, containerPort: {}}}]}}]}}\n\
             status: {{podIP: 10.0.0.{}, phase: {phase}, conditions: [{{type: Ready, status: '{ready}'}}]}}\n",
            dice.pick(&["node1", "node2"]),
            8080 + dice.roll(2),
            dice.roll(6),
        )
}

fn random_service(dice: &mut Dice, head: &Head<'_>, app: &str) -> String {
    let selector = match dice.roll(4) {
        0 => String::new(),
        1 => format!("selector: {{app: {app}}}, "),
        2 => format!("selector: {{tier: {}}}, ", dice.pick(&["a", "b"])),
        _ => format!("selector: {{app: {app}, tier: a}}, "),
    };
    let kind = dice.pick(&["", "", "", "type: ExternalName, externalName: example.org, "]);
    let target = dice.pick(&["http", "8080"]);
    head("v1", "Service", app, "")
        + &format!("spec: {{{kind}{selector}ports: [{{name: http, port: 80, targetPort: {target}}}]}}\n")
}

fn random_slice(dice: &mut Dice, head: &Head<'_>, app: &str, number: u64) -> String {
    let mut text = head(
        "discovery.k8s.io/v1",
        "EndpointSlice",
        &format!("{app}-{number}"),
        &format!(", labels: {{kubernetes.io/service-name: {}}}", dice.pick(&APPS)),
    );
    write!(
        text,
        "addressType: IPv4\nports: [{{name: http, port: {}, protocol: TCP}}]\nendpoints:\n",
        8080 + dice.roll(2)
    )
    .unwrap();
    for _ in 0..dice.roll(3) {
        let target = match dice.roll(2) {
            0 => String::new(),
            _ => format!(", targetRef: {{kind: Pod, name: {}-{}}}", dice.pick(&APPS), dice.roll(3)),
        };
        let ready = dice.pick(&["true", "false"]);
        writeln!(text, "- {{addresses: [10.0.0.{}], conditions: {{ready: {ready}}}{target}}}", dice.roll(6))
            .unwrap();
    }
    if text.ends_with("endpoints:\n") {
        text.truncate(text.len() - "endpoints:\n".len());
    }
    text
}

#[test]
fn every_history_comes_to_what_its_objects_come_to() {
    for seed in 0..60 {
        let mut dice = Dice(seed);
        let mut compiler = Compiler::new(MeshConfig::default());
        let mut objects: BTreeMap<ObjectKey, SharedObject> = BTreeMap::new();
        let (mut addresses, mut authorizations) = (BTreeMap::new(), BTreeMap::new());
        for step in 0..60 {
            let mut changes = Vec::new();
            for _ in 0..=dice.roll(4) {
                let text = random_object(&mut dice);
                let parsed = manifest::parse("test.yaml", &text);
                assert!(parsed.errors.is_empty(), "{text}{:#?}", parsed.errors);
                let object = Arc::new(parsed.objects.into_iter().next().unwrap());
                let key = object.value.key();
                let object = (dice.roll(4) > 0).then_some(object);
                match &object {
                    Some(object) => drop(objects.insert(key.clone(), object.clone())),
                    None => drop(objects.remove(&key)),
                }
                changes.push(ObjectChange { key, object });
            }
            let told = format!(
                "seed {seed}, step {step}: {:#?}",
                changes.iter().map(|it| it.key.to_string()).collect::<Vec<_>>()
            );
            compiler.apply(changes, |output| match output {
                ResourceUpdate::Address(name, Some(address)) => drop(addresses.insert(name, *address)),
                ResourceUpdate::Address(name, None) => drop(addresses.remove(&name)),
                ResourceUpdate::Authorization(name, Some(policy)) => {
                    drop(authorizations.insert(name, policy));
                }
                ResourceUpdate::Authorization(name, None) => drop(authorizations.remove(&name)),
            });
            let whole = compile(objects.values().cloned(), &MeshConfig::default());
            assert_eq!(addresses, whole.addresses, "{told}");
            assert_eq!(authorizations, whole.authorizations, "{told}");
            assert_eq!(compiler.conditions(), whole.conditions, "{told}");
        }
    }
}
