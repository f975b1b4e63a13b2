use super::*;

fn names(parsed: &Parsed) -> Vec<String> {
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
kind: VirtualService
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
            "VirtualService is not supported yet, ignored",
            "the mesh does not use the kind ConfigMap, ignored",
            "the mesh does not use the kind Service, ignored",
        ]
    );
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
    let parsed = parse_value("kubernetes", value.clone());
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
    assert_eq!(parse_value("kubernetes", value).errors, by_text.errors);
    assert_eq!(by_text.errors[0].field.as_deref(), Some("spec.action"));
    let by_value = parse_value("kubernetes", serde_json::json!("nonsense"));
    assert_eq!((by_value.objects.len(), by_value.errors.len()), (0, 1));
}
