//! Which routes of the Gateway API count for whom, and in which order. What they come to, and what of them is
//! said to be not in force, is in the files below.

mod actions;
mod conditions;

use super::*;
use crate::wire::ext::{HttpRouteTable, http_route::Action, string_match::Form};

const SERVICES: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}, {name: http-admin, port: 8080}, {name: tcp, port: 9090}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: bank, namespace: other}
spec: {clusterIP: 10.96.0.3, ports: [{name: http, port: 80}]}
";

const TO_API: &str = "backendRefs: [{name: api, namespace: shop, port: 80}]";

/// An object of the Gateway API.
fn object(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: {kind}\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

/// A route with one parent, `web` in `shop`, of which `more` is said.
fn route(namespace: &str, name: &str, more: &str, rules: &str) -> String {
    let parent = format!("{{group: '', kind: Service, name: web, namespace: shop{more}}}");
    object("HTTPRoute", namespace, name, &format!("parentRefs: [{parent}], rules: [{rules}]"))
}

/// A grant of `shop`'s Services to routes of a namespace.
fn grant(namespace: &str, to: &str) -> String {
    let from = format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: {namespace}}}");
    object("ReferenceGrant", "shop", "granted", &format!("from: [{from}], to: [{to}]"))
}

const ALL_SERVICES: &str = "{group: '', kind: Service}";

/// The tables of `web` in `shop`, to whose compilation these objects are added.
fn tables(text: &str) -> Vec<HttpRouteTable> {
    tables_of(&compiled(&(SERVICES.to_owned() + text)))
}

fn tables_of(compiled: &Compiled) -> Vec<HttpRouteTable> {
    let service = compiled.service("shop/web.shop.svc.cluster.local");
    let named = |name: &'static str| service.extensions.iter().filter(move |it| it.name == name);
    let configs = named(ext::GATEWAY_ROUTES).chain(named(ext::HTTP_ROUTES)).flat_map(|it| &it.config);
    let routes = configs.map(|config| ext::HttpRoutes::decode(config.value.as_slice()).expect("is ours"));
    routes.flat_map(|routes| routes.tables).collect()
}

/// Source, client namespace and ports of each table.
fn heads(text: &str) -> Vec<(String, String, Vec<u32>)> {
    let heads = tables(text).into_iter().map(|it| (it.source, it.client_namespaces.join(" "), it.ports));
    heads.collect()
}

fn head(source: &str, client: &str, ports: &[u32]) -> (String, String, Vec<u32>) {
    (source.to_owned(), client.to_owned(), ports.to_vec())
}

#[test]
fn a_route_is_for_all_clients_or_for_those_of_its_namespace() {
    let producer = route("shop", "a", "", &format!("{{{TO_API}}}"));
    let consumer = route("client", "b", "", &format!("{{{TO_API}}}"));
    assert_eq!(heads(&producer), [head("HTTPRoute shop/a", "", &[])]);
    assert_eq!(heads(&consumer), [head("HTTPRoute client/b", "client", &[])]);
    let both = [head("HTTPRoute client/b", "client", &[]), head("HTTPRoute shop/a", "", &[])];
    assert_eq!(heads(&(producer.clone() + &consumer)), both, "the clients' own counts alone");
    let three = producer + &route("shop", "c", "", "{}") + &route("shop", "b", "", "{}");
    assert_eq!(heads(&three), [head("HTTPRoute shop/a and 2 others", "", &[])]);
}

#[test]
fn a_route_is_for_the_ports_that_its_parent_names() {
    let of = |more: &str| heads(&route("shop", "a", more, &format!("{{{TO_API}}}")));
    assert_eq!(of(", port: 8080"), [head("HTTPRoute shop/a", "", &[8080])]);
    assert_eq!(of(", sectionName: http"), [head("HTTPRoute shop/a", "", &[80])]);
    assert_eq!(of(", sectionName: http, port: 80"), [head("HTTPRoute shop/a", "", &[80])]);
    for nowhere in [", port: 81", ", sectionName: grpc", ", port: 9090", ", sectionName: http, port: 8080"] {
        assert_eq!(of(nowhere), [], "{nowhere}");
    }
    let mixed = route("shop", "a", ", port: 80", "{}") + &route("shop", "b", "", "{}");
    let expected = [head("HTTPRoute shop/a and another", "", &[80]), head("HTTPRoute shop/b", "", &[8080])];
    assert_eq!(heads(&mixed), expected);
}

#[test]
fn routes_of_the_gateway_api_count_before_virtual_services() {
    let virtual_service = "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
        metadata: {name: v, namespace: shop}\nspec: {hosts: [web], http: [{route: [{destination: {host: api}}]}]}\n";
    let text = |more: &str| route("shop", "a", more, "{}") + virtual_service;
    assert_eq!(heads(&text("")), [head("HTTPRoute shop/a", "", &[])], "nobody is left");
    let rest = [head("HTTPRoute shop/a", "", &[80]), head("VirtualService shop/v", "", &[])];
    assert_eq!(heads(&text(", port: 80")), rest);
    let reasons = compiled(&(SERVICES.to_owned() + &text(""))).conditions;
    let [loser] = &reasons[..] else { panic!("{reasons:#?}") };
    assert_eq!((loser.key().to_string().as_str(), loser.is_whole), ("VirtualService shop/v", true));
    assert!(loser.reason.contains("HTTPRoute shop/a is attached to web.shop"), "{loser}");
    let reasons = compiled(&(SERVICES.to_owned() + &text(", port: 80"))).conditions;
    assert!(
        matches!(&reasons[..], [part] if !part.is_whole && part.reason.contains("ports")),
        "{reasons:#?}"
    );
}

