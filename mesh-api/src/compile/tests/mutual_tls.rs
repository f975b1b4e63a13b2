use super::*;

const STRICT: &str = "istio-system/istio_converted_static_strict";

fn mode(name: &str, namespace: &str, created: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: security.istio.io/v1\nkind: PeerAuthentication\n\
         metadata: {{name: {name}, namespace: {namespace}, creationTimestamp: '2026-01-{created}T00:00:00Z'}}\nspec: {{{spec}}}\n"
    )
}

/// The policies that the pod `shop/web-1` has.
fn of_web(policies: &[String]) -> Vec<String> {
    compiled(&(policies.concat() + &pod("shop", "web", "10.0.0.1")))
        .pod("shop", "web-1")
        .authorization_policies
        .clone()
}

const MESH: &str = "istio-system";
const WEB: &str = "selector: {matchLabels: {app: web}}, ";

#[test]
fn without_any_policy_nothing_is_sent() {
    assert!(compiled(&pod("shop", "web", "10.0.0.1")).authorizations.is_empty());
}

#[test]
fn strict_denies_whoever_proved_no_identity() {
    let compiled = compiled(&mode("default", "shop", "01", "mtls: {mode: STRICT}"));
    let policy = compiled.authorization(STRICT);
    assert_eq!((policy.scope(), policy.action()), (Scope::WorkloadSelector, Action::Deny));
    let [rule] = policy.rules.as_slice() else { panic!("{policy:#?}") };
    let [clause] = rule.clauses.as_slice() else { panic!("{policy:#?}") };
    assert_eq!(clause.matches[0].not_principals[0].match_type, Some(MatchType::Presence(())));
}

#[test]
fn the_narrowest_level_that_says_something_counts() {
    let mesh = |m: &str| mode("default", MESH, "01", &format!("mtls: {{mode: {m}}}"));
    let namespace = |m: &str| mode("default", "shop", "01", &format!("mtls: {{mode: {m}}}"));
    let workload = |m: &str| mode("web", "shop", "01", &format!("{WEB}mtls: {{mode: {m}}}"));
    assert_eq!(of_web(&[mesh("STRICT")]), [STRICT]);
    assert!(of_web(&[mesh("STRICT"), namespace("PERMISSIVE")]).is_empty());
    assert_eq!(of_web(&[mesh("PERMISSIVE"), namespace("STRICT")]), [STRICT]);
    assert!(of_web(&[namespace("STRICT"), workload("PERMISSIVE")]).is_empty());
    assert!(of_web(&[namespace("STRICT"), workload("DISABLE")]).is_empty());
    assert_eq!(of_web(&[mesh("STRICT"), namespace("UNSET"), workload("UNSET")]), [STRICT]);
}

#[test]
fn the_oldest_of_a_level_counts_and_the_others_are_named() {
    let policies = [
        mode("b", "shop", "01", "mtls: {mode: PERMISSIVE}"),
        mode("a", "shop", "02", "mtls: {mode: STRICT}"),
    ];
    assert!(of_web(&policies).is_empty());
    let reasons = compiled(&policies.concat()).reasons();
    assert_eq!(
        reasons,
        [(ConditionEffect::Ignored, "spec: shop/b is older, and only the oldest counts".to_owned())]
    );
}

#[test]
fn a_selector_in_the_root_namespace_is_ignored() {
    let policy = mode("web", MESH, "01", &format!("{WEB}mtls: {{mode: STRICT}}"));
    assert!(of_web(std::slice::from_ref(&policy)).is_empty());
    assert_eq!(compiled(&policy).conditions[0].effect, ConditionEffect::Ignored);
}

#[test]
fn ports_of_a_strict_workload_may_be_open() {
    let spec = format!(
        "{WEB}mtls: {{mode: STRICT}}, portLevelMtls: {{8080: {{mode: PERMISSIVE}}, 9090: {{mode: DISABLE}}}}"
    );
    let policy = mode("web", "shop", "01", &spec);
    let name = "shop/converted_peer_authentication_web";
    assert_eq!(of_web(std::slice::from_ref(&policy)), [name]);
    let compiled = compiled(&policy);
    let [rule] = compiled.authorization(name).rules.as_slice() else { panic!("{compiled:#?}") };
    assert_eq!(rule.clauses.len(), 2, "both must hold");
    assert_eq!(rule.clauses[1].matches[0].not_destination_ports, [8080, 9090]);
}

#[test]
fn ports_of_a_permissive_workload_may_be_strict() {
    let spec = format!(
        "{WEB}portLevelMtls: {{8080: {{mode: STRICT}}, 9090: {{mode: STRICT}}, 7070: {{mode: UNSET}}}}"
    );
    let policy = mode("web", "shop", "01", &spec);
    let name = "shop/converted_peer_authentication_web";
    assert_eq!(of_web(std::slice::from_ref(&policy)), [name]);
    let compiled = compiled(&policy);
    let ports: Vec<_> = compiled
        .authorization(name)
        .rules
        .iter()
        .map(|rule| rule.clauses[1].matches[0].destination_ports.clone())
        .collect();
    assert_eq!(ports, [[8080], [9090]]);
}

#[test]
fn ports_inherit_from_the_levels_above() {
    let mesh = mode("default", MESH, "01", "mtls: {mode: STRICT}");
    let same = mode("web", "shop", "01", &format!("{WEB}portLevelMtls: {{8080: {{mode: STRICT}}}}"));
    assert_eq!(of_web(&[mesh.clone(), same]), [STRICT], "no port differs");
    let open = mode("web", "shop", "01", &format!("{WEB}portLevelMtls: {{8080: {{mode: PERMISSIVE}}}}"));
    assert_eq!(of_web(&[mesh, open]), ["shop/converted_peer_authentication_web"]);
}

#[test]
fn disable_is_taken_for_permissive_and_said() {
    let reasons = compiled(&mode("default", "shop", "01", "mtls: {mode: DISABLE}")).reasons();
    assert_eq!(reasons[0].0, ConditionEffect::Weaker);
}
