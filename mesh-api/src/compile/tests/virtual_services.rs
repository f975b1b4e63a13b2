//! Which virtual service counts for whom. What its routes come to, and what of it is said to be not in force,
//! is in the files below.

mod conditions;
mod labels;
mod routes;

use super::*;

const SERVICES: &str = "\
---
apiVersion: v1
kind: Service
metadata: {name: web, namespace: shop}
spec: {clusterIP: 10.96.0.1, ports: [{name: http, port: 80}]}
---
apiVersion: v1
kind: Service
metadata: {name: api, namespace: shop}
spec: {clusterIP: 10.96.0.2, ports: [{name: web, port: 80}, {name: http-admin, port: 8080}]}
";

const HOST: &str = "web.shop.svc.cluster.local";

/// A virtual service of a namespace.
fn service(name: &str, namespace: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: VirtualService\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {{{spec}}}\n"
    )
}

const TO_API: &str = "http: [{route: [{destination: {host: api.shop.svc.cluster.local}}]}]";

/// One that routes a host.
fn for_host(name: &str, namespace: &str, host: &str, export_to: &str) -> String {
    let export_to = if export_to.is_empty() { String::new() } else { format!("exportTo: {export_to}, ") };
    service(name, namespace, &format!("hosts: ['{host}'], {export_to}{TO_API}"))
}

/// The tables of the service `web` in `shop`, to whose compilation these objects are added.
fn tables(text: &str) -> Vec<ext::HttpRouteTable> {
    let compiled = compiled(&(SERVICES.to_owned() + text));
    let service = compiled.service("shop/web.shop.svc.cluster.local");
    let extension = service.extensions.iter().find(|extension| extension.name == ext::HTTP_ROUTES);
    let Some(config) = extension.and_then(|extension| extension.config.as_ref()) else { return Vec::new() };
    assert_eq!(config.type_url, wire::type_url::HTTP_ROUTES);
    ext::HttpRoutes::decode(config.value.as_slice()).expect("is ours").tables
}

/// Where a client's routes are from, read as an agent does.
fn source_for<'a>(tables: &'a [ext::HttpRouteTable], namespace: &str) -> Option<&'a str> {
    let covers = |table: &&ext::HttpRouteTable| {
        let names = &table.client_namespaces;
        names.is_empty() || names.iter().any(|name| name == namespace)
    };
    tables.iter().find(covers)?.source.strip_prefix("VirtualService ")
}

#[test]
fn one_virtual_service_counts_for_each_client() {
    const ALL: &str = "*.shop.svc.cluster.local";
    type Written = (&'static str, &'static str, &'static str, &'static str);
    type Expected = (&'static str, Option<&'static str>);
    let cases: &[(&str, &[Written], &[Expected])] = &[
        (
            "one that all see",
            &[("a", "shop", "web", "")],
            &[("shop", Some("shop/a")), ("third", Some("shop/a"))],
        ),
        (
            "the first by name of those that all see",
            &[("b", "shop", "web", ""), ("a", "other", HOST, "['*']")],
            &[("shop", Some("other/a")), ("third", Some("other/a"))],
        ),
        (
            "the first by namespace of those with one name",
            &[("a", "shop", "web", ""), ("a", "other", HOST, "")],
            &[("third", Some("other/a"))],
        ),
        (
            "a client's own before one that all see",
            &[("a", "shop", "web", ""), ("z", "client", HOST, "[.]")],
            &[("client", Some("client/z")), ("third", Some("shop/a")), ("shop", Some("shop/a"))],
        ),
        (
            "a client's own before one that is exported to it",
            &[("a", "shop", "web", "[client]"), ("z", "client", HOST, "[client]")],
            &[("client", Some("client/z")), ("shop", None)],
        ),
        (
            "one that is exported to the client before one that all see",
            &[("a", "shop", "web", ""), ("z", "other", HOST, "[client]")],
            &[("client", Some("other/z")), ("other", Some("shop/a"))],
        ),
        (
            "the first of those that are exported to the client",
            &[("b", "shop", "web", "[client, third]"), ("a", "other", HOST, "[client]")],
            &[("client", Some("other/a")), ("third", Some("shop/b"))],
        ),
        (
            "its own namespace and another",
            &[("a", "shop", "web", "[., client]")],
            &[("shop", Some("shop/a")), ("client", Some("shop/a")), ("third", None)],
        ),
        (
            "the exact host before a wildcard",
            &[("a", "shop", ALL, ""), ("b", "shop", "web", "")],
            &[("third", Some("shop/b"))],
        ),
        (
            "a longer wildcard before a shorter one",
            &[("a", "shop", "*.cluster.local", ""), ("b", "shop", ALL, "")],
            &[("third", Some("shop/b"))],
        ),
        (
            "a wildcard for whoever does not see the exact host",
            &[("a", "shop", ALL, ""), ("b", "shop", "web", "[.]")],
            &[("shop", Some("shop/b")), ("third", Some("shop/a"))],
        ),
        (
            "the exact host that all see before a client's own wildcard",
            &[("a", "client", ALL, "[.]"), ("b", "shop", "web", "")],
            &[("client", Some("shop/b"))],
        ),
        (
            "a wildcard that ends within a label",
            &[("a", "shop", "*eb.shop.svc.cluster.local", "")],
            &[("third", Some("shop/a"))],
        ),
        ("another host", &[("a", "shop", "api", ""), ("b", "other", "web", "")], &[("shop", None)]),
    ];
    for (what, written, expected) in cases {
        let text: String = written.iter().map(|(name, ns, host, to)| for_host(name, ns, host, to)).collect();
        let tables = tables(&text);
        for (client, source) in *expected {
            assert_eq!(source_for(&tables, client), *source, "{what}: a client in {client}: {tables:#?}");
        }
    }
}