/// The matches of a table in their order, with the names of their rules.
fn order(text: &str) -> Vec<String> {
    let tables = tables(text);
    let [table] = &tables[..] else { panic!("{tables:#?}") };
    table.routes.iter().map(|route| format!("{}x{}", route.name, route.matches.len())).collect()
}

#[test]
fn of_all_routes_of_a_service_the_closest_match_counts_first() {
    let rules = |rules: &[(&str, &str)]| -> String {
        let rules = rules.iter().map(|(name, matches)| format!("{{name: {name}, matches: [{matches}]}}"));
        rules.collect::<Vec<_>>().join(", ")
    };
    let first = rules(&[
        ("regex", "{path: {type: RegularExpression, value: '/a.*'}}"),
        ("longer-regex", "{path: {type: RegularExpression, value: '/a/b.*'}}"),
        ("all", "{}"),
        ("prefix", "{path: {value: /a}}"),
        ("headers", "{path: {value: /a}, headers: [{name: a, value: b}]}"),
    ]);
    let second = rules(&[
        ("query", "{path: {value: /a}, queryParams: [{name: a, value: b}]}"),
        ("method", "{path: {value: /a}, method: GET}"),
        ("longer", "{path: {value: /a/b/}}"),
        ("exact", "{path: {type: Exact, value: /a}}"),
        ("two-headers", "{path: {value: /a}, headers: [{name: a, value: b}, {name: c, value: d}]}"),
    ]);
    let expected = [
        "exactx1",
        "longerx1",
        "methodx1",
        "two-headersx1",
        "headersx1",
        "queryx1",
        "prefixx1",
        "longer-regexx1",
        "regexx1",
        "allx1",
    ];
    assert_eq!(order(&(route("shop", "a", "", &first) + &route("shop", "b", "", &second))), expected);
    assert_eq!(order(&(route("shop", "b", "", &first) + &route("shop", "a", "", &second))), expected);
}

#[test]
fn of_equal_matches_the_older_route_counts_then_the_name_then_the_order() {
    let aged = |name: &str, day: u8| {
        let text = route("shop", name, "", &format!("{{name: {name}}}"));
        text.replace(
            "namespace: shop}\nspec",
            &format!("namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z'}}\nspec"),
        )
    };
    assert_eq!(order(&(aged("a", 2) + &aged("b", 1))), ["bx1", "ax1"]);
    assert_eq!(order(&(aged("b", 1) + &aged("a", 1))), ["ax1", "bx1"]);
    let rules = "{name: one, matches: [{path: {value: /a}}, {path: {value: /b}}]}, {name: two, matches: [{path: {value: /a}}]}";
    assert_eq!(order(&route("shop", "a", "", rules)), ["onex2", "twox1"], "neighbours of one rule are one");
    let rules = "{name: one, matches: [{path: {value: /a}}, {path: {value: /ab}}]}, {name: two, matches: [{path: {value: /bc}}]}";
    assert_eq!(order(&route("shop", "a", "", rules)), ["onex1", "twox1", "onex1"]);
}

/// Objects of a text.
fn objects(text: &str) -> Vec<SharedObject> {
    let parsed = manifest::parse("test.yaml", text);
    assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
    parsed.objects.into_iter().map(Arc::new).collect()
}

/// Applies objects that are there, or gone, and returns the services that were made again.
fn apply(compiler: &mut Compiler, text: &str, is_there: bool) -> Vec<String> {
    let changes = objects(text)
        .into_iter()
        .map(|it| ObjectChange { key: it.value.key(), object: is_there.then_some(it) });
    let mut changed = Vec::new();
    compiler.apply(changes, |update| match update {
        ResourceUpdate::Address(name, _) => changed.push(name),
        ResourceUpdate::Authorization(name, _) => panic!("{name} has changed"),
    });
    changed
}

#[test]
fn a_change_reaches_the_parents_of_the_routes_that_it_is_about() {
    let mut compiler = Compiler::new(MeshConfig::default());
    apply(&mut compiler, SERVICES, true);
    let [web, bank] = ["shop/web.shop.svc.cluster.local", "other/bank.other.svc.cluster.local"];
    let to_bank = "{backendRefs: [{name: bank, namespace: other, port: 80}]}";
    let made = route("shop", "a", "", to_bank);
    assert_eq!(apply(&mut compiler, &made, true), [web]);
    assert_eq!(apply(&mut compiler, &made, true), [] as [&str; 0], "the same again");
    let from = "{group: gateway.networking.k8s.io, kind: HTTPRoute, namespace: shop}";
    let granted = object("ReferenceGrant", "other", "g", &format!("from: [{from}], to: [{ALL_SERVICES}]"));
    assert_eq!(apply(&mut compiler, &granted, true), [web], "the backend is permitted now");
    let service = SERVICES.split_inclusive("---\n").last().unwrap();
    assert_eq!(apply(&mut compiler, service, false), [bank, web], "and gone");
    assert_eq!(apply(&mut compiler, service, true), [bank, web], "and back");
    assert_eq!(apply(&mut compiler, &granted, false), [web], "and not permitted any more");
    let other = SERVICES.split("---\n").nth(2).unwrap();
    assert_eq!(apply(&mut compiler, other, true), ["shop/api.shop.svc.cluster.local"], "nobody names it");
    assert_eq!(apply(&mut compiler, &made, false), [web]);
}
