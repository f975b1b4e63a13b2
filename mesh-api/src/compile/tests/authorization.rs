use super::*;

/// A policy `shop/web`.
fn policy(spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: AuthorizationPolicy\nmetadata: {{name: web, namespace: shop}}\n\
         spec: {{{spec}}}\n"
    )
}

/// The only match of the only rule's clauses.
fn matches(compiled: &Compiled) -> Vec<Match> {
    let [rule] = compiled.authorization("shop/web").rules.as_slice() else { panic!("{compiled:#?}") };
    rule.clauses.iter().flat_map(|clause| clause.matches.clone()).collect()
}

fn exact(text: &str) -> StringMatch {
    StringMatch { match_type: Some(MatchType::Exact(text.to_owned())) }
}

fn prefix(text: &str) -> StringMatch {
    StringMatch { match_type: Some(MatchType::Prefix(text.to_owned())) }
}

#[test]
fn where_a_policy_stands_decides_its_scope() {
    let scope = |text: &str, name: &str| compiled(text).authorization(name).scope();
    let here = policy("rules: [{}]");
    assert_eq!(scope(&here, "shop/web"), Scope::Namespace);
    assert_eq!(scope(&here.replace("shop", "istio-system"), "istio-system/web"), Scope::Global);
    let selecting = policy("selector: {matchLabels: {app: web}}, rules: [{}]");
    assert_eq!(scope(&selecting, "shop/web"), Scope::WorkloadSelector);
    assert_eq!(scope(&policy("selector: {}, rules: [{}]"), "shop/web"), Scope::Namespace);
}

#[test]
fn selected_pods_name_the_policy() {
    let pods =
        pod("shop", "web", "10.0.0.1") + &pod("shop", "db", "10.0.0.2") + &pod("other", "web", "10.0.0.3");
    let text = pods + &policy("selector: {matchLabels: {app: web}}, rules: [{}]");
    let mine = compiled(&text);
    assert_eq!(mine.pod("shop", "web-1").authorization_policies, ["shop/web"]);
    assert!(mine.pod("shop", "db-1").authorization_policies.is_empty());
    assert!(mine.pod("other", "web-1").authorization_policies.is_empty());
    let everywhere =
        compiled(&text.replace("name: web, namespace: shop}", "name: web, namespace: istio-system}"));
    assert_eq!(everywhere.pod("other", "web-1").authorization_policies, ["istio-system/web"]);
}

#[test]
fn custom_actions_and_targets_are_not_sent_but_said() {
    let custom = compiled(&policy("action: CUSTOM, provider: {name: x}, rules: [{}]"));
    let target = compiled(&policy("targetRefs: [{kind: Service, name: web}], rules: [{}]"));
    for (compiled, field) in [(custom, "spec.action"), (target, "spec.targetRefs")] {
        assert!(compiled.authorizations.is_empty());
        assert_eq!(
            (compiled.conditions[0].effect, compiled.conditions[0].field.as_str()),
            (ConditionEffect::Ignored, field)
        );
    }
}

#[test]
fn audit_and_dry_run_are_never_enforced() {
    let audit = compiled(&policy("action: AUDIT, rules: [{}]"));
    let sent = audit.authorization("shop/web");
    assert!(sent.dry_run);
    assert_eq!((sent.action(), sent.extensions[0].name.as_str()), (Action::Allow, ext::AUDIT));
    let dry = policy("action: DENY, rules: [{}]")
        .replace("namespace: shop", "namespace: shop, annotations: {istio.io/dry-run: 'true'}");
    let dry = compiled(&dry);
    let sent = dry.authorization("shop/web");
    assert!(sent.dry_run && sent.extensions.is_empty() && sent.action() == Action::Deny);
}

