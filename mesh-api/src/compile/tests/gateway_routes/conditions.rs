//! What is said of routes that are not in force as written.

use super::*;

/// Field, fault and whether nothing is in force, of each condition of these objects.
fn said(text: &str) -> Vec<(String, &'static str, bool)> {
    let conditions = compiled(&(SERVICES.to_owned() + text)).conditions;
    for condition in &conditions {
        assert!(!condition.reason.is_empty() && !condition.fix.is_empty(), "{condition:?}");
    }
    let fault = |it: &Condition| it.route_fault.map_or("", RouteFault::as_str);
    conditions.iter().map(|it| (it.field.clone(), fault(it), it.is_whole)).collect()
}

#[test]
fn a_route_in_force_has_no_conditions() {
    assert_eq!(said(&route("shop", "a", "", &format!("{{{TO_API}}}"))), []);
    let gateways = object("HTTPRoute", "shop", "b", "parentRefs: [{name: edge}], rules: [{whatever: 1}]");
    assert_eq!(said(&gateways), [], "it is others'");
}

#[test]
fn parents_that_can_t_be_are_named() {
    let services = "---\napiVersion: v1\nkind: Service\nmetadata: {name: pods, namespace: shop}\n\
        spec: {clusterIP: None, ports: [{name: http, port: 80}]}\n\
        ---\napiVersion: v1\nkind: Service\nmetadata: {name: bytes, namespace: shop}\n\
        spec: {clusterIP: 10.96.0.9, ports: [{name: tcp, port: 80}]}\n";
    for (parent, field, fault) in [
        ("name: nobody", "spec.parentRefs[0].name", "NoMatchingParent"),
        ("name: web, namespace: other", "spec.parentRefs[0].name", "NoMatchingParent"),
        ("name: web, port: 81", "spec.parentRefs[0].port", "NoMatchingParent"),
        ("name: web, sectionName: a", "spec.parentRefs[0].sectionName", "NoMatchingParent"),
        ("name: pods", "spec.parentRefs[0].name", "UnsupportedValue"),
        ("name: bytes", "spec.parentRefs[0]", "UnsupportedValue"),
    ] {
        let spec = format!("parentRefs: [{{group: '', kind: Service, {parent}}}], rules: [{{{TO_API}}}]");
        let text = object("HTTPRoute", "shop", "a", &spec) + services;
        assert_eq!(said(&text), [(field.to_owned(), fault, true)], "{parent}");
    }
    let one_of_two =
        "parentRefs: [{group: '', kind: Service, name: nobody}, {group: '', kind: Service, name: web}]";
    let text = object("HTTPRoute", "shop", "a", &format!("{one_of_two}, rules: [{{{TO_API}}}]"));
    assert_eq!(said(&text), [("spec.parentRefs[0].name".to_owned(), "NoMatchingParent", false)]);
}

#[test]
fn backends_that_can_t_be_are_named() {
    for (backend, field, fault) in [
        ("name: nobody, port: 80", "name", "BackendNotFound"),
        ("name: api, port: 81", "port", "BackendNotFound"),
        ("name: a, kind: Secret", "kind", "InvalidKind"),
        ("name: a, group: x.y, kind: Service", "kind", "InvalidKind"),
        ("name: bank, namespace: other, port: 80", "namespace", "RefNotPermitted"),
    ] {
        let text = route("shop", "a", "", &format!("{{backendRefs: [{{{backend}}}]}}"));
        assert_eq!(
            said(&text),
            [(format!("spec.rules[0].backendRefs[0].{field}"), fault, false)],
            "{backend}"
        );
    }
    let mirror = "{type: RequestMirror, requestMirror: {backendRef: {name: nobody, port: 80}}}";
    let text = route("shop", "a", "", &format!("{{{TO_API}, filters: [{mirror}]}}"));
    let field = "spec.rules[0].filters[0].requestMirror.backendRef.name".to_owned();
    assert_eq!(said(&text), [(field, "BackendNotFound", false)]);
}

#[test]
fn what_is_not_done_is_said() {
    for (rule, field, fault) in [
        (format!("{{{TO_API}, sessionPersistence: {{}}}}"), "spec.rules[0].sessionPersistence", ""),
        (
            format!("{{{TO_API}, matches: [{{}}, {{path: {{type: RegularExpression, value: '\\C'}}}}]}}"),
            "spec.rules[0].matches[1].path.value",
            "",
        ),
        (
            format!("{{{TO_API}, filters: [{{type: ExtensionRef, extensionRef: {{}}}}]}}"),
            "spec.rules[0].filters[0]",
            "InvalidKind",
        ),
        (
            format!(
                "{{{TO_API}, filters: [{{type: RequestHeaderModifier, requestHeaderModifier: {{remove: [te]}}}}]}}"
            ),
            "spec.rules[0].filters[0].requestHeaderModifier.remove[0]",
            "",
        ),
        (
            "{backendRefs: [{name: api, port: 80, filters: [{type: URLRewrite, urlRewrite: {}}]}]}"
                .to_owned(),
            "spec.rules[0].backendRefs[0].filters[0]",
            "UnsupportedValue",
        ),
        (
            "{backendRefs: [{name: api, port: 80, filters: [{type: ExtensionRef, extensionRef: {}}]}]}"
                .to_owned(),
            "spec.rules[0].backendRefs[0].filters[0]",
            "InvalidKind",
        ),
        (
            format!(
                "{{{TO_API}, filters: [{{type: CORS, cors: {{exposeHeaders: ['*'], allowCredentials: true}}}}]}}"
            ),
            "spec.rules[0].filters[0].cors.exposeHeaders",
            "",
        ),
        (
            format!("{{{TO_API}, filters: [{{type: ExternalAuth}}]}}"),
            "spec.rules[0].filters[0]",
            "UnsupportedValue",
        ),
        (
            "{filters: [{type: RequestRedirect, requestRedirect: {hostname: a}}, \
             {type: RequestMirror, requestMirror: {backendRef: {name: api, port: 80}}}]}"
                .to_owned(),
            "spec.rules[0].filters",
            "",
        ),
    ] {
        assert_eq!(said(&route("shop", "a", "", &rule)), [(field.to_owned(), fault, false)], "{rule}");
    }
    let spec = format!(
        "parentRefs: [{{group: '', kind: Service, name: web}}], hostnames: [a.b], rules: [{{{TO_API}}}]"
    );
    assert_eq!(said(&object("HTTPRoute", "shop", "a", &spec)), [("spec.hostnames".to_owned(), "", false)]);
}

