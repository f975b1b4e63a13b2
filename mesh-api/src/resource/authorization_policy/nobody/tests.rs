use super::*;

type Judge = fn(&Pattern) -> Option<Nobody>;

/// Of each value, that it can match nobody, and a part of the message.
fn expect(judge: Judge, cases: &[(&str, &str)]) {
    for (text, expected) in cases {
        let Nobody { problem, fix } =
            judge(&Pattern::from(*text)).unwrap_or_else(|| panic!("{text:?} passes"));
        assert!(problem.contains("can match nobody"), "{text:?}: {problem}");
        let said = format!("{problem}\n{fix}");
        assert!(said.contains(expected), "{text:?}: {said}");
    }
}

/// Of each value, that somebody may match it.
fn pass(judge: Judge, texts: &[&str]) {
    for text in texts {
        assert_eq!(judge(&Pattern::from(*text)), None, "{text:?}");
    }
}

#[test]
fn principals_that_nobody_has_are_named_with_what_was_meant() {
    const WHOLE: &str = "write \"cluster.local/ns/a/sa/b\"";
    expect(
        principal,
        &[
            ("spiffe://cluster.local/ns/a/sa/b", WHOLE),
            ("SPIFFE://cluster.local/ns/a/sa/b", WHOLE),
            ("SPIFFE://cluster.local/ns/a/*", "write \"cluster.local/ns/a/*\""),
            ("spiffe://*", "write \"*\""),
            ("cluster.local/ns/a/sa/b ", WHOLE),
            (" cluster.local/ns/a/sa/b", "a blank"),
            ("cluster.local/ns/a/sa/b\t", WHOLE),
            ("cluster.local/ns/a /sa/b", WHOLE),
            ("cluster.local/ns/a/sa/b/", WHOLE),
            ("/ns/a/sa/b", "write \"*/ns/a/sa/b\""),
            ("cluster.local/sa/b/ns/a", WHOLE),
            ("cluster.local/sa/b", "write \"cluster.local/ns/NAMESPACE/sa/b\", or \"*/sa/b\""),
            ("cluster.local/ns/a", "write \"cluster.local/ns/a/*\""),
            ("ns/a/sa/b", "write \"*/ns/a/sa/b\""),
            ("ns/a", "`namespaces: [\"a\"]`"),
            ("sa/b", "write \"*/sa/b\""),
            ("frontend", "`serviceAccounts: [\"frontend\"]`, or \"*/sa/frontend\""),
            ("frontend", "`namespaces: [\"frontend\"]`"),
            ("a/b", "write \"*/ns/a/sa/b\""),
            ("system:serviceaccount:a:b", "write \"*/ns/a/sa/b\""),
            ("Cluster.local/ns/a/sa/b", "the capital `C`"),
            ("cluster.local/ns/A/sa/b", WHOLE),
            ("cluster.local/ns/a/sa/B", WHOLE),
            ("cluster.local/NS/a/SA/b", WHOLE),
            ("cluster.local/ns/\u{430}/sa/b", "(U+0430)"),
            ("cluster.local/ns/\u{430}/sa/b", WHOLE),
            ("cluster.local/ns/a/sa/b\u{200b}", WHOLE),
            ("cluster.local\u{2215}ns/a/sa/b", WHOLE),
            ("cluster.local/ns/a.b/sa/c", "a principal is `TRUST-DOMAIN"),
            ("cluster.local/ns/a/sa/b/c", WHOLE),
            ("cluster.local/ns//sa/b", "a principal is"),
            ("cluster.local/sa/*", "a principal is"),
            ("cluster.local/ns/A*", "write \"cluster.local/ns/a*\""),
            ("cluster.local/*/x", "a principal is"),
            ("*/sa/b/ns/a", "a principal is"),
            ("*/sa/b/", "write \"*/sa/b\""),
            ("*/sa/B", "write \"*/sa/b\""),
            ("*sa/b ", "write \"*sa/b\""),
            ("*/", "write \"*\""),
            ("/", "a principal is"),
        ],
    );
}

#[test]
fn principals_that_somebody_may_have_pass() {
    pass(
        principal,
        &[
            "cluster.local/ns/a/sa/b",
            "my_domain/ns/a-1/sa/b.c",
            "*",
            "c*",
            "cluster.local*",
            "cluster.local/*",
            "cluster.local/n*",
            "cluster.local/ns*",
            "cluster.local/ns/*",
            "cluster.local/ns/a-*",
            "cluster.local/ns/a/s*",
            "cluster.local/ns/a/sa/*",
            "cluster.local/ns/a/sa/b.*",
            "*b",
            "*.b",
            "*/b",
            "*a/b",
            "*/sa/b",
            "*-a/sa/b",
            "*/ns/a/sa/b",
            "*s/a/sa/b",
            "*.local/ns/a/sa/b",
        ],
    );
}

#[test]
fn names_that_nothing_has_are_named_with_what_was_meant() {
    expect(
        namespace,
        &[
            ("Front", "write \"front\""),
            ("front ", "write \"front\""),
            ("\u{a0}front", "(U+00A0)"),
            ("fr\u{43e}nt", "the character \u{43e} (U+043E), which is not of ASCII"),
            ("fr\u{43e}nt", "write \"front\""),
            ("front.svc", "write \"front\""),
            ("ns/front", "write \"front\""),
            ("my_front", "write \"my-front\""),
            ("Front*", "write \"front*\""),
            ("*Front", "write \"*front\""),
            ("a*B", "write \"a*b\""),
            ("-front", "a namespace is"),
            ("front/*", "a namespace is"),
            (&"a".repeat(64), "at most 63"),
        ],
    );
    expect(
        trust_domain,
        &[
            ("Cluster.local", "write \"cluster.local\""),
            ("spiffe://td/ns/a", "write \"td\""),
            ("//", "`cluster.local`"),
        ],
    );
    for (name, expected) in
        [("Web", "write \"web\""), ("web ", "a blank"), ("w\u{435}b", "write \"web\""), ("-", "kubectl")]
    {
        let account = ServiceAccountRef { namespace: "shop".to_owned(), name: name.to_owned() };
        let Nobody { problem, fix } = service_account(&account).unwrap_or_else(|| panic!("{name:?} passes"));
        assert!(format!("{problem}\n{fix}").contains(expected), "{name:?}: {problem}\n{fix}");
    }
}

#[test]
fn names_that_something_may_have_pass() {
    pass(namespace, &["front", "a-1", "*", "front-*", "*-front", "f*", "a*b", "a-*-b", "*a*"]);
    pass(trust_domain, &["cluster.local", "my_td", "*", "*.org", "cluster.*"]);
    let account = ServiceAccountRef { namespace: "shop".to_owned(), name: "web.v1".to_owned() };
    assert_eq!(service_account(&account), None);
}