#[test]
fn every_attribute_of_a_connection_has_its_place() {
    let compiled = compiled(&policy(
        "action: DENY, rules: [{from: [{source: {principals: ['a', 'b*'], notPrincipals: ['*c'], namespaces: ['*'], \
         notNamespaces: ['n'], ipBlocks: [10.0.0.0/8, 192.0.2.1], notIpBlocks: ['fd00::/8', '::ffff:10.1.0.0/112']}}, \
         {source: {serviceAccounts: [x, y/z], notServiceAccounts: [w]}}], \
         to: [{operation: {ports: ['80'], notPorts: ['81']}}], \
         when: [{key: source.ip, values: [10.0.0.1]}, {key: destination.ip, notValues: [10.0.0.2]}, \
         {key: destination.port, values: ['82'], notValues: ['83']}, {key: source.namespace, values: [m]}, \
         {key: source.principal, notValues: ['*']}]}]",
    ));
    let reasons = compiled.reasons();
    let odd = "spec.rules[0].from[0].source.principals[0]: \"a\" can match nobody";
    assert!(reasons.len() == 1 && reasons[0].1.starts_with(odd), "{reasons:?}");
    let [from, accounts, to, source_ip, destination_ip, port, namespace, principal] =
        matches(&compiled).try_into().unwrap();
    assert_eq!(from.principals, [exact("a"), prefix("b")]);
    assert_eq!(from.not_principals[0].match_type, Some(MatchType::Suffix("c".into())));
    assert_eq!(from.namespaces[0].match_type, Some(MatchType::Presence(())));
    assert_eq!(from.not_namespaces, [exact("n")]);
    let lengths = |list: &[wire::security::Address]| {
        list.iter().map(|a| (a.address.len(), a.length)).collect::<Vec<_>>()
    };
    assert_eq!(lengths(&from.source_ips), [(4, 8), (4, 32)]);
    assert_eq!(lengths(&from.not_source_ips), [(16, 8), (4, 16)]);
    let accounts_of = |list: &[wire::security::ServiceAccountMatch]| {
        list.iter().map(|a| format!("{}/{}", a.namespace, a.service_account)).collect::<Vec<_>>()
    };
    assert_eq!(accounts_of(&accounts.service_accounts), ["shop/x", "y/z"]);
    assert_eq!(accounts_of(&accounts.not_service_accounts), ["shop/w"]);
    assert_eq!((to.destination_ports, to.not_destination_ports), (vec![80], vec![81]));
    assert_eq!(lengths(&source_ip.source_ips), [(4, 32)]);
    assert_eq!(lengths(&destination_ip.not_destination_ips), [(4, 32)]);
    assert_eq!((port.destination_ports, port.not_destination_ports), (vec![82], vec![83]));
    assert_eq!(namespace.namespaces, [exact("m")]);
    assert_eq!(principal.not_principals.len(), 1);
}

#[test]
fn an_allow_rule_that_speaks_of_http_is_left_out() {
    for part in [
        "to: [{operation: {methods: [GET], ports: ['80']}}]",
        "to: [{operation: {notPaths: ['/x']}}]",
        "to: [{operation: {hosts: [a]}}]",
        "from: [{source: {requestPrincipals: ['*']}}]",
        "from: [{source: {remoteIpBlocks: [10.0.0.0/8]}}]",
        "when: [{key: 'request.headers[a]', values: [b]}]",
        "when: [{key: source.serviceAccount, values: [a/b]}]",
        "when: [{key: connection.sni, values: [a]}]",
    ] {
        let compiled =
            compiled(&policy(&format!("rules: [{{{part}}}, {{to: [{{operation: {{ports: ['81']}}}}]}}]")));
        assert_eq!(matches(&compiled)[0].destination_ports, [81], "{part}");
        assert_eq!(compiled.conditions[0].effect, ConditionEffect::Stricter, "{part}");
        assert_eq!(compiled.conditions[0].field, "spec.rules[0]");
    }
}

#[test]
fn an_allow_policy_that_loses_all_rules_still_allows_nothing() {
    let compiled = compiled(&policy("rules: [{to: [{operation: {methods: [GET]}}]}]"));
    assert!(compiled.authorization("shop/web").rules.is_empty());
}

#[test]
fn a_deny_rule_keeps_what_a_connection_shows() {
    let compiled =
        compiled(&policy("action: DENY, rules: [{to: [{operation: {methods: [GET], ports: ['80']}}]}]"));
    assert_eq!(matches(&compiled), [Match { destination_ports: vec![80], ..Match::default() }]);
    assert_eq!(compiled.reasons()[0].0, ConditionEffect::Stricter);
}

#[test]
fn a_deny_rule_with_a_part_of_http_only_matches_nothing() {
    for part in ["to: [{operation: {methods: [GET]}}]", "when: [{key: 'request.headers[a]', values: [b]}]"] {
        let rule = format!("action: DENY, rules: [{{from: [{{source: {{principals: [a]}}}}], {part}}}]");
        let compiled = compiled(&policy(&rule));
        assert!(compiled.authorization("shop/web").rules.is_empty(), "{part}");
        assert_eq!(compiled.reasons()[0].0, ConditionEffect::Ignored);
    }
}

#[test]
fn a_deny_alternative_of_http_only_is_lost_and_said() {
    let compiled = compiled(&policy(
        "action: DENY, rules: [{from: [{source: {principals: [a]}}, {source: {requestPrincipals: [b]}}]}]",
    ));
    assert_eq!(matches(&compiled), [Match { principals: vec![exact("a")], ..Match::default() }]);
    assert_eq!(compiled.reasons()[0].0, ConditionEffect::Weaker);
}

