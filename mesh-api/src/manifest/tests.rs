use super::*;

fn names(parsed: &ParsedManifest) -> Vec<String> {
    parsed.objects.iter().map(|object| object.value.key().to_string()).collect()
}

#[test]
fn a_broken_document_costs_only_itself() {
    let text = "\
apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: Service
 metadata: {name: web}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
";
    let parsed = parse("shop.yaml", text);
    assert_eq!(names(&parsed), ["Namespace shop", "ServiceAccount shop/web"]);
    let [error] = parsed.errors.as_slice() else { panic!("{:?}", parsed.errors) };
    assert_eq!((error.file.as_str(), error.line), ("shop.yaml", 7));
    assert_eq!(parsed.objects[1].line, 9);
}

#[test]
fn json_is_read_as_well() {
    let text = "{\n\t\"apiVersion\": \"v1\",\n\t\"kind\": \"Pod\",\n\t\"metadata\": {\"name\": \"a\", \"labels\": null},\n\t\
                \"spec\": {\"containers\": [{\"name\": \"c\", \"args\": [\"\\u003c\", \"1\"]}]}\n}\n";
    let parsed = parse("pod.json", text);
    assert!(parsed.errors.is_empty(), "{:?}", parsed.errors);
    let Object::Pod(pod) = &parsed.objects[0].value else { panic!("not a pod") };
    assert_eq!(pod.spec.containers[0].args, ["<", "1"]);
    assert_eq!(parsed.objects[0].raw, serde_json::from_str::<serde_json::Value>(text).unwrap());
}

#[test]
fn a_list_counts_as_its_items() {
    let text = "\
apiVersion: v1
kind: List
items:
- {apiVersion: v1, kind: Namespace, metadata: {name: a}}
- {apiVersion: v1, kind: Namespace, metadata: {name: A}}
- {apiVersion: v1, kind: Namespace, metadata: {name: b}}
";
    let parsed = parse("list.yaml", text);
    assert_eq!(names(&parsed), ["Namespace a", "Namespace b"]);
    assert_eq!(parsed.errors[0].line, 5);
    assert_eq!(parsed.errors[0].field.as_deref(), Some("metadata.name"));
}

#[test]
fn items_of_a_typed_list_need_no_kind() {
    let text = "\
apiVersion: v1
kind: ServiceAccountList
items:
- metadata: {name: a, namespace: shop}
- {kind: ServiceAccount, apiVersion: null, metadata: {name: b, namespace: shop}}
- {kind: Pod, apiVersion: v1, metadata: {name: c, namespace: shop}}
- nonsense
---
apiVersion: security.istio.io/v1beta1
kind: AuthorizationPolicyList
items: [{metadata: {name: d, namespace: shop}, spec: {}}]
";
    let parsed = parse("list.yaml", text);
    let expected =
        ["ServiceAccount shop/a", "ServiceAccount shop/b", "Pod shop/c", "AuthorizationPolicy shop/d"];
    assert_eq!(names(&parsed), expected);
    let raw = serde_json::json!({
        "apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": "a", "namespace": "shop"},
    });
    assert_eq!(parsed.objects[0].raw, raw, "what is stored and sent on says what it is");
    assert_eq!((parsed.errors.len(), parsed.errors[0].line), (1, 7), "{:?}", parsed.errors);
    let untyped = parse("list.yaml", "apiVersion: v1\nkind: List\nitems: [{metadata: {name: a}}]\n");
    assert_eq!(untyped.errors[0].field.as_deref(), Some("kind"));
}

/// The labels of a service account whose `metadata` is written as `labels`, behind the anchors `a` and `b`.
fn labels(labels: &str) -> Result<Vec<(String, String)>, String> {
    let text = format!(
        "x: [&a {{app: a, from: a}}, &b {{app: b, tier: b}}, &no [1]]\nkind: ServiceAccount\napiVersion: v1\n\
         metadata:\n  name: x\n  labels: {labels}\n"
    );
    let parsed = parse("merge.yaml", &text);
    if let Some(error) = parsed.errors.first() {
        return Err(error.to_string());
    }
    let labels = parsed.objects[0].value.metadata().labels.iter();
    Ok(labels.map(|(key, value)| (key.clone(), value.clone())).collect())
}

#[test]
fn merge_keys_take_fields_over_and_what_is_written_wins() {
    for (written, expected) in [
        ("{<<: *a}", "app=a from=a"),
        ("{<<: *a, app: own}", "app=own from=a"),
        ("{app: own, <<: *a}", "app=own from=a"),
        ("{<<: [*a, *b], from: own}", "app=a from=own tier=b"),
        ("{<<: [*b, {more: in place}, *a]}", "app=b from=a more=in place tier=b"),
        ("{<<: {<<: *a, app: inner}}", "app=inner from=a"),
        ("{<<: []}", ""),
        ("{'<<': text}", "<<=text"),
    ] {
        let labels = labels(written).unwrap();
        let labels: Vec<_> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        assert_eq!(labels.join(" "), expected, "{written}");
    }
}

#[test]
fn merge_keys_that_name_no_map_are_refused() {
    for (written, problem) in [
        ("{<<: text}", "neither a map nor a list of maps"),
        ("{<<: }", "neither a map nor a list of maps"),
        ("{<<: [*a, text]}", "neither a map nor a list of maps"),
        ("{<<: *no}", "neither a map nor a list of maps"),
        ("{<<: *a, <<: *b}", "already there, at line 6"),
        ("&self {<<: *self}", "inside what it names"),
    ] {
        let error = labels(written).unwrap_err();
        assert!(error.contains(problem) && error.contains("merge.yaml:6:"), "{written}: {error}");
    }
}