#[test]
fn the_oldest_counts_whatever_its_name() {
    let aged = |name: &str, day: u8| {
        let text = for_host(name, "shop", "web", "");
        text.replace(
            "namespace: shop}",
            &format!("namespace: shop, creationTimestamp: '2026-01-0{day}T00:00:00Z'}}"),
        )
    };
    assert_eq!(source_for(&tables(&(aged("a", 2) + &aged("b", 1))), "third"), Some("shop/b"));
    assert_eq!(source_for(&tables(&(aged("a", 2) + &aged("b", 3))), "third"), Some("shop/a"));
}

#[test]
fn nobody_is_told_of_what_counts_for_nobody() {
    let text = for_host("a", "shop", "web", "")
        + &for_host("b", "shop", "web", "")
        + &for_host("c", "shop", "*.shop.svc.cluster.local", "[client]")
        + &for_host("d", "client", HOST, "[.]")
        + &for_host("e", "client", HOST, "[., third]");
    let tables = tables(&text);
    let told: Vec<_> = tables.iter().map(|it| (it.source.as_str(), it.client_namespaces.join(" "))).collect();
    assert_eq!(
        told,
        [
            ("VirtualService client/d", "client".to_owned()),
            ("VirtualService client/e", "third".to_owned()),
            ("VirtualService shop/a", String::new()),
        ]
    );
}

#[test]
fn what_is_not_for_requests_in_the_mesh_is_for_no_service() {
    for spec in [
        format!("hosts: [web], gateways: [edge], {TO_API}"),
        TO_API.to_owned(),
        "hosts: [web], tcp: [{route: [{destination: {host: api}}]}]".to_owned(),
        "hosts: [web], http: [{delegate: {name: other}}]".to_owned(),
        "hosts: [web], http: [{match: [{gateways: [edge]}], route: [{destination: {host: api}}]}]".to_owned(),
    ] {
        // One that is not in force keeps none from being it.
        let beside = for_host("z", "shop", "web", "");
        let tables = tables(&(service("a", "shop", &spec) + &beside));
        assert_eq!(source_for(&tables, "shop"), Some("shop/z"), "{spec}");
    }
    let both = format!("hosts: [web, HOST], gateways: [edge, mesh], {TO_API}").replace("HOST", HOST);
    assert_eq!(tables(&service("a", "shop", &both)).len(), 1);
}

#[test]
fn a_change_reaches_the_services_that_it_is_for() {
    let objects = |text: &str| -> Vec<SharedObject> {
        let parsed = manifest::parse("test.yaml", text);
        assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
        parsed.objects.into_iter().map(Arc::new).collect()
    };
    let mut compiler = Compiler::new(MeshConfig::default());
    let mut apply = |text: &str, is_there: bool| {
        let changes = objects(text)
            .into_iter()
            .map(|it| ObjectChange { key: it.value.key(), object: is_there.then_some(it) });
        let mut changed = Vec::new();
        compiler.apply(changes, |update| match update {
            ResourceUpdate::Address(name, address) => changed.push((name, address.is_some())),
            ResourceUpdate::Authorization(name, _) => panic!("{name} has changed"),
        });
        changed
    };
    let [web, api] = ["web", "api"].map(|name| (format!("shop/{name}.shop.svc.cluster.local"), true));
    apply(SERVICES, true);
    let exact = for_host("a", "shop", "web", "");
    assert_eq!(apply(&exact, true), std::slice::from_ref(&web));
    assert_eq!(
        apply(&for_host("a", "shop", "api", ""), true),
        [api.clone(), web.clone()],
        "the old host, too"
    );
    assert_eq!(apply(&for_host("b", "shop", "*.shop.svc.cluster.local", ""), true), [api.clone(), web]);
    assert_eq!(apply(&for_host("c", "shop", "nobody", ""), true), []);
    assert_eq!(apply(&for_host("a", "shop", "api", ""), false), [api]);
}