#[test]
fn trust_domains_never_make_an_allow_wider() {
    let compiled = compiled(&policy("rules: [{from: [{source: {trustDomains: [a], namespaces: [b]}}]}]"));
    assert!(compiled.authorization("shop/web").rules.is_empty());
    assert_eq!(compiled.reasons()[0].0, ConditionEffect::Stricter);
}

#[test]
fn trust_domains_deny_by_the_beginning_of_principals() {
    let deny = |source: &str| {
        compiled(&policy(&format!("action: DENY, rules: [{{from: [{{source: {{{source}}}}}]}}]")))
    };
    let plain = deny("trustDomains: [a]");
    assert_eq!(matches(&plain)[0].principals, [prefix("a/")]);
    assert_eq!(plain.reasons(), []);
    assert_eq!(matches(&deny("notTrustDomains: [a]"))[0].not_principals, [prefix("a/")]);
    let ending = deny("trustDomains: ['*.org']");
    assert_eq!(matches(&ending)[0].principals[0].match_type, Some(MatchType::Presence(())));
    assert_eq!(ending.reasons()[0].0, ConditionEffect::Stricter);
    let beside = deny("trustDomains: [a], principals: [a/ns/b/sa/c]");
    assert_eq!(matches(&beside)[0].principals, [exact("a/ns/b/sa/c")]);
    assert_eq!(beside.reasons()[0].0, ConditionEffect::Stricter);
}

#[test]
fn a_star_within_a_namespace_errs_on_the_safe_side() {
    let of = |action: &str, field: &str| {
        let compiled = compiled(&policy(&format!(
            "action: {action}, rules: [{{from: [{{source: {{{field}: ['a*b']}}}}]}}]"
        )));
        assert_eq!(compiled.reasons()[0].0, ConditionEffect::Stricter);
        matches(&compiled).remove(0)
    };
    assert_eq!(of("ALLOW", "namespaces").namespaces, [exact("")]);
    assert_eq!(of("ALLOW", "notNamespaces").not_namespaces, [prefix("a")]);
    assert_eq!(of("DENY", "namespaces").namespaces, [prefix("a")]);
    assert_eq!(of("DENY", "notNamespaces").not_namespaces, [exact("")]);
}

#[test]
fn values_that_can_match_nobody_are_conditions_and_warnings() {
    let text = policy(
        "action: DENY, rules: [{}, {from: [{source: {ipBlocks: [10.0.0.1]}}, {source: {principals: \
         [cluster.local/ns/a/sa/b, 'SPIFFE://cluster.local/ns/a/sa/b'], notNamespaces: ['front ']}}, \
         {source: {serviceAccounts: [Web]}}], when: [{key: source.principal, notValues: [td/sa/x]}, \
         {key: source.namespace, values: [Front]}, {key: source.serviceAccount, values: [a/B]}]}]",
    );
    let expected = [
        ("spec.rules[1].from[1].source.principals[1]", "\"cluster.local/ns/a/sa/b\""),
        ("spec.rules[1].from[1].source.notNamespaces[0]", "\"front\""),
        ("spec.rules[1].from[2].source.serviceAccounts[0]", "\"web\""),
        ("spec.rules[1].when[0].notValues[0]", "\"td/ns/NAMESPACE/sa/x\""),
        ("spec.rules[1].when[1].values[0]", "\"front\""),
        ("spec.rules[1].when[2].values[0]", "\"b\""),
    ];
    let parsed = manifest::parse("test.yaml", &text);
    let warnings: Vec<_> = parsed.warnings.iter().map(|it| (it.field.as_deref().unwrap(), &it.fix)).collect();
    let compiled = compiled(&text);
    // The rule itself is left out for its `source.serviceAccount`, which is a condition too.
    let of_values = compiled.conditions.iter().filter(|it| it.reason.contains("can match nobody"));
    assert!(of_values.clone().all(|it| it.effect == ConditionEffect::Ignored));
    let conditions: Vec<_> = of_values.map(|it| (it.field.as_str(), &it.fix)).collect();
    for (who, found) in [("warnings", warnings), ("conditions", conditions)] {
        assert_eq!(found.len(), expected.len(), "{who}: {found:#?}");
        for ((field, words), (expected, meant)) in found.into_iter().zip(expected) {
            assert_eq!(field, expected, "{who}");
            assert!(words.contains(meant), "{who}: {field}: {words}");
        }
    }
    let reason = &compiled.conditions.last().unwrap().reason;
    assert!(reason.contains("this value denies nobody"), "{reason}");
}