#[test]
fn a_route_with_more_expressions_than_agents_are_to_hold_is_not_in_force() {
    let matched = |number: u32| format!("{{path: {{type: RegularExpression, value: '/{number}'}}}}");
    let rule = |from: u32| {
        let matches: Vec<_> = (from..from + 51).map(matched).collect();
        format!("{{{TO_API}, matches: [{}]}}", matches.join(", "))
    };
    let text = route("shop", "a", "", &format!("{}, {}", rule(0), rule(100)));
    assert_eq!(said(&text), [("spec.rules".to_owned(), "UnsupportedValue", true)]);
    assert!(tables(&text).is_empty());
}

#[test]
fn a_route_none_of_whose_matches_can_be_looked_for_lets_nothing_through() {
    let rule = format!("{{{TO_API}, matches: [{{path: {{type: RegularExpression, value: '\\C'}}}}]}}");
    let text = route("shop", "a", "", &rule);
    let field = |it: &str| it.to_owned();
    let expected = [
        (field("spec.rules[0].matches[0].path.value"), "", true),
        (field("spec.rules"), "UnsupportedValue", false),
    ];
    assert_eq!(said(&text), expected);
    let tables = tables(&text);
    assert_eq!((tables.len(), tables[0].routes.len()), (1, 0), "no route is found, so requests fail");
}

/// A route of a namespace that comes to about so many bytes.
fn large(namespace: &str, name: &str, bytes: usize) -> String {
    let backend = if namespace == "shop" { "" } else { "namespace: shop, " };
    let remove: Vec<_> = (0..16).map(|number| format!("a{number}-{}", "x".repeat(bytes / 16))).collect();
    let filter = format!(
        "{{type: RequestHeaderModifier, requestHeaderModifier: {{remove: [{}]}}}}",
        remove.join(", ")
    );
    route(
        namespace,
        name,
        "",
        &format!("{{filters: [{filter}], backendRefs: [{{{backend}name: web, port: 80}}]}}"),
    )
}

#[test]
fn routes_of_one_service_have_a_bound_for_each_namespace_and_the_oldest_count() {
    let mut text: String = ["a", "b", "c"].map(|name| large("client", name, 400_000)).concat();
    text += &large("other", "a", 400_000);
    text += &large("shop", "a", 400_000);
    assert_eq!(said(&text), [("spec.parentRefs[0]".to_owned(), "UnsupportedValue", true)]);
    let sources: Vec<_> = tables(&text).into_iter().map(|it| it.source).collect();
    assert_eq!(sources, ["HTTPRoute client/a and another", "HTTPRoute other/a", "HTTPRoute shop/a"]);
    let many: String = (0..10).map(|number| large(&format!("n{number}"), "a", 900_000)).collect();
    let left = said(&(many + &large("shop", "a", 400_000)));
    assert_eq!(left.len(), 1, "all other namespaces have a bound together: {left:?}");
}

#[test]
fn another_namespace_s_route_that_names_a_port_costs_the_owner_s_nothing() {
    let ports: Vec<_> =
        (0..12).map(|number| format!("{{name: http-{number}, port: {}}}", 9100 + number)).collect();
    let many = format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: many, namespace: shop}}\n\
         spec: {{clusterIP: 10.96.0.7, ports: [{}]}}\n",
        ports.join(", ")
    );
    let own =
        large("shop", "a", 900_000).replace("name: web, namespace: shop}", "name: many, namespace: shop}");
    let spec =
        "parentRefs: [{group: '', kind: Service, name: many, namespace: shop, port: 9100}], rules: [{}]";
    assert_eq!(said(&(many + &own + &object("HTTPRoute", "client", "b", spec))), []);
}

#[test]
fn a_route_s_name_counts_for_each_of_its_parts() {
    let rule = |number: usize| {
        format!(
            "{{matches: [{{path: {{type: Exact, value: /{number}}}}}], filters: [{{type: RequestRedirect, requestRedirect: {{port: 1}}}}]}}"
        )
    };
    let rules: Vec<_> = (0..16).map(rule).collect();
    let name = |number: usize| format!("{}-{number:03}", "n".repeat(240));
    let text: String = (0..400).map(|number| route("client", &name(number), "", &rules.join(", "))).collect();
    let encoded: usize = tables(&text).iter().map(Message::encoded_len).sum();
    assert!(encoded < 1 << 20, "{encoded} bytes for one namespace");
    assert!(!said(&text).is_empty(), "some are left out");
}
