use super::*;

#[test]
fn scopes() {
    use wire::Scope::{Global, Namespace, WorkloadSelector};
    let block = |namespace, scope| scoped(deny(&[rule(&[])]), namespace, scope);
    let asked = |policy, named: &[&str]| outcome(&ask(&[policy], named, CLIENT));
    assert_eq!(asked(block("istio-system", Global), &[]), "deny by istio-system/deny", "mesh");
    assert_eq!(asked(block("shop", Namespace), &[]), "deny by shop/deny", "own namespace");
    assert_eq!(asked(block("ops", Namespace), &[]), "allow", "another namespace");
    assert_eq!(asked(block("shop", WorkloadSelector), &["shop/deny"]), "deny by shop/deny", "named");
    assert_eq!(asked(block("shop", WorkloadSelector), &[]), "allow", "not named");
    assert_eq!(asked(block("root", WorkloadSelector), &["root/deny"]), "deny by root/deny", "root's, named");
    let allowed = ask(&[allow(&[])], &["shop/allow"], CLIENT);
    let Verdict::Deny(denial) = &allowed.verdict else { panic!("{allowed}") };
    let once = DenyReason::NoAllowMatches { policies: ["shop/allow".into()].into() };
    assert_eq!(denial.reason(), &once, "named, though it applies anyway");
}

/// Both forms of `PeerAuthentication`: of a workload, and of its ports.
#[test]
fn peer_authentication() {
    let strict = |name: &str, rules: &[Rule]| {
        scoped(policy(name, wire::Action::Deny, rules), "shop", wire::Scope::WorkloadSelector)
    };
    let asked = |policy: &Authorization, client| {
        let name = format!("shop/{}", policy.name);
        let decision = ask(std::slice::from_ref(policy), &[&name], client);
        match decision.verdict {
            Verdict::Allow(_) => "allow",
            Verdict::Deny(denial) if matches!(denial.reason(), DenyReason::Plaintext { .. }) => "plaintext",
            Verdict::Deny(_) => "deny",
        }
    };
    let other_port = Client { port: 9000, ..PLAINTEXT };
    let base = strict(wire::STRICT, &[single(presence_required())]);
    assert_eq!(asked(&base, PLAINTEXT), "plaintext", "STRICT, plaintext");
    assert_eq!(asked(&base, CLIENT), "allow", "STRICT, mutual TLS");
    let except = Match { not_destination_ports: vec![9000], ..Match::default() };
    let permissive_port = strict(
        "converted_peer_authentication_a",
        &[rule(&[clause(&[presence_required()]), clause(&[except])])],
    );
    assert_eq!(asked(&permissive_port, PLAINTEXT), "plaintext", "STRICT but for 9000, at 8080");
    assert_eq!(asked(&permissive_port, other_port), "allow", "STRICT but for 9000, at 9000");
    let strict_port = strict(
        "converted_peer_authentication_b",
        &[rule(&[clause(&[presence_required()]), clause(&[ports(&[9000])])])],
    );
    assert_eq!(asked(&strict_port, PLAINTEXT), "allow", "PERMISSIVE but for 9000, at 8080");
    assert_eq!(asked(&strict_port, other_port), "plaintext", "PERMISSIVE but for 9000, at 9000");
    assert_eq!(asked(&strict_port, Client { port: 9000, ..CLIENT }), "allow", "PERMISSIVE but for 9000, TLS");
}

#[test]
fn dry_run_and_audit_only_record() {
    let all = || [rule(&[])];
    let none = || [single(ports(&[1]))];
    let would = |decision: &Decision| -> Vec<_> {
        decision.dry_run.iter().map(|dry| format!("{} {}", dry.policy, dry.would)).collect()
    };
    let denied = ask(&[dry(deny(&all()))], &[], CLIENT);
    assert_eq!((outcome(&denied), would(&denied)), ("allow".into(), vec!["shop/deny deny".into()]));
    let matched = ask(&[dry(allow(&all()))], &[], CLIENT);
    assert_eq!((outcome(&matched), would(&matched)), ("allow".into(), vec!["shop/allow allow".into()]));
    let unmatched = ask(&[dry(allow(&none()))], &[], CLIENT);
    assert_eq!((outcome(&unmatched), would(&unmatched)), ("allow".into(), vec!["shop/allow deny".into()]));
    let second = policy("second", wire::Action::Allow, &all());
    let rescued = ask(&[dry(allow(&none())), second], &[], CLIENT);
    assert_eq!((outcome(&rescued), would(&rescued)), ("allow by shop/second".into(), vec![]));
    let audited = ask(&[audit(&all()), deny(&all())], &[], CLIENT);
    assert_eq!(
        (outcome(&audited), &*audited.audited),
        ("deny by shop/deny".into(), &["shop/audit".into()][..])
    );
    let silent = ask(&[audit(&none())], &[], CLIENT);
    assert_eq!((outcome(&silent), silent.audited.len(), silent.dry_run.len()), ("allow".into(), 0, 0));
}