#[test]
fn anchors_are_put_in_place_within_bounds() {
    let good = "apiVersion: v1\nkind: Pod\nmetadata: {name: &n a, labels: {app: *n}}\n";
    let parsed = parse("pod.yaml", good);
    assert_eq!(parsed.objects[0].value.metadata().labels["app"], "a");

    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..9 {
        let items = vec![format!("*a{}", level - 1); 10].join(", ");
        let line = format!("a{level}: &a{level} [{items}]\n");
        bomb.push_str(&line);
    }
    let parsed = parse("bomb.yaml", &bomb);
    assert!(parsed.errors[0].problem.contains("too large"), "{}", parsed.errors[0]);

    let mut bomb = String::from("a0: &a0 {k: [x, x, x, x, x, x, x, x, x, x]}\n");
    for level in 1..9 {
        let merged: Vec<_> = (0..10).map(|key| format!("k{level}{key}: {{<<: *a{}}}", level - 1)).collect();
        let line = format!("a{level}: &a{level} {{{}}}\n", merged.join(", "));
        bomb.push_str(&line);
    }
    let parsed = parse("bomb.yaml", &bomb);
    assert!(parsed.errors[0].problem.contains("too large"), "{}", parsed.errors[0]);
}

#[test]
fn merging_reports_an_object_of_two_files() {
    let text = "apiVersion: v1\nkind: Namespace\nmetadata: {name: a}\n";
    let mut all = parse("one.yaml", text);
    all.merge(parse("two.yaml", text));
    assert_eq!(all.objects.len(), 1);
    let error = &all.errors[0];
    assert_eq!(error.file, "two.yaml");
    assert_eq!(
        error.to_string(),
        "two.yaml:1: Namespace a: metadata.name: the same resource is already defined at one.yaml:1\n  \
         fix: remove one of the two, or rename it"
    );
}

#[test]
fn kinds_without_effect_are_warned_of() {
    let text = "\
apiVersion: networking.istio.io/v1
kind: Sidecar
metadata: {name: web}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: web}
---
apiVersion: serving.knative.dev/v1
kind: Service
metadata: {name: web}
";
    let parsed = parse("other.yaml", text);
    assert!(parsed.errors.is_empty() && parsed.objects.is_empty());
    let problems: Vec<_> = parsed.warnings.iter().map(|warning| warning.problem.as_str()).collect();
    assert_eq!(
        problems,
        [
            "Sidecar is not supported yet, ignored",
            "the mesh does not use the kind ConfigMap, ignored",
            "the mesh does not use the kind Service, ignored",
        ]
    );
}

#[test]
fn kinds_of_one_name_are_told_apart_by_their_groups() {
    let parse_as = |version: &str, kind: &str| {
        let mut parsed =
            parse("a.yaml", &format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: a}}\n"));
        assert!(parsed.objects.is_empty());
        let is_mistake = !parsed.errors.is_empty();
        parsed.errors.append(&mut parsed.warnings);
        (is_mistake, parsed.errors.remove(0).problem)
    };
    let gateway = |version: &str| parse_as(version, "Gateway");
    let (istio, api) =
        ("Gateway is not supported yet, ignored", "the mesh does not use the kind Gateway, ignored");
    assert_eq!(gateway("networking.istio.io/v1"), (false, istio.to_owned()));
    assert_eq!(gateway("gateway.networking.k8s.io/v1"), (false, api.to_owned()));
    let slip = "\"networking.istio.io/v2\" does not serve the kind DestinationRule".to_owned();
    assert_eq!(parse_as("networking.istio.io/v2", "DestinationRule"), (true, slip));
}

#[test]
fn hostile_text_is_refused_not_fatal() {
    for text in
        ["", "---", "\u{feff}", "- - - -", "{", "&a [*a]", "? [a]\n: b", "\0", "%YAML 9.9\n---\na", "*x"]
    {
        let parsed = parse("hostile.yaml", text);
        assert!(parsed.objects.is_empty(), "{text:?}");
    }
    let deep = "[".repeat(100_000);
    assert_eq!(parse("deep.yaml", &deep).errors.len(), 1);
}

#[test]
fn an_object_of_the_api_may_hold_what_no_yaml_may() {
    let odd = "\u{7f} \u{85} \u{91} \u{fffe} \u{feff} \u{1} --- # {";
    let value = serde_json::json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "web", "namespace": "shop", "annotations": {"note": odd}},
        "spec": {"nodeName": "node1", "containers": [{"name": "main", "args": [odd]}]},
    });
    let parsed = parse_json_object("kubernetes", value.clone());
    assert_eq!((parsed.errors.len(), parsed.objects.len()), (0, 1), "{:?}", parsed.errors);
    assert_eq!(parsed.objects[0].raw, value);
}

#[test]
fn an_object_of_the_api_is_held_to_the_same_rules() {
    let value = serde_json::json!({
        "apiVersion": "security.istio.io/v1", "kind": "AuthorizationPolicy",
        "metadata": {"name": "web", "namespace": "shop"}, "spec": {"action": "PERHAPS"},
    });
    let by_text = parse("kubernetes", &value.to_string());
    assert_eq!(parse_json_object("kubernetes", value).errors, by_text.errors);
    assert_eq!(by_text.errors[0].field.as_deref(), Some("spec.action"));
    let by_value = parse_json_object("kubernetes", serde_json::json!("nonsense"));
    assert_eq!((by_value.objects.len(), by_value.errors.len()), (0, 1));
}
