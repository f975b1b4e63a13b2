//! Labels that workloads show since routes or subsets ask about them.

use super::*;

/// The labels that each pod shows, as `namespace/name key=value`.
fn shown(compiled: &Compiled) -> Vec<String> {
    let mut shown = Vec::new();
    for address in compiled.addresses.values() {
        let Some(Type::Workload(workload)) = &address.r#type else { continue };
        let Some(extension) = workload.extensions.iter().find(|it| it.name == ext::LABELS) else { continue };
        let value = extension.config.as_ref().expect("has content").value.as_slice();
        for (key, value) in ext::Labels::decode(value).expect("is ours").labels {
            shown.push(format!("{}/{} {key}={value}", workload.namespace, workload.name));
        }
    }
    shown
}

fn pods() -> String {
    let labelled = |text: String| text.replace("labels: {app: ", "labels: {version: v1, tier: t, app: ");
    [pod("shop", "web", "10.0.0.1"), pod("client", "front", "10.0.0.2")].map(labelled).concat()
}

fn subset(host: &str, labels: &str) -> String {
    format!(
        "---\napiVersion: networking.istio.io/v1\nkind: DestinationRule\nmetadata: {{name: a, namespace: shop}}\n\
         spec: {{host: '{host}', subsets: [{{name: v1, labels: {{{labels}}}}}]}}\n"
    )
}

fn source(export_to: &str, conditions: &str) -> String {
    let http = format!("{{match: [{{{conditions}}}], route: [{{destination: {{host: api}}}}]}}");
    service("a", "shop", &format!("hosts: [web], {export_to}http: [{http}]"))
}

#[test]
fn pods_show_the_labels_that_are_asked_about_and_no_others() {
    for (text, expected) in [
        (subset("web", "version: v1"), &["shop/web-1 version=v1"][..]),
        (subset("web", "version: v9"), &["shop/web-1 version=v1"]),
        (subset("web.bank.svc.cluster.local", "version: v1"), &[]),
        (
            subset("*.svc.cluster.local", "version: v1"),
            &["client/front-1 version=v1", "shop/web-1 version=v1"],
        ),
        (
            source("", "sourceLabels: {app: web, none: ''}"),
            &["client/front-1 app=front", "shop/web-1 app=web"],
        ),
        (source("exportTo: [.], ", "sourceLabels: {app: web}"), &["shop/web-1 app=web"]),
        (source("exportTo: [client], ", "sourceLabels: {app: web}"), &["client/front-1 app=front"]),
        (source("", "sourceLabels: {app: web}, sourceNamespace: client"), &["client/front-1 app=front"]),
        (source("", "sourceLabels: {app: web}, gateways: [mesh]"), &[]),
        (source("", "port: 80"), &[]),
    ] {
        assert_eq!(shown(&compiled(&(SERVICES.to_owned() + &pods() + &text))), expected, "{text}");
    }
}

#[test]
fn labels_appear_and_disappear_with_who_asks_and_no_other_pod_is_touched() {
    let objects = |text: &str| -> Vec<SharedObject> {
        let parsed = manifest::parse("test.yaml", text);
        assert!(parsed.errors.is_empty(), "{:#?}", parsed.errors);
        parsed.objects.into_iter().map(Arc::new).collect()
    };
    let mut compiler = Compiler::new(MeshConfig::default());
    let mut result = Compiled::default();
    let mut apply = |text: &str, is_there: bool| {
        let changes = objects(text)
            .into_iter()
            .map(|it| ObjectChange { key: it.value.key(), object: is_there.then_some(it) });
        let mut pods = Vec::new();
        compiler.apply(changes, |update| {
            let ResourceUpdate::Address(name, Some(address)) = update else { panic!("{update:?}") };
            if let Some(Type::Workload(workload)) = &address.r#type {
                pods.push(workload.name.clone());
            }
            result.addresses.insert(name, *address);
        });
        (pods, shown(&result))
    };
    apply(&(SERVICES.to_owned() + &pods()), true);
    let (rule, routes) = (subset("web", "version: v1, none: a"), source("", "sourceLabels: {tier: t}"));
    let [version, tiers] =
        [vec!["shop/web-1 version=v1"], vec!["client/front-1 tier=t", "shop/web-1 tier=t"]];
    let owned = |texts: &[&str]| texts.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    assert_eq!(apply(&rule, true), (owned(&["web-1"]), owned(&version)));
    let all = ["client/front-1 tier=t", "shop/web-1 tier=t", "shop/web-1 version=v1"];
    assert_eq!(apply(&routes, true), (owned(&["front-1", "web-1"]), owned(&all)));
    assert_eq!(apply(&routes, true).0, owned(&[]), "nothing else is asked");
    assert_eq!(apply(&rule, false), (owned(&["web-1"]), owned(&tiers)));
    assert_eq!(apply(&routes, false), (owned(&["front-1", "web-1"]), owned(&[])));
}