#[test]
fn a_missing_policy_denies_by_name() {
    for name in ["shop/late", "istio-system/istio_converted_static_strict"] {
        let decision = ask(&[], &[name], CLIENT);
        let Verdict::Deny(denial) = &decision.verdict else { panic!("{decision}") };
        assert_eq!(denial.reason(), &DenyReason::Missing { policy: name.into() });
    }
    let both = ask(&[deny(&[rule(&[])])], &["shop/late"], CLIENT);
    assert_eq!(outcome(&both), "deny by shop/deny", "a match says more than an absence");
    let despite = ask(&[allow(&[rule(&[])])], &["shop/late"], CLIENT);
    assert_eq!(outcome(&despite), "deny by shop/late", "an ALLOW does not make up for it");
}

/// Conditions that can't be understood, by what is wrong with them.
fn faults() -> [(Match, Invalid); 6] {
    let ip = |address: Vec<u8>, length| vec![wire::Address { address, length }];
    let v4: IpAddr = "10.0.0.0".parse().unwrap();
    [
        (ports(&[65536]), Invalid::Port { field: "destination_ports", port: 65536 }),
        (ports(&[0]), Invalid::Port { field: "destination_ports", port: 0 }),
        (
            Match { source_ips: ip(vec![1; 5], 8), ..Match::default() },
            Invalid::Address { field: "source_ips", bytes: 5 },
        ),
        (
            Match { not_destination_ips: ip(address_bytes("10.0.0.0"), 33), ..Match::default() },
            Invalid::Prefix { field: "destination_ips", address: v4, length: 33 },
        ),
        (
            Match { principals: vec![StringMatch::default()], ..Match::default() },
            Invalid::EmptyMatch { field: "principals" },
        ),
        (
            Match { extensions: vec![Extension { name: "moon".into(), config: None }], ..ports(&[80]) },
            Invalid::MatchExtension { name: "moon".into() },
        ),
    ]
}

#[test]
fn a_policy_that_is_not_understood_denies_until_a_good_one_comes() {
    for (fault, expected) in faults() {
        let bad = policy_resource(&allow(&[rule(&[]), single(fault)]));
        let good = policy_resource(&allow(&[rule(&[])]));
        let mut store = store(vec![pod_resource(pod("db", &["10.244.1.3"]))], &[]);
        let mut apply = |resource: &Resource| {
            let rejected = store.apply_response(type_url::AUTHORIZATION, vec![resource.clone()], Vec::new());
            (rejected, outcome(&decide(&store.snapshot(), CLIENT)))
        };
        let (rejected, verdict) = apply(&bad);
        assert_eq!(rejected.first().map(|rejected| &rejected.reason), Some(&expected));
        assert_eq!(verdict, "deny by shop/allow", "{expected}");
        assert_eq!(apply(&good), (vec![], "allow by shop/allow".into()), "{expected}");
        let (rejected, verdict) = apply(&bad);
        assert_eq!((rejected.len(), &*verdict), (1, "allow by shop/allow"), "the good one stays: {expected}");
    }
    let mut ignored = store(vec![pod_resource(pod("db", &["10.244.1.3"]))], &[]);
    let bad = dry(deny(&[single(ports(&[0]))]));
    assert_eq!(
        ignored.apply_response(type_url::AUTHORIZATION, vec![policy_resource(&bad)], Vec::new()).len(),
        1
    );
    assert_eq!(outcome(&decide(&ignored.snapshot(), CLIENT)), "allow", "in dry run it denies nothing");
}

#[test]
fn decisions_read_well() {
    let says = |policies: &[Authorization], named: &[&str], client, expected: &str| {
        assert_eq!(ask(policies, named, client).to_string(), expected);
    };
    let peer = "spiffe://cluster.local/ns/web/sa/guest at 10.244.2.7 to port 8080";
    says(&[], &[], CLIENT, "allowed: no DENY policy matches and no ALLOW policy applies");
    says(&[allow(&[rule(&[])])], &[], CLIENT, "allowed by policy shop/allow (ALLOW)");
    says(
        &[deny(&[single(ports(&[1])), rule(&[])])],
        &[],
        CLIENT,
        &format!("denied by policy shop/deny (DENY): rule 2 matches {peer}"),
    );
    says(
        &[allow(&[]), policy("b", wire::Action::Allow, &[]), dry(deny(&[rule(&[])])), audit(&[rule(&[])])],
        &[],
        CLIENT,
        &format!(
            "denied: no ALLOW policy matches {peer} (2 apply: shop/allow, shop/b); audited by shop/audit; \
             shop/deny (dry run) would deny"
        ),
    );
    let strict = policy(wire::STRICT, wire::Action::Deny, &[single(presence_required())]);
    says(
        &[scoped(strict, "istio-system", wire::Scope::WorkloadSelector)],
        &["istio-system/istio_converted_static_strict"],
        PLAINTEXT,
        "denied by policy istio-system/istio_converted_static_strict: plaintext from 10.244.2.7 to port 8080, \
         STRICT mutual TLS required",
    );
    says(
        &[],
        &["shop/late"],
        PLAINTEXT,
        "denied: policy shop/late applies to the workload but has not arrived; plaintext from 10.244.2.7 to port 8080",
    );
}
